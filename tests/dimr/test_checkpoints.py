from __future__ import annotations

import json
import pickle
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

import dimr
from dimr.checkpoints import CheckpointError, official, to_official_state_dict
from dimr.checkpoints.official import entries
from dimr.checkpoints.weights import model_of, read_state_dict
from tests.support.official import CONFIGS, official_model, released_shapes, state_dict_path
from tests.support.small_models import TINY, inputs, perturbed_model

NAMES = {"DiMR-XL/2R": "dimr-xl-2r", "DiMR-G/2R": "dimr-g-2r"}
UNCHANGED_BY_ROUNDING = 2**-23  # (w - 1) + 1 in float32, for |w| < 2


@pytest.mark.parametrize("released", NAMES)
def test_every_released_parameter_has_a_place(released):
    wanted = {name: tuple(shape) for name, shape in released_shapes()[released].items()}
    assert official.official_shapes(dimr.model_config(NAMES[released])) == wanted


@pytest.mark.parametrize("config", [*CONFIGS.values(), TINY])
def test_every_parameter_of_ours_has_a_source(config):
    ours = {entry.ours: entry.shape for entry in entries(config)}
    assert ours == {name: tuple(p.shape) for name, p in dimr.DiMR(config).named_parameters()}
    assert set(ours) == set(dimr.DiMR(config).state_dict())


@pytest.mark.parametrize("case", CONFIGS)
def test_there_and_back(case):
    published = load_file(state_dict_path(case))
    back = to_official_state_dict(official_model(case))
    assert back.keys() == published.keys()
    for name, value in published.items():
        if name.endswith("nodecay_weight"):
            torch.testing.assert_close(back[name], value, rtol=0, atol=UNCHANGED_BY_ROUNDING)
        else:
            assert torch.equal(back[name], value), name


def test_loads_a_dictionary_without_sharing_its_memory():
    state = load_file(state_dict_path("tdln_3r"))
    model = dimr.load_official_checkpoint(state, CONFIGS["tdln_3r"])
    before = model.branches[0].class_embedding.weight.clone()
    for value in state.values():
        value.zero_()
    assert torch.equal(model.branches[0].class_embedding.weight, before)
    assert not model.training
    assert all(p.requires_grad and p.dtype == torch.float32 for p in model.parameters())


