"""Runs that start from other weights: ``dimr train --init``."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import dimr
from dimr import CheckpointError
from dimr.cli import main
from dimr.training.initial import load_initial_weights
from dimr.utils import file_sha256
from tests.support.official import CONFIGS, official_model, state_dict_path
from tests.support.training_runs import newest_state, write_recipe

pytest.importorskip("PIL")
pytest.importorskip("tqdm")

EMBEDDING = "branches.0.class_embedding.weight"
WITH_NULL, WITHOUT = "tdrms_2r", "tdln_3r"  # the latter has no unconditional class


def fresh(config, seed=5):
    torch.manual_seed(seed)
    return dimr.DiMR(config)


def assert_same_but_for_classes(model, source):
    theirs = source.state_dict()
    for name, value in model.state_dict().items():
        if name != EMBEDDING:
            assert torch.equal(value, theirs[name]), name


class TestClassEmbedding:
    @pytest.mark.parametrize("classes", [3, 12])
    def test_another_number_of_classes(self, classes):
        """From a published file, which does not say that its last row is the unconditional class's."""
        source = official_model(WITH_NULL)
        config = dataclasses.replace(CONFIGS[WITH_NULL], num_classes=classes)
        model, before = fresh(config), fresh(config)
        record, described = load_initial_weights(model, state_dict_path(WITH_NULL))
        assert_same_but_for_classes(model, source)
        rows, theirs = model.get_parameter(EMBEDDING), source.get_parameter(EMBEDDING)
        assert torch.equal(rows[:classes], before.get_parameter(EMBEDDING)[:classes])
        assert torch.equal(rows[classes], theirs[10])
        sha256 = file_sha256(state_dict_path(WITH_NULL))
        assert record == {
            "path": str(state_dict_path(WITH_NULL)), "file": str(state_dict_path(WITH_NULL)), "sha256": sha256,
            "step": None,
        }  # fmt: skip
        assert described == (
            f"starting from the weights in {state_dict_path(WITH_NULL)} (sha256 {sha256[:12]}): the class embedding is "
            f"new for {classes} classes (it had 10), the row of its unconditional class is kept"
        )

    def test_the_same_classes_are_kept(self):
        model = fresh(CONFIGS[WITH_NULL])
        load_initial_weights(model, state_dict_path(WITH_NULL))
        assert torch.equal(model.get_parameter(EMBEDDING), official_model(WITH_NULL).get_parameter(EMBEDDING))

    def test_without_an_unconditional_class(self, tmp_path):
        source = fresh(CONFIGS[WITHOUT], seed=1)
        dimr.save_model(source, tmp_path / "source")
        for classes, kept in ((10, "of 10 classes is kept"), (4, "is new for 4 classes (it had 10)")):
            config = dataclasses.replace(CONFIGS[WITHOUT], num_classes=classes, unconditional_class=True)
            model, before = fresh(config), fresh(config)
            _, described = load_initial_weights(model, tmp_path / "source")
            assert_same_but_for_classes(model, source)
            rows = model.get_parameter(EMBEDDING)
            assert torch.equal(rows[-1], before.get_parameter(EMBEDDING)[-1])
            assert torch.equal(rows[:10], source.get_parameter(EMBEDDING)) == (classes == 10)
            assert described.endswith(f"{kept}, the row of its unconditional class is new")

    def test_the_unconditional_row_is_left_out_where_there_is_no_place(self, tmp_path):
        source = fresh(dataclasses.replace(CONFIGS[WITHOUT], unconditional_class=True), seed=1)
        dimr.save_model(source, tmp_path / "source")
        model = fresh(CONFIGS[WITHOUT])
        load_initial_weights(model, tmp_path / "source")
        assert torch.equal(model.get_parameter(EMBEDDING), source.get_parameter(EMBEDDING)[:10])

    def test_published_models_of_imagenet(self, tmp_path):
        """1000 rows have no unconditional class among them, 1001 have."""
        published = load_file(state_dict_path(WITHOUT))
        rows = torch.randn(1001, 48)
        for count in (1000, 1001):
            save_file({**published, "stages.0.class_embeds.weight": rows[:count].clone()}, tmp_path / "a.safetensors")
            model = fresh(dataclasses.replace(CONFIGS[WITHOUT], num_classes=5, unconditional_class=True))
            load_initial_weights(model, tmp_path / "a.safetensors")
            assert torch.equal(model.get_parameter(EMBEDDING)[5], rows[1000]) == (count == 1001)
        model = fresh(dataclasses.replace(CONFIGS[WITHOUT], num_classes=1000))  # without an unconditional class
        load_initial_weights(model, tmp_path / "a.safetensors")
        assert torch.equal(model.get_parameter(EMBEDDING), rows[:1000])


