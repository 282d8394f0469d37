"""Training with Muon for the hidden layers' matrices: which parameters, steps by hand, saving and resuming."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import dimr
from dimr.training.checkpoint import load_training_state, save_training_state
from dimr.training.loop import Trainer
from dimr.training.optimizer import build_optimizer, set_learning_rate
from dimr.training.recipe import TrainingSettings
from tests.support.small_models import TINY, perturbed_model

SETTINGS = TrainingSettings(
    steps=6, batch_size=4, learning_rate=2e-3, warmup_steps=2, ema_decay=0.9, weight_decay=0.1, optimizer="muon"
)


def batches(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.randint(3, (4,), generator=generator)
    return labels[:, None, None, None].float().sub(1).expand(4, 3, 8, 8), labels


def trainer(**changes: object) -> Trainer:
    return Trainer(perturbed_model(seed=1), batches, dataclasses.replace(SETTINGS, **changes))


def trained(made: Trainer, until: int = SETTINGS.steps) -> Trainer:
    while made.step < until:
        made.train_step()
    return made


def kind_of_each(made: Trainer) -> dict[str, str]:
    state = made.optimizer.state
    kinds = {True: "muon", False: "adamw"}
    return {name: kinds["momentum_buffer" in state[p]] for name, p in made.model.named_parameters()}


def assert_same_weights(a: Trainer, b: Trainer) -> None:
    for (name, p), q in zip(a.model.named_parameters(), b.model.parameters(), strict=True):
        assert torch.equal(p, q), name


def test_which_parameters():
    made = trained(trainer(), 1)
    kinds = kind_of_each(made)
    by_muon = {name for name, kind in kinds.items() if kind == "muon"}
    shapes = {name: p.dim() for name, p in made.model.named_parameters()}
    assert all(shapes[name] == 2 for name in by_muon)
    others = {name for name, dimensions in shapes.items() if dimensions == 2} - by_muon
    assert others == {"branches.0.class_embedding.weight", *(f"branches.{i}.embed.proj.weight" for i in range(3))}
    linear = 32 - 3  # all of the model's but the embeddings
    assert len(by_muon) == linear


@pytest.mark.parametrize("decaying", ["matrices", "all but gates"])
def test_decay_is_that_of_adamw_alone(decaying):
    model = dimr.DiMR(TINY)
    decays = []
    for optimizer in ("adamw", "muon"):
        groups = build_optimizer(model, 1e-3, 0.03, (0.9, 0.99), decaying, optimizer).param_groups
        decays.append({id(p): group["weight_decay"] for group in groups for p in group["params"]})
    assert decays[0] == decays[1]
    assert len(decays[0]) == len(list(model.parameters()))


def test_steps_are_those_of_the_two_optimizers():
    """Compare with Muon and AdamW made by hand, on the same gradients and learning rates."""
    models = [perturbed_model(seed=1) for _ in range(2)]
    made = build_optimizer(models[0], 1.0, 0.1, (0.9, 0.99), optimizer="muon")
    names = dict(models[1].named_parameters())
    by_muon = [name for name, p in names.items() if p.dim() == 2 and "embed" not in name]
    decayed = [name for name, p in names.items() if p.dim() > 2 and "position" not in name]
    decayed += [name for name in names if name.endswith("embed.proj.weight")]
    rest = [name for name in names if name not in (*by_muon, *decayed)]
    by_hand = (
        torch.optim.Muon([names[name] for name in by_muon], weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW([names[name] for name in decayed], betas=(0.9, 0.99), weight_decay=0.1),
        torch.optim.AdamW([names[name] for name in rest], betas=(0.9, 0.99), weight_decay=0.0),
    )
    for rate in (1e-3, 2e-3, 5e-4):
        for p, q in zip(*(model.parameters() for model in models), strict=True):
            p.grad = torch.randn(p.shape)
            q.grad = p.grad.clone()
        for optimizer in (made, *by_hand):
            set_learning_rate(optimizer, rate)
            optimizer.step()
            optimizer.zero_grad()
    for (name, p), q in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6, msg=name)


def test_learns():
    made = trained(trainer(steps=60, learning_rate=1e-2), 60)
    assert made.losses[-10:, -1].mean() < 0.5 * made.losses[:5, -1].mean()


@pytest.mark.parametrize("stop", [1, 4])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, stop):
    whole, first = trained(trainer()), trained(trainer(), stop)
    save_training_state(tmp_path / "state.pt", first)
    resumed = trainer()
    resumed.load_state_dict(load_training_state(tmp_path / "state.pt"))
    assert resumed.step == stop
    assert_same_weights(trained(resumed), whole)
    assert kind_of_each(resumed) == kind_of_each(whole)


def test_states_without_the_setting_are_those_of_adamw():
    state = trained(trainer(optimizer="adamw"), 3).state_dict()
    del state["settings"]["optimizer"]  # as earlier versions wrote it
    resumed = trainer(optimizer="adamw")
    resumed.load_state_dict(state)
    assert_same_weights(trained(resumed), trained(trainer(optimizer="adamw")))


@pytest.mark.parametrize(("before", "after"), [("adamw", "muon"), ("muon", "adamw")])
def test_a_resumed_run_may_change_it(before, after):
    """Parameters that change hands start with new moments; the others keep theirs."""
    saved = trained(trainer(optimizer=before), 3)
    state = saved.state_dict()
    resumed = trainer(optimizer=after)
    resumed.load_state_dict(state)
    names = {id(p): name for name, p in resumed.model.named_parameters()}
    kept = {names[id(p)] for p, values in resumed.optimizer.state.items() if values}
    muon = {name for name, kind in kind_of_each(trained(trainer(), 1)).items() if kind == "muon"}
    assert kept == set(names.values()) - muon
    bias = "branches.0.blocks.0.attn.out.bias"
    moments = [made.optimizer.state[made.model.get_parameter(bias)]["exp_avg"] for made in (saved, resumed)]
    assert torch.equal(*moments)
    trained(resumed)
    assert set(kind_of_each(resumed).values()) == ({"muon", "adamw"} if after == "muon" else {"adamw"})


def test_sharded_parameters_are_refused(monkeypatch):
    monkeypatch.setattr("dimr.training.optimizer.is_plain_tensor", lambda parameter: False)
    with pytest.raises(ValueError, match=r"optimizer 'muon' needs whole matrices.*run\.strategy = 'ddp'"):
        trainer()


def test_unknown_optimizer_is_named():
    with pytest.raises(ValueError, match="optimizer must be one of 'adamw', 'muon'; got 'sgd'"):
        dataclasses.replace(SETTINGS, optimizer="sgd")
