"""Replacement of a DiT's adaLN-Zero by TD-LN fitted to its scale and shift."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dimr_kernels as dk
from dimr_kernels.adoption.ada_norm import AdaNormReport, adopt_ada_norm, output_error

from ...support.dit import CLASSES, WIDTH, DiT, DiTBlock, arguments, random_dit

BLOCKS = ["blocks.0", "blocks.1"]
TIMES = torch.arange(0, 1000, 50)
GATES = 4  # in the model whose modulation has TD-LN's form


class Gates(nn.Module):
    """Embedding whose SiLU is four sigmoids of the timestep, plus a constant that the modulation's bias subtracts."""

    constant = 40.0  # where SiLU is the identity

    def forward(self, timestep: Tensor) -> Tensor:
        t = timestep.double() / 500 - 1
        weights, offsets = torch.tensor([[2.0, -1.0, 6.0, 12.0], [0.0, 1.0, -3.0, 4.0]], dtype=torch.float64)
        s = torch.sigmoid(t[:, None] * weights + offsets)
        return nn.functional.pad(s, (0, WIDTH - GATES)) + self.constant


def of_the_form(model: DiT) -> DiT:
    """Give each channel a scale and shift that are one gate's multiple plus a constant; classes have no effect."""
    model.double()
    model.t_embedder = Gates()
    with torch.no_grad():
        model.y_embedder.embedding_table.weight.zero_()
        for block in model.blocks:
            linear = block.adaLN_modulation[1]
            chosen = nn.functional.one_hot(torch.randint(GATES, (len(linear.weight),)), WIDTH)
            linear.weight.copy_(torch.randn(len(linear.weight), 1) * chosen)
            linear.bias.sub_(Gates.constant * linear.weight.sum(1))
    return model


def adopted(model: DiT, **kwargs: Any) -> AdaNormReport:
    report = adopt_ada_norm(model, **kwargs)
    assert len(report.swapped) == len(model.blocks)
    return report


def modulations(model: DiT, block: int) -> Iterator[tuple[int, Tensor]]:
    """Yield each label and the block's modulation at ``TIMES``, ``[T, 6, D]``, while the whole model runs."""
    seen: list[Tensor] = []
    handle = model.blocks[block].adaLN_modulation.register_forward_hook(lambda module, args, out: seen.append(out))
    x = torch.randn(len(TIMES), 4, arguments()[0].shape[-1])
    for label in range(CLASSES + 1):
        model(x, TIMES, torch.full_like(TIMES, label))
        yield label, seen.pop().detach().double().unflatten(1, (6, -1))
    handle.remove()


@pytest.mark.parametrize("affine", [False, True])
def test_a_modulation_of_the_form_is_recovered(affine):
    model = of_the_form(random_dit(affine=affine))
    for norm in (norm for block in model.blocks for norm in (block.norm1, block.norm2) if affine):
        nn.init.zeros_(norm.bias)  # the scale would multiply it into the shift, as a second gate
    x, t, y = arguments()
    reference = copy.deepcopy(model)
    report = adopted(model)
    assert [row.path for row in report.swapped] == BLOCKS
    assert len(report.fits) == 8
    assert all(fit.max_abs < 1e-5 and fit.unexplained < 1e-9 and fit.class_share < 1e-12 for fit in report.fits)
    torch.testing.assert_close(model(x.double(), t, y), reference(x.double(), t, y), rtol=1e-5, atol=1e-5)
    assert output_error(reference, model, x.double(), t, y).relative < 1e-5


