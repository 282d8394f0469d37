"""Resumed runs: settings that their user changes, what is refused, and the way back from a divergence."""

from __future__ import annotations

import copy
import dataclasses
import json

import pytest
import torch

from dimr import CheckpointError, DiMR, DiMRConfig
from dimr.cli import main
from dimr.data.latents import LatentIndex
from dimr.training.history import continued, differences, read_history
from dimr.training.loop import Trainer, TrainingSettings
from dimr.utils import write_json
from tests.support.training_runs import STEPS, newest_state, write_pictures, write_recipe

CONFIG = DiMRConfig(in_channels=1, input_size=8, dims=(16, 8), layers=(1, 1), num_heads=2, num_classes=3, kernel_size=3)
SETTINGS = TrainingSettings(steps=6, batch_size=4, learning_rate=1e-2, warmup_steps=2, ema_decay=0.5)
CHANGES = {
    "steps": 8,
    "batch_size": 8,
    "learning_rate": 1e-3,
    "warmup_steps": 5,
    "learning_rate_schedule": "constant",
    "weight_decay": 0.5,
    "betas": (0.5, 0.6),
    "decaying": "all but gates",
    "ema_decay": 0.1,
    "ema_ramp": False,
    "class_dropout": 0.0,
    "max_gradient_norm": 1e-3,
    "loss_weights": (1.0, 0.5),
    "precision": "bfloat16",
    "checkpointing": "blocks",
    "seed": 3,
    "optimizer": "muon",
}


def batches(generator):
    labels = torch.randint(3, (4,), generator=generator)
    return labels[:, None, None, None].float().sub(1).expand(4, 1, 8, 8), labels


def new_trainer(config=CONFIG, **changes) -> Trainer:
    torch.manual_seed(0)
    return Trainer(DiMR(config), batches, dataclasses.replace(SETTINGS, **changes))


pytest.importorskip("PIL")
pytest.importorskip("tqdm")


@pytest.fixture(scope="module")
def saved():
    """After three of six steps."""
    trainer = new_trainer()
    for _ in range(3):
        trainer.train_step()
    return trainer.state_dict()


@pytest.fixture
def state(saved):
    return copy.deepcopy(saved)


def flattened(tensors) -> torch.Tensor:
    return torch.cat([tensor.detach().flatten() for _, tensor in sorted(tensors.items())])


def weights_and_averages(trainer) -> tuple[torch.Tensor, torch.Tensor]:
    state = trainer.state_dict()
    return flattened(state["model"]), flattened(state["ema"]["averages"])


def test_the_table_has_every_setting():
    assert CHANGES.keys() | {"compile"} == {field.name for field in dataclasses.fields(TrainingSettings)}


@pytest.mark.parametrize("name", CHANGES)
def test_every_setting_may_change_and_takes_effect(name, state):
    changed, same = new_trainer(**{name: CHANGES[name]}), new_trainer()
    for trainer in (changed, same):
        trainer.load_state_dict(copy.deepcopy(state))
        assert trainer.step == 3
        trainer.train_step()
    assert torch.equal(changed.losses[:3], same.losses[:3])
    assert changed.losses[3].isfinite().all()
    weights, averages = (
        not torch.equal(*pair) for pair in zip(*map(weights_and_averages, (changed, same)), strict=True)
    )
    rounding_only = name in ("batch_size", "checkpointing")  # this source of batches has a size of its own
    assert weights == (not rounding_only and name not in ("ema_decay", "ema_ramp"))
    assert averages == (not rounding_only)


def test_moments_follow_their_parameters_into_other_groups(state):
    same, other = new_trainer(), new_trainer(decaying="all but gates")
    for trainer in (same, other):
        trainer.load_state_dict(state)
    for (name, p), q in zip(same.model.named_parameters(), other.model.parameters(), strict=True):
        assert torch.equal(same.optimizer.state[p]["exp_avg"], other.optimizer.state[q]["exp_avg"]), name
    back = new_trainer()
    back.load_state_dict({**other.state_dict(), "generator": state["generator"]})
    assert torch.equal(flattened(back.state_dict()["optimizer"]["state"][0]), flattened(state["optimizer"]["state"][0]))


def test_the_optimizer_takes_the_new_decay_and_betas(state):
    trainer = new_trainer(weight_decay=0.5, betas=(0.5, 0.6))
    trainer.load_state_dict(state)
    assert [group["weight_decay"] for group in trainer.optimizer.param_groups] == [0.5, 0.0]
    assert [group["betas"] for group in trainer.optimizer.param_groups] == [(0.5, 0.6)] * 2


def test_another_seed_draws_other_noise_from_its_own_start(state):
    trainer = new_trainer(seed=3)
    trainer.load_state_dict(state)
    assert torch.equal(trainer.generator.get_state(), torch.Generator().manual_seed(3 + 3).get_state())