def test_loads_half_precision_and_pth(tmp_path):
    half = {name: value.half() for name, value in load_file(state_dict_path("tdln_3r")).items()}
    torch.save(half, tmp_path / "model.pth")
    model = dimr.load_official_checkpoint(tmp_path / "model.pth", CONFIGS["tdln_3r"])
    assert model.dtype == torch.float32
    torch.testing.assert_close(model.state_dict(), official_model("tdln_3r").state_dict(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_convert_both_ways(tmp_path, suffix):
    folder = dimr.convert_to_folder(state_dict_path("tdrms_2r"), tmp_path / "folder", CONFIGS["tdrms_2r"])
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    file = dimr.convert_to_published(folder, tmp_path / "new" / f"back{suffix}")
    again = dimr.load_official_checkpoint(file, CONFIGS["tdrms_2r"])
    torch.testing.assert_close(
        again.state_dict(), official_model("tdrms_2r").state_dict(), rtol=0, atol=UNCHANGED_BY_ROUNDING
    )


def test_convert_wants_a_known_suffix(tmp_path):
    with pytest.raises(CheckpointError, match=r"must end in \.pth, \.pt, \.safetensors"):
        dimr.convert_to_published(tmp_path, tmp_path / "weights.bin")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_folder_keeps_every_bit(tmp_path, dtype):
    model, batch = perturbed_model().to(dtype).eval(), inputs()
    dimr.save_model(model, tmp_path / "a" / "b")
    dimr.save_model(model, tmp_path / "a" / "b")  # over what is there
    loaded = dimr.load_model(tmp_path / "a" / "b")
    assert loaded.config == model.config
    assert not loaded.training
    batch["x"] = batch["x"].to(dtype)
    for a, b in zip(loaded(**batch), model(**batch), strict=True):
        assert torch.equal(a, b)


def test_an_interrupted_save_leaves_the_old_file(tmp_path, monkeypatch):
    dimr.save_model(perturbed_model(), tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()

    def broken(tensors, path):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("safetensors.torch.save_file", broken)
    with pytest.raises(OSError, match="disk full"):
        dimr.save_model(perturbed_model(seed=1), tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 2


def tiny_state():
    return to_official_state_dict(perturbed_model())


def test_keys_are_named():
    state = tiny_state()
    del state["stages.0.class_embeds.weight"]
    state["stages.9.extra"] = torch.zeros(1)
    state["stages.1.blocks.0.block2.w0.bias"] = torch.zeros(3)
    with pytest.raises(CheckpointError) as caught:
        dimr.load_official_checkpoint(state, TINY)
    message = str(caught.value)
    assert "1 missing: stages.0.class_embeds.weight" in message
    assert "1 unexpected: stages.9.extra" in message
    assert "1 misshapen: stages.1.blocks.0.block2.w0.bias (found [3], wanted [24])" in message


def test_a_long_list_is_shortened():
    with pytest.raises(CheckpointError, match=r"\d+ missing: (\S+, ){10}and \d+ more$"):
        dimr.load_official_checkpoint({}, TINY)


@pytest.mark.parametrize("value", [torch.zeros(2, dtype=torch.int64), "text", {"weight": torch.zeros(2)}])
def test_a_value_that_is_no_weight_is_named(value):
    state = {**tiny_state(), "stages.0.output_layer.2.bias": value}
    with pytest.raises(CheckpointError, match=r"stages.0.output_layer.2.bias must be a floating-point tensor"):
        dimr.load_official_checkpoint(state, TINY)


def whole_file(tmp_path, suffix):
    path = tmp_path / f"model{suffix}"
    state = tiny_state()
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    return path


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kept", [0, 4, 0.5, 0.99])
def test_truncated_files(tmp_path, suffix, kept):
    path = whole_file(tmp_path, suffix)
    data = path.read_bytes()
    path.write_bytes(data[: kept if isinstance(kept, int) else int(kept * len(data))])
    with pytest.raises(CheckpointError, match=rf"model\{suffix} is not a whole"):
        dimr.load_official_checkpoint(path, TINY)


class Hostile:
    def __reduce__(self):
        return exec, ("raise SystemExit('code in a checkpoint ran')",)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    "content", [b"<html>404</html>", pickle.dumps(Hostile(), protocol=2), bytes(4096)], ids=["html", "pickle", "zeros"]
)
def test_foreign_files(tmp_path, suffix, content):
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="is not a whole"):
        dimr.load_official_checkpoint(path, TINY)


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    torch.save({"weight": Hostile()}, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match="is not a whole file of tensors"):
        dimr.load_official_checkpoint(tmp_path / "model.pth", TINY)


def test_a_file_of_something_else(tmp_path):
    torch.save([torch.zeros(2)], tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match="holds a list, not a state dict"):
        dimr.load_official_checkpoint(tmp_path / "model.pth", TINY)


def test_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*nothing\.pth"):
        dimr.load_official_checkpoint(tmp_path / "nothing.pth", TINY)
    with pytest.raises(FileNotFoundError, match=r"no configuration at .*config.json"):
        dimr.load_model(tmp_path)
    dimr.save_model(perturbed_model(), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*model.safetensors"):
        dimr.load_model(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not a DiMR configuration"),
        ("[1]", "wanted an object, got list"),
        ('{"width": 3}', "unknown key 'width'"),
        ('{"num_heads": 0}', "num_heads must be at least 1"),
    ],
)
def test_damaged_configuration(tmp_path, text, message):
    dimr.save_model(perturbed_model(), tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        dimr.load_model(tmp_path)


def test_weights_of_another_configuration(tmp_path):
    dimr.save_model(perturbed_model(), tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**TINY.to_dict(), "num_classes": 7}))
    with pytest.raises(CheckpointError, match=r"class_embedding.weight \(found \[6, 16\], wanted \[8, 16\]\)"):
        dimr.load_model(tmp_path)


def test_unknown_name():
    with pytest.raises(ValueError, match="no model is called 'dimr-xs'"):
        dimr.load_official_checkpoint({}, "dimr-xs")


def test_shards_of_tensors(tmp_path):
    """A file of a sharded model cannot be read before ``torch.distributed.tensor`` is imported, and not used after."""
    distributed = pytest.importorskip("torch.distributed")
    if not distributed.is_available():
        pytest.skip("torch is built without torch.distributed")
    from torch.distributed.tensor import Shard, distribute_tensor

    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        mesh = distributed.device_mesh.init_device_mesh("cpu", (1,))
        state = {
            name: distribute_tensor(value, mesh, [Shard(0)]) for name, value in dimr.DiMR(TINY).state_dict().items()
        }
        torch.save(state, tmp_path / "a.pth")
        with pytest.raises(CheckpointError, match=r"a.pth: .* must be a floating-point tensor, got DTensor"):
            model_of(read_state_dict(tmp_path / "a.pth"), TINY, "a.pth")
    finally:
        distributed.destroy_process_group()
    program = f"from dimr.checkpoints.weights import read_state_dict; read_state_dict({str(tmp_path / 'a.pth')!r})"
    read = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "it holds shards of tensors (DTensor): save whole ones" in read.stderr
