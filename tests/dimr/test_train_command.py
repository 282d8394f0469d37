"""Recipes, and ``dimr train`` in one process."""

from __future__ import annotations

import json
import math
import sys

import pytest
import torch

import dimr
from dimr.cli import main
from dimr.sampling.class_names import find_class_names, find_trained_classes
from dimr.training.loop import Trainer
from dimr.training.optimizer import parameter_groups
from dimr.training.recipe import Recipe, RecipeError, TrainingSettings, list_recipes, load_recipe
from tests.support.training_runs import STEPS, newest_state, write_recipe

pytest.importorskip("PIL")
pytest.importorskip("tqdm")

PAPER = {  # learning rate, steps, class dropout, loss weights
    "dimr-m-3r": (3e-4, 300_000, 0, (1 / 16, 1 / 4, 1)),
    "dimr-l-3r": (3e-4, 300_000, 0, (1 / 16, 1 / 4, 1)),
    "dimr-xl-2r": (2e-4, 1_000_000, 0.1, (1 / 4, 1)),
    "dimr-xl-3r": (2e-4, 1_000_000, 0.1, (1 / 16, 1 / 4, 1)),
    "dimr-g-2r": (2e-4, 1_000_000, 0.1, (1 / 4, 1)),
}


@pytest.fixture
def recipe(tmp_path):
    return write_recipe(tmp_path)


def train(recipe, output, *more) -> int:
    return main(["train", str(recipe), "--output", str(output), "--device", "cpu", *map(str, more)])


class TestRecipes:
    @pytest.mark.parametrize("name", PAPER)
    def test_of_the_paper(self, name):
        recipe = load_recipe(name)
        training = recipe.training
        assert recipe.model == dimr.model_config(name)
        found = (training.learning_rate, training.steps, training.class_dropout, training.loss_weights)
        assert found == PAPER[name]
        assert (training.batch_size, training.warmup_steps, training.betas) == (1024, 5000, (0.99, 0.99))
        assert (training.ema_decay, training.ema_ramp, training.weight_decay) == (0.9999, False, 0.03)
        assert (training.learning_rate_schedule, training.decaying) == ("constant", "all but gates")
        assert training.max_gradient_norm == 0
        assert recipe.passes(world_size=16) == 1
        assert recipe.passes(world_size=8) == 2

    def test_all_that_come_along_can_be_read(self):
        assert set(list_recipes()) >= {*PAPER, "trial"}
        for name in list_recipes():
            assert isinstance(load_recipe(name), Recipe)

    def test_overrides(self):
        overrides = [
            "training.batch_size=64",
            "data.path=some/where",
            "model.dims=[16, 8]",
            "training.betas=[0.5, 0.6]",
        ]
        recipe = load_recipe("dimr-xl-2r", overrides)
        assert recipe.training.batch_size == 64
        assert recipe.data.path == "some/where"
        assert recipe.model.dims == (16, 8)
        assert recipe.training.betas == (0.5, 0.6)

    @pytest.mark.parametrize(
        ("override", "message"),
        [
            ("training.batchsize=4", "training: unknown key 'batchsize'; known are steps, batch_size"),
            ("trainin.steps=4", "unknown key 'trainin'; known are model, data, training, run"),
            ("training.steps=many", "training: steps must be an integer, got 'many'"),
            ("training.steps=1.5", "training: steps must be an integer, got 1.5"),
            ("training.steps=true", "training: steps must be an integer, got True"),
            ("training.betas=[0.9]", r"training: betas must be a list of 2 values, got \[0.9\]"),
            ('training.betas=[0.9, "x"]', r"training: betas\[1\] must be a number, got 'x'"),
            ("training.compile=1", "training: compile must be true or false, got 1"),
            ("training.precision=float16", "training: precision must be one of 'float32', 'bfloat16'; got 'float16'"),
            ("training.learning_rate=nan", "training: learning_rate must be finite and at least 0, got nan"),
            ("run.strategy=zero", "run: strategy must be one of 'ddp', 'fsdp'; got 'zero'"),
            ("run.keep=0", "run: keep must be at least 1, got 0"),
            ("model.name=dimr-xs", "model: no model is called 'dimr-xs'"),
            ("model.depth=4", "model: unknown key 'depth'; known are in_channels"),
            ("model.dims=[961, 480]", "model: num_heads must divide"),
            ("data.sort=auto", "data: unknown key 'sort'"),
            ("data.flip=no", "data: flip must be true or false, got 'no'"),
            ("steps=4", "--set: wanted TABLE.KEY=VALUE"),
            ("training.steps", "--set: wanted TABLE.KEY=VALUE"),
        ],
    )
    def test_mistakes_are_named(self, override, message):
        with pytest.raises(RecipeError, match=message):
            load_recipe("dimr-xl-2r", [override])

    def test_missing_and_broken_files(self, tmp_path):
        with pytest.raises(RecipeError, match=r"no recipe file dimr-xxl; .* are .*dimr-xl-2r"):
            load_recipe("dimr-xxl")
        (tmp_path / "bad.toml").write_text("[model\n")
        with pytest.raises(RecipeError, match=r"bad\.toml is not TOML: .*line 1"):
            load_recipe(tmp_path / "bad.toml")
        (tmp_path / "empty.toml").write_text("")
        with pytest.raises(RecipeError, match=r"empty\.toml: data: the key 'path' is missing"):
            load_recipe(tmp_path / "empty.toml")

    def test_a_batch_that_cannot_be_divided(self):
        with pytest.raises(RecipeError, match=r"1024 must be a multiple of .* = 64 times 3 processes"):
            load_recipe("dimr-xl-2r").passes(world_size=3)


