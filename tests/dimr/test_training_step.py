"""One training step: never waits, diverges loudly, and runs in low precision, checkpointed and compiled."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import nn

import dimr_kernels as dk
from dimr import DiMR, DiMRConfig
from dimr.training.checkpoint import load_training_state, save_training_state
from dimr.training.ema import ExponentialMovingAverage
from dimr.training.loop import DivergedError, Trainer, TrainingSettings
from dimr.training.optimizer import build_optimizer
from dimr.training.recipe import PRECISIONS
from tests.support.dispatch import NoWaiting, operators_called
from tests.support.requirements import needs_inductor

CONFIG = DiMRConfig(in_channels=1, input_size=8, dims=(16, 8), layers=(3, 2), num_heads=2, num_classes=3, kernel_size=3)
SETTINGS = TrainingSettings(steps=6, batch_size=4, learning_rate=1e-2, warmup_steps=2, ema_decay=0.5)


def batches(generator):
    labels = torch.randint(3, (4,), generator=generator)
    return labels[:, None, None, None].float().sub(1).expand(4, 1, 8, 8), labels


def new_trainer(source=batches, config=CONFIG, **changes):
    torch.manual_seed(0)
    return Trainer(DiMR(config), source, dataclasses.replace(SETTINGS, **changes))


def losses_of(trainer):
    for _ in trainer.run():
        pass
    return trainer.losses


class TestNothingIsWaitedFor:
    @pytest.mark.parametrize("precision", PRECISIONS)
    @pytest.mark.parametrize("checkpointing", ["none", "selective"])
    def test_in_a_step(self, precision, checkpointing):
        trainer = new_trainer(precision=precision, checkpointing=checkpointing)
        with NoWaiting():
            trainer.train_step()
            trainer.train_step()

    def test_but_where_divergence_is_looked_for(self):
        with NoWaiting(), pytest.raises(AssertionError, match="would wait"):
            new_trainer().check_finite()

    def test_looked_for_every_twentieth_step_and_at_the_end(self, monkeypatch):
        trainer, seen = new_trainer(steps=45), []
        monkeypatch.setattr(trainer, "train_step", lambda: setattr(trainer, "step", trainer.step + 1))
        monkeypatch.setattr(trainer, "check_finite", lambda: seen.append(trainer.step))
        losses_of(trainer)
        assert seen == [20, 40, 45]

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    def test_on_a_gpu(self):
        data, labels = torch.rand(4, 1, 8, 8, device="cuda"), torch.zeros(4, dtype=torch.int64, device="cuda")
        model = DiMR(CONFIG).cuda()
        trainer = Trainer(model, lambda _: (data, labels), dataclasses.replace(SETTINGS, precision="bfloat16"))
        trainer.train_step()  # compiles kernels, builds tables
        torch.cuda.set_sync_debug_mode("error")
        try:
            trainer.train_step()
        finally:
            torch.cuda.set_sync_debug_mode("default")


class TestDivergence:
    def diverging(self, at):
        """A source whose batch at one step is not finite."""
        calls = []

        def source(generator):
            images, labels = batches(generator)
            calls.append(None)
            return images * (math.inf if len(calls) == at else 1), labels

        return source

    def test_is_an_error_at_the_next_look(self):
        trainer = new_trainer(self.diverging(at=3), steps=30)
        with pytest.raises(DivergedError, match="step 3: lower the learning rate") as caught:
            losses_of(trainer)
        assert caught.value.step == 3
        assert trainer.step == 20

    def test_leaves_the_last_good_state_alone(self, tmp_path):
        path = tmp_path / "state.pt"
        trainer = new_trainer(self.diverging(at=3))
        for _ in trainer.run():
            if trainer.step == 2:
                save_training_state(path, trainer)
            if trainer.step == 3:
                break
        with pytest.raises(DivergedError):
            save_training_state(path, trainer)
        resumed = new_trainer()
        resumed.load_state_dict(load_training_state(path))
        assert resumed.step == 2
        assert losses_of(resumed).isfinite().all()


@pytest.mark.slow
def test_low_precision_learns_with_float32_weights_and_averages():
    trainer = new_trainer(precision="bfloat16", steps=120, ema_decay=0.9)
    losses = losses_of(trainer)
    assert losses[-20:, -1].mean() < 0.5 * losses[:5, -1].mean()
    tensors = [*trainer.model.parameters(), *trainer.ema.state_dict()["averages"].values()]
    assert {t.dtype for t in tensors} == {torch.float32}


def test_low_precision_runs_the_model_under_autocast():
    trainer = new_trainer(precision="bfloat16")
    seen = []
    trainer.model.register_forward_hook(lambda model, arguments, outputs: seen.append(outputs[-1].dtype))
    trainer.train_step()
    assert seen == [torch.bfloat16]
    assert trainer.losses.dtype == torch.float32


@pytest.mark.parametrize("checkpointing", ["blocks", "selective"])
def test_checkpointing_leaves_the_run_as_it_is(checkpointing):
    trainer = new_trainer(checkpointing=checkpointing)
    assert {branch.checkpointing for branch in trainer.model.branches} == {checkpointing}
    assert torch.equal(losses_of(trainer), losses_of(new_trainer()))


def test_resumed_run_may_checkpoint_otherwise(tmp_path):
    path = tmp_path / "state.pt"
    whole, first = losses_of(new_trainer()), new_trainer()
    next(first.run())
    save_training_state(path, first)
    resumed = new_trainer(checkpointing="blocks")
    resumed.load_state_dict(load_training_state(path))
    assert torch.equal(losses_of(resumed), whole)


def test_state_from_before_a_setting_existed():
    first = new_trainer()
    state = first.state_dict()
    for name in ("precision", "checkpointing", "compile"):
        del state["settings"][name]
    new_trainer().load_state_dict(state)


@pytest.mark.parametrize(("name", "value"), [("precision", "float16"), ("checkpointing", "some")])
def test_settings_name_what_does_not_fit(name, value):
    with pytest.raises(ValueError, match=f"{name} must be one of .*; got '{value}'"):
        dataclasses.replace(SETTINGS, **{name: value})


class TestOptimizer:
    def test_one_kernel_per_group(self):
        trainer = new_trainer()
        with operators_called() as calls:
            trainer.train_step()
        assert calls["_fused_adamw_"] == 2
        assert calls["_foreach_lerp_"] == 1  # the averages

    def test_where_there_is_no_such_kernel(self):
        with torch.device("meta"):
            model = DiMR(CONFIG)
        assert build_optimizer(model, 1e-3, 0.03, (0.9, 0.99)).defaults["fused"] is False

    def test_gates_do_not_decay(self):
        model = DiMR(CONFIG)
        groups = build_optimizer(model, 1e-3, 0.03, (0.9, 0.99)).param_groups
        decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
        found = {name: decay[id(p)] for name, p in model.named_parameters()}
        assert {value for name, value in found.items() if "gate" in name} == {0.0}
        assert {value for name, value in found.items() if name.endswith("proj.weight")} == {0.03}


def test_average_refuses_parameters_too_narrow_for_it():
    with pytest.raises(TypeError, match=r"weight has torch\.bfloat16"):
        ExponentialMovingAverage(nn.Linear(2, 2, dtype=torch.bfloat16), 0.9)


@pytest.mark.slow
@needs_inductor
@pytest.mark.parametrize(("backend", "branches"), [("aot_eager", 2), ("inductor", 1)])
@pytest.mark.filterwarnings("ignore")
def test_compiled_run(backend, branches, monkeypatch):
    """The whole model is one graph, forward and backward; losses as those of eager code within rounding."""
    config = dataclasses.replace(CONFIG, dims=CONFIG.dims[:branches], layers=(1,) * branches)
    torch._dynamo.reset()
    asked = []
    compiler = torch.compile

    def recorded(model, **options):
        asked.append(options)
        return compiler(model, backend=backend, **options)

    monkeypatch.setattr(torch, "compile", recorded)
    compiled = losses_of(new_trainer(config=config, compile=True, precision="bfloat16", steps=3))
    assert asked == [{"fullgraph": True}]
    torch.testing.assert_close(
        compiled, losses_of(new_trainer(config=config, precision="bfloat16", steps=3)), rtol=2e-2, atol=1e-3
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_compiled_step_with_fused_operators():
    """Forward and backward are one graph each, with the fused operators in them."""
    torch._dynamo.reset()
    config = dataclasses.replace(CONFIG, input_size=4, layers=(1, 1))
    compiled, eager = (new_trainer(small_batches, config, precision="bfloat16") for _ in range(2))
    compiled.model.compile(fullgraph=True, backend="aot_eager")
    with dk.use_backend("triton"), torch._dynamo.config.patch(error_on_recompile=True):
        for trainer in (compiled, eager):
            trainer.train_step()
    assert torch.equal(compiled.losses[0], eager.losses[0])
    for a, b in zip(compiled.model.parameters(), eager.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def small_batches(generator):
    images, labels = batches(generator)
    return images[:2, :, :4, :4], labels[:2]
