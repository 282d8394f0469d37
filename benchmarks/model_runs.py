"""Compared ways to run the whole model.

"published" runs it as the published code does: float32 weights under autocast, a residual stream that autocast leaves
in float32, one call for the conditional rows and one for the unconditional, every block checkpointed in training.
"tidy" is what PyTorch offers without kernels of one's own: weights in the low precision, all rows in one call, nothing
checkpointed. "fused" has this package's operators and nothing else, "engine" is ``dimr.optimize_for_inference``.
"compiled" is torch.compile of the form named before it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dimr
import dimr_kernels as dk
from dimr.training.loop import Trainer, TrainingSettings

Inputs = tuple[Tensor, Tensor, Tensor]


@dataclasses.dataclass(frozen=True)
class Form:
    """One way: the code's origin, the use of torch.compile, and the checkpointing of its training step."""

    name: str
    base: str
    compiled: bool = False
    checkpointing: str = "none"

    @property
    def backend(self) -> str:
        """Return the argument of ``dk.use_backend``: "auto" uses all fused operators that run on this machine."""
        return "eager" if self.base in ("published", "tidy") else "auto"


FORWARDS = (
    Form("published", "published"),
    Form("published compiled", "published", compiled=True),
    Form("tidy", "tidy"),
    Form("tidy compiled", "tidy", compiled=True),
    Form("fused", "fused"),
    Form("fused compiled", "fused", compiled=True),
    Form("engine", "engine"),
)
TRAININGS = (
    Form("published", "published", checkpointing="blocks"),
    Form("published compiled", "published", compiled=True, checkpointing="blocks"),
    Form("tidy", "tidy"),
    Form("tidy compiled", "tidy", compiled=True),
    Form("fused", "fused"),
    Form("fused selective", "fused", checkpointing="selective"),
    Form("fused blocks", "fused", checkpointing="blocks"),
    Form("fused compiled", "fused", compiled=True),
    Form("fused selective compiled", "fused", compiled=True, checkpointing="selective"),
)


class PlainAttention(nn.Module):
    """Attention as a user of PyTorch writes it; this package's own pads odd head dims and chooses the kernel."""

    def __init__(self, attention: dk.SelfAttention) -> None:
        super().__init__()
        self.qkv, self.out, self.num_heads = attention.qkv, attention.out, attention.num_heads

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2))


def make_model(config: dimr.DiMRConfig, form: Form, device: torch.device, compiler: str) -> dimr.DiMR:
    """Make the model in float32, compiled in place if the form is compiled."""
    with torch.device(device):
        model = dimr.DiMR(config)
    if form.backend == "eager":
        for block in model.branches[0].blocks:
            block.attn = PlainAttention(block.attn)
    if form.base == "published":
        for branch in model.branches:
            branch.embed.register_forward_hook(lambda module, arguments, h: h.float())
    if form.compiled:
        model.compile(fullgraph=True, dynamic=False, backend=compiler)
    return model


def make_inputs(config: dimr.DiMRConfig, rows: int, device: torch.device) -> Inputs:
    x = torch.randn(rows, config.in_channels, config.input_size, config.input_size, device=device)
    return x, torch.rand(rows, device=device) * 999 + 1, torch.randint(config.num_classes, (rows,), device=device)


def forward_of(
    config: dimr.DiMRConfig, form: Form, device: torch.device, dtype: torch.dtype, compiler: str
) -> Callable[[Tensor, Tensor, Tensor], Any]:
    """``call(x, timestep, class_labels)``, x in float32; run it under the form's backend."""
    model = make_model(config, form, device, compiler).eval()
    if form.base == "engine":
        model = dimr.optimize_for_inference(model, dtype, cuda_graph=True)
    elif form.base != "published":
        model.to(dtype)

    def one_call(x: Tensor, timestep: Tensor, class_labels: Tensor) -> Any:
        with torch.inference_mode():
            return model(x.to(dtype), timestep, class_labels)

    def two_calls(*inputs: Tensor) -> Any:
        with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            parts = min(2, len(inputs[0]))
            return [model(*half) for half in zip(*(i.chunk(parts) for i in inputs), strict=True)]

    return two_calls if form.base == "published" else one_call


class TrainingRun:
    """Training steps of one form on random images; the batch size may change between steps."""

    def __init__(
        self, config: dimr.DiMRConfig, form: Form, device: torch.device, dtype: torch.dtype, compiler: str
    ) -> None:
        settings = TrainingSettings(
            steps=1 << 20, batch_size=1, learning_rate=1e-4, warmup_steps=1, ema_decay=0.9999,
            precision="float32" if dtype == torch.float32 else "bfloat16", checkpointing=form.checkpointing,
        )  # fmt: skip
        self._config, self._device = config, device
        self.batches: Iterator[Inputs] = iter(())
        self.trainer = Trainer(make_model(config, form, device, compiler), self._next, settings)

    def set_batch(self, batch: int) -> None:
        self.batches = itertools.cycle([make_inputs(self._config, batch, self._device) for _ in range(2)])

    def _next(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        images, _, labels = next(self.batches)
        return images, labels

    def step(self) -> None:
        self.trainer.train_step()

    def fits(self, batch: int) -> bool:
        """Return True if a step has enough memory."""
        self.set_batch(batch)
        with contextlib.suppress(torch.OutOfMemoryError):
            self.step()
            return True
        self.trainer.optimizer.zero_grad()
        torch.cuda.empty_cache()
        return False


def largest_batch(fits: Callable[[int], bool], start: int, most: int) -> int:
    """The largest power of two up to ``most`` that fits, found by doubling ``start``, or by halving it; 0 if none."""
    batch = start
    while batch and not fits(batch):
        batch //= 2
    while batch == start < most and fits(2 * start):
        batch = start = 2 * start
    return batch