@pytest.mark.parametrize("gate", ["channel", "scalar"])
def test_the_reported_error_is_the_one_seen_while_the_model_runs(gate):
    model = random_dit()
    before = [dict(modulations(model, i)) for i in range(2)]
    report = adopted(model, timesteps=TIMES, labels=range(CLASSES + 1), gate=gate)
    fits = {(fit.path, fit.vector): fit for fit in report.fits}
    assert len(fits) == 8
    t = TIMES.double() / 500 - 1
    for i, name, vector, row in (
        (i, *place) for i in range(2) for place in (
            ("norm1", "shift", 0), ("norm1", "scale", 1), ("norm2", "shift", 3), ("norm2", "scale", 4)
        )
    ):  # fmt: skip
        table = torch.stack([six[:, row] for six in before[i].values()]) + (vector == "scale")  # [classes, T, D]
        norm = model.blocks[i].get_submodule(name)
        ends, gated = (("p1", "p2"), "scale_gate") if vector == "scale" else (("p3", "p4"), "shift_gate")
        s = torch.sigmoid(t[:, None] * getattr(norm, f"{gated}_weight") + getattr(norm, f"{gated}_offset"))
        fitted = s * getattr(norm, ends[0]) + (1 - s) * getattr(norm, ends[1])
        fit = fits[f"blocks.{i}.{name}", vector]
        variance = (table - table.mean((0, 1))).square().mean()
        assert fit.unexplained == pytest.approx(((table - fitted).square().mean() / variance).item(), rel=1e-4)
        assert fit.class_share == pytest.approx((table.var(0, correction=0).mean() / variance).item(), rel=1e-4)
        assert fit.max_abs == pytest.approx((table - fitted).abs().max().item(), rel=1e-4)
        assert fit.rms == pytest.approx((table - fitted).square().mean().sqrt().item(), rel=1e-4)
        assert fit.class_share < fit.unexplained < 1


def test_no_class_and_one_class():
    """Check that with one class nothing varies between classes, and the fit is closer than over all classes."""
    errors = {}
    for labels in ([2], None):
        report = adopted(random_dit(depth=1), labels=labels)
        errors[labels is None] = sum(fit.unexplained for fit in report.fits)
        assert (sum(fit.class_share for fit in report.fits) > 0) == (labels is None)
    assert errors[False] < errors[True]


def test_output_error_is_of_the_outputs():
    model = random_dit()
    reference = copy.deepcopy(model)
    adopted(model)
    x, t, y = arguments()
    error = output_error(reference, model, x, t, y)
    wanted, found = reference(x, t, y), model(x, t, y)
    assert error.max_abs == pytest.approx((wanted - found).abs().max().item(), rel=1e-4)
    assert error.relative == pytest.approx(((wanted - found).norm() / wanted.norm()).item(), rel=1e-4)
    assert 0 < error.relative < 1
    assert output_error(reference, reference, x, t, y).max_abs == 0


def test_parameters_saved_and_names():
    model = random_dit()
    before = sum(p.numel() for p in model.parameters())
    report = adopted(model)
    D = WIDTH
    after = before - 2 * (4 * D * D + 4 * D) + 2 * 2 * 8 * D
    assert report.parameters == (before, after)
    assert sum(p.numel() for p in model.parameters()) == after
    assert f"{before:,} -> {after:,}" in str(report)
    assert "blocks.1.norm2 shift: " in str(report)
    state = model.state_dict()
    assert state["blocks.0.adaLN_modulation.1.weight"].shape == (2 * D, D)
    assert {"blocks.0.norm1.p1", "blocks.0.norm2.shift_gate_offset", "blocks.0.attn.qkv.weight"} <= state.keys()


def test_gates_stay_exactly():
    model = random_dit()
    linear = model.blocks[0].adaLN_modulation[1]
    adopted(model)
    kept = model.blocks[0].adaLN_modulation[1]
    for name in ("weight", "bias"):
        six = getattr(linear, name).unflatten(0, (6, -1))
        assert torch.equal(getattr(kept, name), torch.cat((six[2], six[5])))