def test_only_gates_are_kept_from_decay():
    model = dimr.DiMR(dimr.DiMRConfig(in_channels=1, input_size=8, dims=(16, 8), layers=(1, 1), num_heads=2))
    decaying, kept = parameter_groups(model, 0.03, "all but gates")
    names = {id(p): name for name, p in model.named_parameters()}
    kept_names = {names[id(p)] for p in kept["params"]}
    assert kept_names == {name for name in names.values() if "_gate_" in name}
    assert len(decaying["params"]) + len(kept["params"]) == len(names)
    assert (decaying["weight_decay"], kept["weight_decay"]) == (0.03, 0.0)


class TestCommand:
    def test_leaves_a_model_checkpoints_and_a_record(self, recipe, tmp_path, capsys):
        output = tmp_path / "run"
        assert train(recipe, output, "--set", "run.keep=2") == 0
        assert "dimr sample" in capsys.readouterr().out
        assert sorted(p.name for p in (output / "checkpoints").iterdir()) == ["step-00000009.pt", "step-00000012.pt"]
        record = json.loads((output / "recipe.json").read_text())
        assert record["run"]["keep"] == 2
        state = newest_state(output)
        assert state["step"] == STEPS
        assert state["losses"].isfinite().all()
        assert state["data"]["consumed"] == 8 * STEPS
        assert find_class_names(3, output / "model") == ["class0", "class1", "class2"]
        model = dimr.load_model(output / "model")
        for name, value in model.state_dict().items():
            assert torch.equal(value, state["ema"]["averages"][name]), name
        pytest.importorskip("matplotlib")
        assert (output / "losses.png").stat().st_size > 0

    def test_fewer_classes_than_the_model(self, recipe, tmp_path, caplog):
        train(recipe, tmp_path / "run", "--set", "model.num_classes=10", "--set", "training.steps=3")
        assert (
            "the data has 3 of the model's 10 classes: rows 3 to 9 of its class embedding stay untrained" in caplog.text
        )
        model = tmp_path / "run" / "model"
        assert find_class_names(10, model)[:4] == ["class0", "class1", "class2", "untrained class 3"]
        assert find_trained_classes(10, model) == [0, 1, 2]

    def test_passes_do_not_change_the_run(self, recipe, tmp_path):
        states = []
        for device_batch in (8, 2):
            assert train(recipe, tmp_path / str(device_batch), "--set", f"run.device_batch={device_batch}") == 0
            states.append(newest_state(tmp_path / str(device_batch)))
        torch.testing.assert_close(states[0]["losses"], states[1]["losses"], rtol=1e-4, atol=1e-5)
        assert torch.equal(states[0]["generator"], states[1]["generator"])

    def test_goes_on_exactly(self, recipe, tmp_path, monkeypatch):
        train(recipe, tmp_path / "whole")
        monkeypatch.setattr("dimr.distributed.Processes.all_reduce_max", stop_at_call(5))
        assert train(recipe, tmp_path / "cut") == 128 + 15
        monkeypatch.undo()
        assert newest_state(tmp_path / "cut")["step"] == 5
        assert train(recipe, tmp_path / "cut", "--resume") == 0
        whole, cut = newest_state(tmp_path / "whole"), newest_state(tmp_path / "cut")
        assert torch.equal(whole["losses"], cut["losses"])
        for name, value in whole["model"].items():
            assert torch.equal(value, cut["model"][name]), name
        assert whole["data"] == cut["data"]

    def test_a_run_is_not_overwritten_by_mistake(self, recipe, tmp_path, capsys):
        output = tmp_path / "run"
        assert train(recipe, output, "--resume", "--set", "training.steps=3") == 0  # begins where there is none
        assert train(recipe, output) == 2
        assert "--resume to go on or --overwrite" in capsys.readouterr().err
        assert newest_state(output)["step"] == 3
        assert train(recipe, output, "--overwrite") == 0
        assert newest_state(output)["step"] == STEPS

    @pytest.mark.parametrize(
        ("override", "message"),
        [
            ("data.image_size=16", "has samples of 3x16x16, the model takes 3x8x8"),
            ("model.num_classes=2", "has 3 classes, the model 2; set model.num_classes"),
            ("model.unconditional_class=false", "class_dropout must be 0 for a model without an unconditional class"),
            ("training.loss_weights=[1, 2, 3]", "loss_weights must be 2 finite numbers"),
            ("run.device_batch=3", "must be a multiple of run.device_batch = 3"),
            ("data.path=nowhere", "data.path: no data at nowhere"),
            ("run.wandb=true", "run.wandb = true needs wandb, which is not installed: pip install wandb"),
        ],
    )
    def test_what_does_not_fit_is_named(self, recipe, tmp_path, capsys, monkeypatch, override, message):
        monkeypatch.setitem(sys.modules, "wandb", None)
        assert train(recipe, tmp_path / "run", "--set", override) == 2
        assert message in capsys.readouterr().err

    @pytest.mark.slow
    def test_samples_and_scalars_on_the_way(self, recipe, tmp_path):
        loading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
        options = ["sample_every=6", "sample_steps=2", "sample_guidance=0.5", "log_every=4", "tensorboard=true"]
        plain, watched = tmp_path / "plain", tmp_path / "watched"
        train(recipe, plain)
        train(recipe, watched, *(word for option in options for word in ("--set", f"run.{option}")))
        assert sorted(p.name for p in (watched / "samples").iterdir()) == ["step-00000006.png", "step-00000012.png"]
        losses = newest_state(watched)["losses"]
        assert torch.equal(losses, newest_state(plain)["losses"])  # looking changes nothing
        events = loading.EventAccumulator(str(watched / "tensorboard"))
        events.Reload()
        scalars = events.Scalars("loss/8x8")
        assert [event.step for event in scalars] == [4, 8, 12]
        assert scalars[1].value == pytest.approx(losses[4:8, 1].mean().item(), rel=1e-5)
        assert {"loss/4x4", "gradient norm", "learning rate", "images per second"} <= set(events.Tags()["scalars"])

    def test_divergence_names_the_last_good_checkpoint(self, recipe, tmp_path, capsys, monkeypatch):
        output = tmp_path / "run"
        clip = Trainer._clip
        monkeypatch.setattr(Trainer, "_clip", lambda self: clip(self) * (math.inf if self.step == 7 else 1))
        assert train(recipe, output) == 2
        error = capsys.readouterr().err
        assert "no longer finite at step 8" in error
        assert f"the last good checkpoint is {output}/checkpoints/step-00000006.pt" in error
        assert newest_state(output)["step"] == 6
        assert train(recipe, tmp_path / "early", "--set", "run.save_every=100") == 2
        assert "there is no checkpoint yet" in capsys.readouterr().err


def stop_at_call(count):
    """In place of ``Processes.all_reduce_max``: SIGTERM is seen the ``count``-th time that it is looked for."""
    calls = []

    def all_reduce_max(processes, value):
        calls.append(value)
        return 15 if len(calls) == count else value

    return all_reduce_max


def test_old_settings_are_read():
    """States from before a setting existed have its default."""
    values = TrainingSettings(3, 4, 1e-3, 1, 0.9).to_dict()
    del values["loss_weights"], values["decaying"]
    assert TrainingSettings.from_dict(values) == TrainingSettings(3, 4, 1e-3, 1, 0.9)
