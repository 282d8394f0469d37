"""Checkpoints as training programs wrap them: keys, prefixes and shards."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import dimr
from dimr import CheckpointError
from dimr.checkpoints.weights import read_state_dict
from dimr.checkpoints.wrappers import unwrapped
from dimr.cli import main
from tests.support.official import CONFIGS, official_model, state_dict_path

CASE = "tdrms_2r"


@pytest.fixture(scope="module")
def published():
    return load_file(state_dict_path(CASE))


def under(prefix, state):
    return {prefix + name: value for name, value in state.items()}


WRAPPED = {
    "module.": lambda s: under("module.", s),
    "_orig_mod.": lambda s: under("_orig_mod.", s),
    "module._orig_mod.": lambda s: under("module._orig_mod.", s),
    "ema_model.": lambda s: {**under("ema_model.", s), "initted": torch.ones(()), "step": torch.ones(1)},
    "AveragedModel": lambda s: {**under("module.", s), "n_averaged": torch.tensor(3)},
    "state_dict": lambda s: {"state_dict": s, "epoch": 3},
    "model": lambda s: {"model": s, "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": []}},
    "ema": lambda s: {"ema": s, "args": {"lr": 1e-4}, "steps": 5},
    "ema of ema_model.module.": lambda s: {"ema": under("ema_model.module.", s)},
    "state_dict of model.diffusion_model.": lambda s: {"state_dict": under("model.diffusion_model.", s)},
    "three deep": lambda s: {"checkpoint": {"trainer": {"model": under("module.", s)}}},
    "blocks compiled one by one": lambda s: {n.replace("blocks.0.", "blocks.0._orig_mod."): v for n, v in s.items()},
    "FSDP of torch 1": lambda s: {n.replace("blocks.1.", "blocks.1._fsdp_wrapped_module."): v for n, v in s.items()},
    "optimizer by name": lambda s: {"model": s, "optimizer": {"state": {n: {"exp_avg": v} for n, v in s.items()}}},
}


@pytest.mark.parametrize("name", WRAPPED)
def test_what_is_unambiguous_is_unwrapped(name, published, tmp_path):
    torch.save(WRAPPED[name](published), tmp_path / "a.pth")
    model = dimr.load_official_checkpoint(tmp_path / "a.pth", CONFIGS[CASE])
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in official_model(CASE).state_dict().items())


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda m: torch.optim.swa_utils.AveragedModel(m), torch.compile])
def test_real_wrappers_of_our_own_model(wrap, tmp_path):
    model = official_model(CASE)
    torch.save({"model": wrap(model).state_dict()}, tmp_path / "a.pt")
    again = dimr.load_official_checkpoint(tmp_path / "a.pt", CONFIGS[CASE])
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items())


class TestSeveral:
    @pytest.fixture
    def file(self, published, tmp_path):
        torch.save(
            {"model": published, "ema": under("module.", {k: v + 1 for k, v in published.items()})}, tmp_path / "a.pth"
        )
        return tmp_path / "a.pth"

    def test_are_named(self, file):
        with pytest.raises(
            CheckpointError, match=r"a\.pth holds weights under several keys: ema\.module, model; name one"
        ):
            dimr.load_official_checkpoint(file, CONFIGS[CASE])

    @pytest.mark.parametrize(("key", "added"), [("ema", 1), ("ema.module", 1), ("model", 0)])
    def test_a_key_chooses(self, file, published, key, added):
        found = unwrapped(read_state_dict(file), "a", key)
        assert all(torch.equal(value + added, found[name]) for name, value in published.items())

    def test_a_wrong_key_lists_the_others(self, file):
        with pytest.raises(
            CheckpointError, match=r"no weights under the key 'emu'; keys of weights: ema\.module, model$"
        ):
            unwrapped(read_state_dict(file), "a", "emu")

    def test_prefixes_side_by_side(self, published):
        """As EMA wrappers keep both: ema_model. and online_model."""
        both = {**under("ema_model.", published), **under("online_model.", {k: v + 1 for k, v in published.items()})}
        with pytest.raises(CheckpointError, match="several keys: ema_model, online_model"):
            unwrapped(both, "a")
        assert all(torch.equal(published[name], value) for name, value in unwrapped(both, "a", "ema_model").items())
        beside = {**published, **under("ema.", published)}
        with pytest.raises(CheckpointError, match=r"several keys: \(none\), ema"):
            unwrapped(beside, "a")

    def test_commands(self, tmp_path, capsys, caplog):
        model = dimr.create_model("dimr-tiny-3r")
        file = tmp_path / "a.pt"
        torch.save({"model": model.state_dict(), "ema": under("module.", model.state_dict())}, file)
        words = ["convert", str(file), str(tmp_path / "out"), "--model", "dimr-tiny-3r"]
        assert main(words) == 2
        assert (
            "a.pt holds weights under several keys: ema.module, model; name one (--key, or" in capsys.readouterr().err
        )
        assert main([*words, "--key", "ema"]) == 0
        assert "a.pt: read the weights under the key ema.module" in caplog.text
        found = dimr.load_model(tmp_path / "out").state_dict()
        assert all(torch.equal(value, found[name]) for name, value in model.state_dict().items())
        assert main([*words, "--key", "ema", "--weights", "raw"]) == 2
        assert "--weights: " in (error := capsys.readouterr().err)
        assert "a.pt is not of a run; --key names one of several sets of weights in it" in error


def test_what_does_not_belong_is_still_unexpected(published):
    for prefix in ("", "module."):
        state = under(prefix, {**published, "extra.weight": torch.zeros(1)})
        with pytest.raises(CheckpointError, match=r"1 unexpected: extra\.weight"):
            dimr.load_official_checkpoint(state, CONFIGS[CASE])


def test_other_models_are_left_as_they_are():
    state = {"blocks.0.weight": torch.zeros(1), "epoch": 3}
    assert unwrapped(state, "a") == state


def test_a_dictionary_that_holds_itself(published):
    state = {"model": dict(published)}
    state["model"]["again"] = state
    assert set(unwrapped(state, "a")) == {*published, "again"}


class TestShards:
    @pytest.fixture
    def folder(self, tmp_path):
        """A model's folder in two shards, as large models are saved by other programs."""
        dimr.save_model(official_model(CASE), tmp_path)
        tensors = load_file(tmp_path / "model.safetensors")
        (tmp_path / "model.safetensors").unlink()
        names = sorted(tensors)
        files = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
        parts = {files[0]: names[::2], files[1]: names[1::2]}
        for file, part in parts.items():
            save_file({name: tensors[name] for name in part}, tmp_path / file)
        index = {"metadata": {}, "weight_map": {name: file for file, part in parts.items() for name in part}}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
        return tmp_path

    def test_are_read_through_their_index(self, folder):
        wanted = official_model(CASE).state_dict()
        for model in (
            dimr.load_model(folder),
            dimr.load_official_checkpoint(folder / "model.safetensors.index.json", CONFIGS[CASE]),
        ):
            assert all(torch.equal(value, model.state_dict()[name]) for name, value in wanted.items())

    def test_one_alone_is_refused(self, folder):
        with pytest.raises(CheckpointError, match=r"is one of 2 shards: give their index, FILE\.index\.json"):
            read_state_dict(folder / "model-00001-of-00002.safetensors")

    def test_lost_shards_and_tensors(self, folder):
        shard = folder / "model-00002-of-00002.safetensors"
        content = load_file(shard)
        lost = sorted(content)[0]
        save_file({name: value for name, value in content.items() if name != lost}, shard)
        with pytest.raises(CheckpointError, match=f"lists tensors that its shards lack: {lost}"):
            dimr.load_model(folder)
        shard.unlink()
        with pytest.raises(CheckpointError, match="lists shards that are not there: model-00002-of-00002"):
            dimr.load_model(folder)

    @pytest.mark.parametrize(
        "weight_map",
        [None, [], {"a": "../a.safetensors"}, {"a": 3}, {"a": "model.safetensors.index.json"}, {"a": ".."}],
    )
    def test_a_bad_index(self, folder, weight_map):
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(CheckpointError, match=r"index\.json (is not an index of shards|lists shards that are not)"):
            dimr.load_model(folder)
