from __future__ import annotations

import pytest
import torch

from dimr import CheckpointError, DiMR, DiMRConfig
from dimr.training.checkpoint import load_training_state, save_training_state
from dimr.training.ema import ExponentialMovingAverage
from dimr.training.loop import Trainer, TrainingSettings
from dimr.training.optimizer import learning_rate_at, parameter_groups

CONFIG = DiMRConfig(in_channels=1, input_size=8, dims=(16, 8), layers=(1, 1), num_heads=2, num_classes=3, kernel_size=3)
SETTINGS = TrainingSettings(steps=6, batch_size=4, learning_rate=1e-2, warmup_steps=2, ema_decay=0.5)


def batches(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.randint(3, (4,), generator=generator)
    return labels[:, None, None, None].float().sub(1).expand(4, 1, 8, 8), labels


def new_trainer(settings: TrainingSettings = SETTINGS) -> Trainer:
    torch.manual_seed(0)
    return Trainer(DiMR(CONFIG), batches, settings)


def trained(trainer: Trainer, until: int = SETTINGS.steps) -> Trainer:
    for step in trainer.run():
        if step == until:
            break
    return trainer


def assert_same_state(a: Trainer, b: Trainer) -> None:
    def flat(value, prefix=""):
        if isinstance(value, dict):
            for key, inner in value.items():
                yield from flat(inner, f"{prefix}/{key}")
        elif isinstance(value, list):
            for i, inner in enumerate(value):
                yield from flat(inner, f"{prefix}/{i}")
        else:
            yield prefix, value

    first, second = dict(flat(a.state_dict())), dict(flat(b.state_dict()))
    assert first.keys() == second.keys()
    for name, value in first.items():
        same = torch.equal(value, second[name]) if isinstance(value, torch.Tensor) else value == second[name]
        assert same, name


def test_same_seed_same_run():
    assert_same_state(trained(new_trainer()), trained(new_trainer()))


def test_another_seed_another_run():
    other = TrainingSettings(**{**SETTINGS.to_dict(), "betas": SETTINGS.betas, "seed": 1})
    first, second = trained(new_trainer()), trained(new_trainer(other))
    assert not torch.equal(first.losses, second.losses)


@pytest.mark.parametrize("stop", [1, 3, 5])
def test_resumed_run_equals_uninterrupted(tmp_path, stop):
    whole = trained(new_trainer())
    save_training_state(tmp_path / "state.pt", trained(new_trainer(), until=stop))
    resumed = new_trainer()
    resumed.load_state_dict(load_training_state(tmp_path / "state.pt"))
    assert resumed.step == stop
    assert_same_state(trained(resumed), whole)


def test_learns():
    settings = TrainingSettings(steps=120, batch_size=4, learning_rate=1e-2, warmup_steps=5, ema_decay=0.9)
    losses = trained(new_trainer(settings), until=120).losses
    assert losses.isfinite().all()
    assert losses[-20:, -1].mean() < 0.5 * losses[:5, -1].mean()


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.99])
def test_truncated_state_is_named(tmp_path, keep):
    path = tmp_path / "state.pt"
    save_training_state(path, new_trainer())
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    with pytest.raises(CheckpointError, match=r"state\.pt"):
        load_training_state(path)


def test_foreign_state_is_named(tmp_path):
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=r"other\.pt is not a training state"):
        load_training_state(tmp_path / "other.pt")


def test_failed_write_keeps_the_old_state(tmp_path, monkeypatch):
    path = tmp_path / "state.pt"
    save_training_state(path, trained(new_trainer(), until=2))
    whole = path.read_bytes()

    def fails_half_way(state, target):
        target.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fails_half_way)
    with pytest.raises(CheckpointError, match="cannot be written: disk full"):
        save_training_state(path, new_trainer())
    assert path.read_bytes() == whole
    assert [p.name for p in tmp_path.iterdir()] == ["state.pt"]


def test_average_follows_its_formula():
    linear = torch.nn.Linear(1, 1, bias=False)
    ema = ExponentialMovingAverage(linear, decay=0.5)
    expected = linear.weight.item()
    for n in range(30):
        with torch.no_grad():
            linear.weight.fill_(n)
        ema.update()
        d = min(0.5, (1 + n) / (10 + n))
        expected = d * expected + (1 - d) * n
    with ema.applied():
        assert linear.weight.item() == pytest.approx(expected, rel=1e-5)
    assert linear.weight.item() == 29


def test_learning_rate_rises_then_falls_to_zero():
    rates = [learning_rate_at(step, steps=100, peak=2.0, warmup=10) for step in range(101)]
    assert rates[0] == pytest.approx(0.2)
    assert max(rates) == rates[10] == 2.0
    assert rates[55] == pytest.approx(1.0)
    assert rates[100] == pytest.approx(0.0)


def test_only_matrices_and_kernels_decay():
    model = DiMR(CONFIG)
    decaying, kept = parameter_groups(model, 0.1)
    names = {id(p): name for name, p in model.named_parameters()}
    decaying_names = {names[id(p)] for p in decaying["params"]}
    kept_names = {names[id(p)] for p in kept["params"]}
    assert decaying_names | kept_names == set(names.values())
    assert kept["weight_decay"] == 0
    assert all(name.endswith("weight") and "norm" not in name and "embedding" not in name for name in decaying_names)
    assert {"branches.0.embed.position", "branches.0.class_embedding.weight"} <= kept_names