def test_goes_on_from_another_kind_of_device(state):
    """Whose generator's state means nothing here, so that the noise is another."""
    trainer, same = new_trainer(), new_trainer()
    trainer.load_state_dict({**copy.deepcopy(state), "device": "cuda", "generator": torch.zeros(16, dtype=torch.uint8)})
    same.load_state_dict(state)
    assert torch.equal(trainer.generator.get_state(), torch.Generator().manual_seed(0 + 3).get_state())
    assert torch.equal(*map(flattened, (trainer.model.state_dict(), same.model.state_dict())))
    trainer.train_step()
    assert trainer.losses[3].isfinite().all()


def test_what_makes_the_state_useless_is_refused_whole(state):
    wider = dataclasses.replace(CONFIG, dims=(32, 8), num_classes=4)
    with pytest.raises(CheckpointError) as caught:
        new_trainer(wider, steps=2).load_state_dict(state)
    assert str(caught.value) == (
        "the saved run has model.dims = (16, 8), this one (32, 8); "
        "model.num_classes = 3, this one 4; done 3 steps, this one ends at training.steps = 2"
    )


def test_history(tmp_path):
    first, second = {"training": {"steps": 5, "seed": 0}}, {"training": {"steps": 9, "seed": 0}, "data": {"split": "a"}}
    changed = {"training.steps": [5, 9], "data.split": [None, "a"]}
    assert differences(first, second) == changed
    start = [{"step": 0, "changed": {}, "recipe": first}]
    assert continued(start, 3, first, first) == start
    after = [*start, {"step": 3, "changed": changed, "recipe": second}]
    assert continued(start, 3, first, second) == after
    assert continued([], 3, first, second) == after  # a run from before there were histories
    write_json(tmp_path / "history.json", after)
    # A run that goes on from step 3 replaces the entry that begins there: none of its steps are left.
    assert [len(read_history(tmp_path / "history.json", step)) for step in (1, 3, 4)] == [1, 1, 2]


def test_latents_of_another_autoencoder_are_told_apart():
    def kind(**autoencoder):
        scale = {"factor": 2.0, "shift": 0.0}
        settings = {"autoencoder": {"kind": "AutoencoderTiny", "scale": scale, **autoencoder}}
        return LatentIndex(None, settings, 3, None, (4, 8, 8), 1).kind

    kinds = {
        kind(),
        kind(kind="AutoencoderKL"),
        kind(weights_sha256="ab" * 32),
        kind(scale={"factor": 1.0, "shift": 0}),
    }
    assert len(kinds) == 4
    assert kind(weights_sha256="ab" * 32) == "latents of AutoencoderTiny abababababab scaled by (2.0, 0.0)"


class TestCommand:
    @pytest.fixture
    def train(self, tmp_path):
        recipe = write_recipe(tmp_path)

        def train(output, *more, **settings) -> int:
            words = [word for key, value in settings.items() for word in ("--set", f"{key.replace('__', '.')}={value}")]
            return main(["train", str(recipe), "--output", str(output), "--device", "cpu", *words, *map(str, more)])

        return train

    def test_a_finished_run_is_extended(self, train, tmp_path, caplog):
        constant = {"training__learning_rate_schedule": "constant"}
        whole, run = tmp_path / "whole", tmp_path / "run"
        assert train(whole, **constant, training__steps=STEPS + 4) == 0
        assert train(run, **constant) == 0
        assert train(run, "--resume", **constant, training__steps=STEPS + 4) == 0
        assert "training.steps = 16 from here on (it was 12)" in caplog.text
        assert "learning rate goes on" not in caplog.text
        first, second = newest_state(whole), newest_state(run)
        assert second["step"] == STEPS + 4
        assert torch.equal(first["losses"], second["losses"])
        assert torch.equal(flattened(first["model"]), flattened(second["model"]))
        assert first["data"] == second["data"]

    def test_changes_are_logged_and_kept(self, train, tmp_path, caplog):
        run = tmp_path / "run"
        train(run)
        changes = {"training__batch_size": 4, "run__device_batch": 4, "run__keep": 1, "data__flip": "false"}
        assert train(run, "--resume", training__steps=14, training__learning_rate="5e-4", **changes) == 0
        assert "training.learning_rate = 0.0005 from here on (it was 0.001)" in caplog.text
        assert "the learning rate goes on at 3.35e-05, where 0 was due" in caplog.text
        assert newest_state(run)["data"]["consumed"] == 8 * STEPS + 4 * 2
        first, second = json.loads((run / "history.json").read_text())
        assert (first["step"], first["changed"], first["recipe"]["training"]["steps"]) == (0, {}, STEPS)
        assert second["step"] == STEPS
        assert second["changed"] == {
            "training.steps": [12, 14], "training.batch_size": [8, 4], "training.learning_rate": [1e-3, 5e-4],
            "run.device_batch": [8, 4], "run.keep": [3, 1], "data.flip": [True, False],
        }  # fmt: skip
        assert second["recipe"] == json.loads((run / "recipe.json").read_text())
        assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000014.pt"]
        assert train(run, "--resume", training__steps=14, training__learning_rate="5e-4", **changes) == 0
        assert len(json.loads((run / "history.json").read_text())) == 2

    def test_goes_back_to_an_earlier_step(self, train, tmp_path, capsys, caplog):
        run, whole = tmp_path / "run", tmp_path / "whole"
        train(whole)
        train(run)
        train(run, "--resume", training__steps=15, training__seed=7)
        assert train(run, "--resume", "--step", 5) == 2
        assert "checkpoints has no checkpoint of step 5; there are: 9, 12, 15" in capsys.readouterr().err
        assert train(run, "--resume", "--step", 9) == 0
        assert "deleted the checkpoints of steps 12, 15" in caplog.text
        assert torch.equal(newest_state(run)["losses"], newest_state(whole)["losses"])
        assert len(json.loads((run / "history.json").read_text())) == 1
        assert train(run, "--step", 9) == 2
        assert "--step: it says where --resume goes on" in capsys.readouterr().err

    def test_other_data_and_another_model_are_refused(self, train, tmp_path, capsys):
        run = tmp_path / "run"
        train(run)
        fewer = write_pictures(tmp_path / "fewer", per_class=4)
        assert train(run, "--resume", data__path=fewer) == 2
        assert "step 12: the saved run's data has 15 samples, this data has 12" in capsys.readouterr().err
        assert train(run, "--resume", model__num_classes=5, training__steps=9) == 2
        error = capsys.readouterr().err
        assert "model.num_classes = 3, this one 5; done 12 steps, this one ends at training.steps = 9" in error
        assert newest_state(run)["step"] == STEPS

    def test_a_damaged_history_is_named(self, train, tmp_path, capsys):
        train(tmp_path / "run")
        for text in ("{", "[3]", '[{"step": "x", "recipe": {}}]'):
            (tmp_path / "run" / "history.json").write_text(text)
            assert train(tmp_path / "run", "--resume") == 2
            assert "history.json is not the history of a run: " in capsys.readouterr().err


