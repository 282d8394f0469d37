from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import dimr_kernels as dk

pytest.importorskip("triton")


class Model(nn.Module):
    """Model with every fused module, and state that a warm-up must not change: batch-norm averages, random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList([dk.TDLayerNorm(8), dk.TDLayerNorm(8), dk.TDRMSNorm(8)])
        self.conv = dk.DepthwiseConv2d(8, kernel_size=3)
        self.mlp = dk.GEGLUMLP(8, 16)
        self.up = dk.PixelShuffleUpsample(8, 4)
        self.other = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5))

    def forward(self, x: Tensor, y: Tensor, t: Tensor) -> Tensor:
        """``x [B, H, W, 8]``, ``y [B, 2H, 2W, 4]``, ``t [B]``."""
        x = self.conv(x, residual=x)
        for norm in self.norms:
            x = x + self.mlp(norm(x, t))
        return self.other(self.up(x, y, t).mean((1, 2)))


@pytest.fixture
def model(device) -> Model:
    return Model().to(device)


def make_inputs(device: torch.device, batch: int = 2) -> tuple[Tensor, ...]:
    shapes = (batch, 2, 2, 8), (batch, 4, 4, 4), (batch,)
    return tuple(torch.randn(shape, device=device) for shape in shapes)


@pytest.mark.parametrize("training", [False, True])
def test_leaves_everything_as_it_was(model, training, device):
    inputs = make_inputs(device)
    model.up.proj.weight.grad = torch.full_like(model.up.proj.weight, 3.0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    cpu_state = torch.get_rng_state()
    with dk.use_backend("triton"):
        report = dk.warmup(model, *inputs, training=training, batch_sizes=(1,))
    assert report.modules == {
        "DepthwiseConv2d": 1, "TDLayerNorm": 3, "GEGLU": 3, "TDRMSNorm": 1, "PixelShuffleUpsample": 1
    }  # fmt: skip
    assert report.skipped == ""
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert torch.equal(torch.get_rng_state(), cpu_state)
    assert model.training
    for name, parameter in model.named_parameters():
        expected = 3.0 if name == "up.proj.weight" else None
        found = parameter.grad if expected is None else parameter.grad.unique().item()
        assert found == expected, name
    assert not any(m._forward_pre_hooks for m in model.modules())


@pytest.mark.slow
@pytest.mark.parametrize("training", [False, True])
def test_every_fused_operator_runs_at_every_batch_size(model, training, device, monkeypatch):
    """Compare the warm-up's launches with those of later calls, forward and backward."""
    from dimr_kernels.launch import Launch, forget_launches

    launched: list[tuple[str, tuple]] = []
    run = Launch.__call__

    def recorded(self, *pointers):
        name = f"{self._kernel.fn.__module__}.{self._kernel.fn.__name__}"
        launched.append((name, self._numbers, tuple(self._options.items())))
        return run(self, *pointers)

    monkeypatch.setattr(Launch, "__call__", recorded)
    with dk.use_backend("triton"):
        forget_launches()
        inputs = [x.requires_grad_(training) for x in make_inputs(device)]
        dk.warmup(model, *inputs, training=training, batch_sizes=(3,))
        warm, launched[:] = set(launched), []
        for batch in (2, 3):
            inputs = [x.requires_grad_(training) for x in make_inputs(device, batch)]
            with torch.set_grad_enabled(training):
                out = model(*inputs)
                if training:
                    out.sum().backward()
    kernels = {name for name, *_ in launched}
    assert len(kernels) == (10 if training else 4)
    missing = {name for name, *rest in set(launched) - warm}
    assert not missing


class Compiling(nn.Module):
    """Stands in for a kernel that Triton compiles at its first call."""

    compiled = False

    def forward(self, x: Tensor) -> Tensor:
        from triton import knobs

        if not self.compiled:
            details = {"fn": SimpleNamespace(name="ops.kernel"), "key": "k"}
            knobs.runtime.jit_cache_hook(**details)
            knobs.runtime.jit_post_compile_hook(**details)
            self.compiled = True
        return x


def test_reports_what_was_compiled_once(device):
    from triton import knobs

    hooks = knobs.runtime.jit_cache_hook, knobs.runtime.jit_post_compile_hook
    compiling = Compiling()
    with dk.use_backend("triton"):
        first, second = (dk.warmup(compiling, torch.zeros(1, device=device)) for _ in range(2))
    assert [name for name, _ in first.kernels] == ["ops.kernel"]
    assert first.kernels[0][1] >= 0
    assert second.kernels == ()
    assert "1 kernels compiled" in str(first)
    assert "ops.kernel" in str(first)
    assert (knobs.runtime.jit_cache_hook, knobs.runtime.jit_post_compile_hook) == hooks


def test_does_nothing_where_nothing_compiles(model):
    inputs = make_inputs(torch.device("cpu"))

    def refuse(*arguments):
        raise AssertionError("the model ran")

    model.register_forward_pre_hook(refuse)
    report = dk.warmup(model.cpu(), *inputs)
    assert report.kernels == ()
    assert "the inputs are on a CPU" in report.skipped
    assert "nothing done" in str(report)
    with dk.use_backend("eager"):
        assert "'eager' is in force" in dk.warmup(model, *inputs).skipped


def test_bad_input_is_named(model):
    with pytest.raises(ValueError, match="inputs must hold a tensor"):
        dk.warmup(model)
    with pytest.raises(ValueError, match=r"batch_sizes must be at least 1, got \[0\]"):
        dk.warmup(model, torch.zeros(1), batch_sizes=(0,))


def test_not_while_a_graph_is_captured(model, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match="CUDA graph is being captured"):
        dk.warmup(model, torch.zeros(1).as_subclass(OnGPU))


class OnGPU(Tensor):
    """Tensor that claims to be on a GPU."""

    device = property(lambda self: torch.device("cuda"))


def test_covers_the_modules_of_the_package():
    """Check that every fused module of the package is listed."""
    from dimr_kernels.warmup import FUSED_MODULES

    plain = {"SelfAttention", "GEGLUMLP"}  # made of listed ones, or without Triton
    modules = {n for n in dk.__all__ if isinstance(getattr(dk, n), type) and issubclass(getattr(dk, n), nn.Module)}
    assert {m.__name__ for m in FUSED_MODULES} == modules - plain