def test_undo():
    model = random_dit()
    state, modules = copy.deepcopy(model.state_dict()), dict(model.named_modules())
    classes = {name: type(m) for name, m in modules.items()}
    x, t, y = arguments()
    wanted = model(x, t, y)
    report = adopted(model)
    assert isinstance(model, DiT)
    assert not torch.equal(model(x, t, y), wanted)
    report.undo()
    assert torch.equal(model(x, t, y), wanted)
    assert all(m is modules[name] and type(m) is classes[name] for name, m in model.named_modules())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_twice_the_same_bits():
    model = random_dit()
    other = copy.deepcopy(model)
    reports: list[AdaNormReport] = [adopted(m) for m in (model, other)]
    assert reports[0].fits == reports[1].fits
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())


def test_swapping_draws_no_random_numbers_and_keeps_the_mode():
    model = random_dit().train()
    model.t_embedder.mlp.append(nn.Dropout(0.1))
    state = torch.get_rng_state()
    adopted(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(m.training for m in model.modules())
    model = random_dit().eval()
    adopted(model)
    assert not any(m.training for m in model.modules())


def test_what_was_frozen_stays_frozen():
    model = random_dit().requires_grad_(False)
    model.blocks[1].adaLN_modulation.requires_grad_(True)
    adopted(model)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    norms = {f"{norm}.{name}" for norm in ("norm1", "norm2") for name, _ in model.blocks[0].norm1.named_parameters()}
    assert trained == {f"blocks.1.{name}" for name in norms | {"adaLN_modulation.1.weight", "adaLN_modulation.1.bias"}}


def test_called_by_keyword_with_guidance_and_gradients():
    model = random_dit()
    adopted(model)
    x, t, y = arguments()
    wanted = model(x, t, y)
    assert torch.equal(model(x, y=y, t=t), wanted)
    assert torch.equal(model(y=y, t=t, x=x), wanted)
    torch.testing.assert_close(model.forward_with_cfg(x, t, y, 1.0), wanted)
    model.train()
    model(x, t, y).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_half_precision_models_keep_float32_norms():
    model = random_dit().to(torch.bfloat16)
    reference = copy.deepcopy(model)
    adopted(model)
    assert model.blocks[0].norm1.p1.dtype == torch.float32
    x, t, y = arguments()
    found = model(x.bfloat16(), t, y)
    assert found.dtype == torch.bfloat16
    assert output_error(reference, model, x.bfloat16(), t, y).relative < 1


def test_fused_norms_give_the_same(device):
    model = random_dit().to(device)
    adopted(model)
    x, t, y = arguments(2, device)
    with dk.use_backend("eager"):
        wanted = model(x, t, y)
    with dk.use_backend("triton"):
        torch.testing.assert_close(model(x, t, y), wanted, rtol=1e-4, atol=1e-5)


def test_other_ranges_of_time():
    model = of_the_form(random_dit())
    reference = copy.deepcopy(model)
    embedder = model.t_embedder

    class Unit(nn.Module):
        def forward(self, t: Tensor) -> Tensor:
            return embedder(1000 * t)

    model.t_embedder = Unit()
    report = adopted(model, time_range=(0.0, 1.0))
    assert all(fit.max_abs < 1e-5 for fit in report.fits)
    x, t, y = arguments()
    torch.testing.assert_close(model(x.double(), t / 1000, y), reference(x.double(), t, y), rtol=1e-5, atol=1e-5)


def test_copies_and_pickles():
    model = random_dit()
    adopted(model)
    x, t, y = arguments()
    wanted = model(x, t, y)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x, t, y), wanted)