class TestMisfits:
    def test_are_all_named_with_both_shapes(self):
        config = dataclasses.replace(CONFIGS[WITH_NULL], layers=(3, 4), input_size=8)
        with pytest.raises(CheckpointError) as caught:
            load_initial_weights(fresh(config), state_dict_path(WITH_NULL))
        message = str(caught.value)
        assert "unexpected: stages.0.blocks.3" in message
        shapes = "(found [64, 64], wanted [16, 64]), stages.1.input_layer.3.position_embeddings.weight"
        assert f"stages.0.input_layer.3.position_embeddings.weight {shapes}" in message

    def test_values_that_are_not_finite(self, tmp_path):
        tensors = load_file(state_dict_path(WITH_NULL))
        tensors["stages.0.class_embeds.weight"][0, 0] = float("nan")
        save_file(tensors, tmp_path / "a.safetensors")
        with pytest.raises(CheckpointError, match=rf"a\.safetensors: the values of {EMBEDDING} are not finite"):
            load_initial_weights(fresh(CONFIGS[WITH_NULL]), tmp_path / "a.safetensors")

    def test_nothing_there(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="no checkpoint at"):
            load_initial_weights(fresh(CONFIGS[WITH_NULL]), tmp_path / "none.pth")
        with pytest.raises(FileNotFoundError, match="no configuration at"):
            load_initial_weights(fresh(CONFIGS[WITH_NULL]), tmp_path)
        (tmp_path / "model_index.json").write_text("{}")
        with pytest.raises(FileNotFoundError, match=r"a pipeline of diffusers, which dimr convert .* OUT conv"):
            load_initial_weights(fresh(CONFIGS[WITH_NULL]), tmp_path)


class TestCommand:
    @pytest.fixture
    def train(self, tmp_path):
        recipe = write_recipe(tmp_path)

        def train(output, *more) -> int:
            return main(["train", str(recipe), "--output", str(output), "--device", "cpu", *map(str, more)])

        return train

    def test_starts_with_weights_and_average_of_a_run(self, train, tmp_path, caplog):
        old, new = tmp_path / "old", tmp_path / "new"
        train(old, "--set", "model.num_classes=7")
        still = ("--set", "training.learning_rate=0", "--set", "training.seed=4", "--set", "training.weight_decay=0")
        assert train(new, "--init", old, *still) == 0
        assert "(it had 7), the row of its unconditional class is kept" in caplog.text
        theirs, ours = newest_state(old), newest_state(new)
        for name, value in theirs["ema"]["averages"].items():
            if name == EMBEDDING:
                assert torch.equal(ours["model"][name][-1], value[-1])
                assert ours["model"][name].shape[0] == 4
            else:
                assert torch.equal(ours["model"][name], value), name
                torch.testing.assert_close(ours["ema"]["averages"][name], value, rtol=1e-5, atol=1e-7)
        record = json.loads((new / "recipe.json").read_text())
        file = old / "checkpoints" / "step-00000012.pt"
        assert record["run"]["init"] == str(old)
        assert record["init"] == {"path": str(old), "file": str(file), "sha256": file_sha256(file), "step": 12}
        assert json.loads((new / "history.json").read_text())[0]["recipe"] == record

    @pytest.mark.parametrize("source", ["model", "checkpoints/step-00000012.pt", "model/model.safetensors"])
    def test_other_places_hold_the_same_weights(self, train, tmp_path, source):
        train(tmp_path / "old")
        assert (
            train(tmp_path / "new", "--set", f"run.init={tmp_path / 'old' / source}", "--set", "run.save_every=1") == 0
        )
        assert train(tmp_path / "same", "--init", tmp_path / "old") == 0
        assert torch.equal(newest_state(tmp_path / "new")["losses"], newest_state(tmp_path / "same")["losses"])

    def test_a_resumed_run_goes_on_from_its_checkpoint(self, train, tmp_path, caplog):
        old, new = tmp_path / "old", tmp_path / "new"
        train(old)
        assert train(new, "--init", old, "--resume", "--set", "training.steps=6") == 0  # it begins here
        losses = newest_state(new)["losses"]
        first = json.loads((new / "recipe.json").read_text())["init"]
        assert train(new, "--init", tmp_path / "nowhere", "--resume") == 0
        assert f"run.init = {tmp_path / 'nowhere'} is not read: the run has begun and goes on from" in caplog.text
        assert torch.equal(newest_state(new)["losses"][:6], losses)
        record = json.loads((new / "recipe.json").read_text())
        assert (record["init"], record["run"]["init"]) == (first, str(old))
        assert "run.init" not in json.loads((new / "history.json").read_text())[-1]["changed"]
        assert train(new, "--init", tmp_path / "nowhere", "--overwrite") == 2

    def test_one_of_several_sets_of_weights(self, train, tmp_path, capsys):
        train(tmp_path / "old")
        state = newest_state(tmp_path / "old")
        averages = {f"module.{name}": value for name, value in state["ema"]["averages"].items()}
        torch.save({"ema": averages, "model": state["model"]}, tmp_path / "a.pth")
        assert train(tmp_path / "new", "--init", tmp_path / "a.pth") == 2
        assert "several keys: ema.module, model; name one (--key, or run.init_key)" in capsys.readouterr().err
        assert train(tmp_path / "new", "--init", tmp_path / "a.pth", "--set", "run.init_key=ema") == 0
        assert train(tmp_path / "same", "--init", tmp_path / "old") == 0
        assert torch.equal(newest_state(tmp_path / "new")["losses"], newest_state(tmp_path / "same")["losses"])

    def test_mistakes_are_one_line(self, train, tmp_path, capsys):
        assert train(tmp_path / "new", "--init", tmp_path / "none.pth") == 2
        assert f"run.init: no checkpoint at {tmp_path}/none.pth" in capsys.readouterr().err
        train(tmp_path / "old")
        assert train(tmp_path / "new", "--init", tmp_path / "old", "--set", "model.dims=[32, 8]") == 2
        assert "does not fit the model: " in capsys.readouterr().err
        assert not (tmp_path / "new" / "recipe.json").exists()
