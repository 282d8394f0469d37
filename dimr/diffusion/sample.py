"""Sampling: class labels and noise to images or latents, with classifier-free guidance."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral
from typing import Any, Protocol

import torch
from torch import Tensor

from ..model.config import DiMRConfig
from ..utils import require
from .samplers import Denoise, multistep_scheduler, sample_fast, sample_with_scheduler
from .schedule import NoiseSchedule

METHODS = ("dpm-solver-fast", "dpm-solver-multistep")
GUIDANCE_KINDS = ("constant", "power")


@dataclasses.dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance: moves predictions away from the unconditional one.

    ``Guidance("constant", s)``: ``cond + s (cond - uncond)``.
    ``Guidance("power", s, p)``: ``uncond + k (cond - uncond)`` with ``k`` rising from 1 at t = 1 to ``s`` at t = 0,
    ``k = (s - 1) (1 - cos(pi (1 - t)^p)) / 2 + 1``.

    Example:
        >>> import torch
        >>> Guidance("constant", 0.5).combine(torch.tensor(2.0), torch.tensor(1.0), timestep=500)
        tensor(2.5000)
        >>> [round(Guidance("power", 4.0, 2.0).strength(timestep), 2) for timestep in (1000, 500, 1)]
        [1.0, 1.44, 4.0]
    """

    kind: str
    scale: float
    power: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in GUIDANCE_KINDS:
            raise ValueError(f"kind must be one of {', '.join(map(repr, GUIDANCE_KINDS))}; got {self.kind!r}")
        for name in ("scale", "power"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"{name} must be a number, got {value!r}")
        if not (math.isfinite(self.scale) and self.scale >= 0):
            raise ValueError(f"scale must be a finite number of at least 0, got {self.scale}")
        if not (math.isfinite(self.power) and self.power > 0):
            raise ValueError(f"power must be a finite number above 0, got {self.power}")

    def strength(self, timestep: float) -> float:
        """``k`` of ``uncond + k (cond - uncond)`` at a timestep in (0, 1000]."""
        if self.kind == "constant":
            return 1 + self.scale
        ramp = (1 - math.cos(math.pi * (1 - timestep / 1000) ** self.power)) / 2
        return 1 + (self.scale - 1) * ramp

    def combine(self, conditional: Tensor, unconditional: Tensor, timestep: float) -> Tensor:
        """Return the guided prediction."""
        return unconditional.lerp(conditional, self.strength(timestep))


class NoisePredictor(Protocol):
    """The part of a model's interface that sampling uses."""

    config: DiMRConfig

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def __call__(self, x: Tensor, timestep: Tensor, class_labels: Tensor) -> Sequence[Tensor]: ...