@pytest.mark.slow
def test_compiled_with_a_full_graph(device):
    model = random_dit().to(device)
    adopted(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x, t, y = arguments(2, device)
    found = compiled(x, t, y)
    torch.testing.assert_close(found, model(x, t, y))
    found.sum().backward()
    assert model.blocks[0].norm1.shift_gate_offset.grad.abs().sum() > 0


class ScaleForShift(nn.Module):
    """Block with the parts of the published one that exchanges scale and shift."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        for name, child in block.named_children():
            self.add_module(name, child)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        scale1, shift1, alpha1, shift2, scale2, alpha2 = self.adaLN_modulation(c)[:, None].chunk(6, dim=-1)
        x = x + alpha1 * self.attn(self.norm1(x) * (1 + scale1) + shift1)
        return x + alpha2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)


class Dropping(ScaleForShift):
    """Published block with dropout on its output."""

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        x = DiTBlock.forward(self, x, c)
        return nn.functional.dropout(x, 0.1, self.training)


class Raising(ScaleForShift):
    def forward(self, x: Tensor, c: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        raise NotImplementedError


def test_what_is_no_such_block_is_left_with_the_reason():
    model = random_dit(depth=7)
    b = model.blocks
    b[0], b[1] = ScaleForShift(b[0]), Raising(b[1])
    b[2].gate = nn.Linear(1, 1)
    b[3].norm2 = b[3].norm1
    b[4].adaLN_modulation[0] = nn.GELU()
    b[5].norm1 = nn.RMSNorm(WIDTH)
    b[6] = Dropping(b[6])
    report = adopt_ada_norm(model)
    assert not report.swapped
    assert not report.notes
    reasons = {row.path: row.why for row in report.left}
    assert reasons.pop("blocks.1").startswith("could not be tried on [2, 4, D]: TypeError: ")
    assert reasons == {
        "blocks.0": "computes something else than adaLN-Zero, attention and MLP",
        "blocks.2": "has other layers: gate",
        "blocks.3": f"its modulation does not give scale, shift and gate of two norms over [{WIDTH}]",
        "blocks.4": "adaLN_modulation is not SiLU and Linear",
        "blocks.5": "of its LayerNorm: it is a torch.nn.modules.normalization.RMSNorm, which may compute something "
        "else than LayerNorm",
        "blocks.6": "computes something else than adaLN-Zero, attention and MLP",
        "final_layer": "has no norm1, attn, norm2, mlp",
    }


def test_a_second_time_nothing_is_left_to_do():
    model = random_dit()
    adopt_ada_norm(model)
    assert {row.why for row in adopt_ada_norm(model).left if row.path != "final_layer"} == {
        "of its LayerNorm: it is a dimr_kernels.adoption.ada_norm.FittedTDLayerNorm, which may compute something "
        "else than LayerNorm"
    }


def test_wrong_arguments_leave_the_model_alone():
    model = random_dit()
    before = dict(model.named_modules())
    for kwargs, message in (
        ({"gate": "row"}, "gate must be one of"),
        ({"time_range": (1.0, 1.0)}, r"time_range must be two rising numbers, got \(1.0, 1.0\)"),
        ({"labels": []}, "labels must be one or more whole numbers"),
        ({"labels": [0.5]}, "labels must be one or more whole numbers"),
        ({"timesteps": [0, 1, 2]}, "at least four different timesteps"),
        ({"conditioning": lambda t, y: torch.full((len(t), WIDTH), torch.nan)}, "must be finite"),
    ):
        with pytest.raises(ValueError, match=message):
            adopt_ada_norm(model, **kwargs)
    assert all(m is before[name] for name, m in model.named_modules())
    with pytest.raises(TypeError, match=r"adopt_ada_norm: model must be an nn\.Module, got list"):
        adopt_ada_norm([model])
    del model.t_embedder
    with pytest.raises(ValueError, match="the DiT has no t_embedder: give conditioning="):
        adopt_ada_norm(model)
    assert type(model) is DiT


def test_a_block_without_its_model_says_what_is_missing():
    model = random_dit()
    adopt_ada_norm(model)
    with pytest.raises(ValueError, match="no timestep: the model's forward keeps it"):
        model.blocks[0](torch.randn(2, 4, WIDTH), torch.randn(2, WIDTH))
    report = adopt_ada_norm(nn.Sequential(random_dit().blocks[0]))
    assert [row.why for row in report.left] == [
        "no model around it is called with the timestep (t, timestep or timesteps) second"
    ]