class TestDivergence:
    """With the recipe ``trial``, whose weights are useless after two steps at this learning rate."""

    @pytest.fixture
    def train(self, tmp_path):
        data = write_pictures(tmp_path / "pictures")
        settings = {
            "data.path": data, "training.batch_size": 4, "run.device_batch": 4, "run.sample_every": 0,
            "training.max_gradient_norm": 0, "run.tensorboard": "false",
        }  # fmt: skip

        def train(*more, **changed) -> int:
            every = {**settings, **{f"training.{key}": value for key, value in changed.items()}}
            words = [word for key, value in every.items() for word in ("--set", f"{key}={value}")]
            return main(["train", "trial", "--output", str(tmp_path / "run"), "--device", "cpu", *words, *more])

        return train

    def test_a_state_whose_next_step_diverges_is_not_kept(self, train, tmp_path, capsys, caplog):
        hot = {"steps": 100, "warmup_steps": 100, "learning_rate": "3e6"}
        assert train("--set", "run.save_every=2", **hot) == 2
        folder = tmp_path / "run" / "checkpoints"
        message = (
            f"the gradients of the step after {folder}/step-00000002.pt are not finite: it is now diverged-00000002.pt"
        )
        assert message in caplog.text
        assert [path.name for path in folder.iterdir()] == ["diverged-00000002.pt"]
        assert torch.load(folder / "diverged-00000002.pt", weights_only=True)["step"] == 2
        error = capsys.readouterr().err
        assert (
            "no longer finite at step 3: lower the learning rate; there is no checkpoint yet: --resume starts" in error
        )
        assert not (tmp_path / "run" / "model").exists()
        assert train("--resume", "--set", "run.save_every=2", **{**hot, "learning_rate": "1e-3", "steps": 5}) == 0
        assert newest_state(tmp_path / "run")["step"] == 5
        assert train("--overwrite", "--set", "run.save_every=2", **hot) == 2
        assert [path.name for path in folder.iterdir()] == ["diverged-00000002.pt"]
        assert train("--overwrite", **{**hot, "learning_rate": "1e-3", "steps": 1}) == 0
        assert [path.name for path in folder.iterdir()] == ["step-00000001.pt"]

    def test_the_one_before_is_kept_even_where_only_one_is_wanted(self, train, tmp_path, capsys, caplog):
        hot = {"steps": 100, "warmup_steps": 100, "learning_rate": "3e6"}
        every_step = ("--set", "run.save_every=1", "--set", "run.keep=1")
        assert train(*every_step, **hot) == 2
        good = tmp_path / "run" / "checkpoints" / "step-00000001.pt"
        assert f"the last good checkpoint is {good}: --resume goes on from it with other" in capsys.readouterr().err
        averages = torch.load(good, weights_only=True)["ema"]["averages"]
        from safetensors.torch import load_file

        saved = load_file(tmp_path / "run" / "model" / "model.safetensors")
        assert torch.equal(flattened(saved), flattened(averages))
        assert train("--resume", *every_step, **{**hot, "learning_rate": "1e-3", "steps": 4}) == 0
        assert "training.learning_rate = 0.001 from here on (it was 3000000.0)" in caplog.text
        losses = newest_state(tmp_path / "run")["losses"]
        assert losses.shape == (4, 3)
        assert losses.isfinite().all()