def sample(
    model: NoisePredictor,
    class_labels: Any,
    noise: Any = None,
    steps: int = 50,
    method: Any = "dpm-solver-fast",
    guidance: Guidance | None = None,
    generator: torch.Generator | None = None,
    schedule: NoiseSchedule | None = None,
    progress: bool = False,
) -> Tensor:
    """Draw one image or latent per class label.

    Args:
        model: a :class:`~dimr.DiMR`, an engine from :func:`~dimr.optimize_for_inference`, or another object with the
            same ``config``, ``device``, ``dtype`` and call.
        class_labels: ``[B]`` or ``[B, 1]`` class ids: a tensor, a NumPy array or a sequence. If it is empty, so is
            the result.
        noise: ``[B, C, S, S]``, the initial noise; None draws it from ``generator``, on the generator's device: a
            CPU generator gives the same images on every machine.
        steps: model calls per image; with guidance each is one forward of 2B.
        method: "dpm-solver-fast" (single-step, third order), "dpm-solver-multistep" (diffusers, for few steps), or a
            diffusers scheduler for noise prediction.
        guidance: None for plain conditional sampling.
        generator: source of the noise; None is torch's global one.
        schedule: the noise schedule that the model was trained with; None is the default one.
        progress: show a progress bar (needs tqdm).

    All coefficients are computed on the host, which never waits for the GPU.

    Returns:
        ``[B, C, S, S]`` float32 on the model's device.

    Raises:
        ValueError, TypeError: an argument does not fit.
        ImportError: the method or the progress bar needs a package that is not installed.

    Example:
        >>> import dimr
        >>> model = dimr.create_model("dimr-tiny-3r")
        >>> images = sample(model, [0, 3], steps=2, guidance=dimr.Guidance("constant", 0.4))
        >>> images.shape
        torch.Size([2, 3, 16, 16])
    """
    schedule = schedule or NoiseSchedule()
    if isinstance(steps, bool) or not isinstance(steps, Integral) or steps < 1:
        raise ValueError(f"steps must be an integer of at least 1, got {steps!r}")
    labels = torch.as_tensor(class_labels, device=model.device)
    labels = labels.flatten() if labels.dim() == 2 and labels.shape[1] == 1 else labels
    if labels.dim() != 1:
        raise ValueError(f"class_labels must have shape [B], got {list(labels.shape)}")
    if labels.dtype in (torch.uint8, torch.int8, torch.int16, torch.uint16, torch.uint32):  # NumPy arrays often are
        labels = labels.long()
    if method == "dpm-solver-multistep":
        method = multistep_scheduler(schedule)
    elif method != "dpm-solver-fast" and not hasattr(method, "set_timesteps"):
        raise ValueError(f"method must be one of {', '.join(map(repr, METHODS))} or a scheduler; got {method!r}")
    steps = int(steps)
    x = _initial_noise(model, labels.shape[0], noise, generator)
    if not len(labels):
        return x.clone()
    with torch.inference_mode(), _progress_bar(progress, steps) as advance:
        denoise = guided(model, labels, guidance, advance)
        if method == "dpm-solver-fast":
            x = sample_fast(denoise, x, schedule, steps)
        else:
            x = sample_with_scheduler(denoise, x, method, steps, generator)
    return x.clone()  # an ordinary tensor: inference tensors cannot enter autograd


def guided(
    model: NoisePredictor, class_labels: Tensor, guidance: Guidance | None, advance: Any = lambda: None
) -> Denoise:
    """Make ``denoise(x, timestep)``, which returns the finest prediction in float32, guided in one batch of 2B."""
    if guidance is not None:
        if not isinstance(guidance, Guidance):
            raise TypeError(f'guidance must be a Guidance, such as Guidance("constant", 0.4), got {guidance!r}')
        if not model.config.unconditional_class:
            raise ValueError("guidance needs a model with an unconditional class; this one has none")
        both = torch.cat((class_labels, torch.full_like(class_labels, model.config.num_classes)))

    def denoise(x: Tensor, timestep: float) -> Tensor:
        step = torch.full((1,), timestep, device=model.device)  # a number would be compiled in
        if guidance is None:
            out = model(x.to(model.dtype), step, class_labels)[-1].float()
        else:
            twice = torch.empty((2, *x.shape), dtype=model.dtype, device=x.device).copy_(x)  # casts too
            conditional, unconditional = model(twice.flatten(0, 1), step, both)[-1].float().chunk(2)
            out = guidance.combine(conditional, unconditional, timestep)
        advance()
        return out

    return denoise


def _initial_noise(model: NoisePredictor, batch: int, noise: Any, generator: torch.Generator | None) -> Tensor:
    config = model.config
    shape = (batch, config.in_channels, config.input_size, config.input_size)
    if noise is None:
        device = model.device if generator is None else generator.device
        noise = torch.randn(shape, generator=generator, device=device)
    noise = torch.as_tensor(noise)
    if tuple(noise.shape) != shape or not noise.is_floating_point():
        raise ValueError(f"noise must be floating-point of shape {list(shape)}, got {noise.dtype} {list(noise.shape)}")
    to_gpu = model.device.type == "cuda"  # copying pinned noise does not block
    return noise.to(model.device, torch.float32, non_blocking=to_gpu)


@contextmanager
def _progress_bar(show: bool, steps: int) -> Iterator[Any]:
    if not show:
        yield lambda: None
        return
    tqdm = require("tqdm", "demo", "a progress bar").tqdm
    with tqdm(total=steps, desc="sampling", unit="step") as bar:
        yield bar.update
