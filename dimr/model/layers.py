"""The layers of a DiMR: norms, MLPs, embeddings, blocks, prediction heads, upsampling, branches, recomputation.

Each section has the layers of the paper's models first. Layers that only its ablations use come last, chosen by the
section's ``make_*`` function. All feature maps are channels last.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

import dimr_kernels as dk

from .config import DiMRConfig

MAX_PERIOD = 10_000
FREQUENCIES = 256  # width of the sinusoids before a time MLP (DiT)
CHECKPOINTING_MODES = ("none", "blocks", "selective")


# Norms and MLPs


def make_norm(kind: str, dim: int) -> nn.Module:
    """Make a block's norm over the last dimension (paper, eq. (4) and (5))."""
    return {"td_layer": dk.TDLayerNorm, "td_rms": dk.TDRMSNorm, "layer": LayerNorm}[kind](dim)


def make_mlp(config: DiMRConfig, branch: int) -> nn.Module:
    """Make a block's MLP."""
    kind = {"geglu": dk.GEGLUMLP, "gelu": MLP}[config.mlp]
    return kind(config.dims[branch], config.hidden_dims[branch])


class LayerNorm(nn.LayerNorm):
    """torch's layer norm with the arguments of the time-dependent norms; it ignores the time."""

    def forward(  # type: ignore[override]
        self, x: Tensor, t: Tensor | None = None, residual: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        if residual is None:
            return super().forward(x)
        total = x + residual
        return super().forward(total), total


class MLP(nn.Module):
    """Two linear layers with a GELU between: ``[..., dim]`` -> ``[..., dim]`` through ``hidden_dim``."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, hidden_dim)
        self.out = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.gelu(self.proj(x)))


# Embeddings


class PatchEmbedding(nn.Module):
    """Projected patches plus a learned position: ``[B, C, S, S]`` -> ``[B, S/p, S/p, D]``."""

    def __init__(self, in_channels: int, dim: int, patch_size: int, resolution: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Linear(in_channels * patch_size * patch_size, dim)
        self.position = nn.Parameter(torch.empty(resolution, resolution, dim))

    def forward(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        p = self.patch_size
        patches = x.reshape(B, C, H // p, p, W // p, p).permute(0, 2, 4, 1, 3, 5)  # [B, H/p, W/p, C, p, p]
        h = self.proj(patches.flatten(3))
        return h + self.position.to(h.dtype)  # keeps autocast's dtype


def sinusoids(t: Tensor, width: int) -> Tensor:
    """Embed the timestep in sinusoids: ``t [B] or [1]`` in (-1, 1] -> ``[B or 1, width]`` float32, cosines first."""
    half = width // 2
    frequencies = torch.exp(torch.arange(half, device=t.device, dtype=torch.float32) * (-math.log(MAX_PERIOD) / half))
    angles = (t.float()[:, None] + 1) * 500 * frequencies
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


class TimeToken(nn.Module):
    """Sinusoids of the timestep as a token (U-ViT): ``t [B] or [1]`` -> ``[B or 1, 1, D]``."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.zeros(dim))

    def forward(self, t: Tensor) -> Tensor:
        dtype = self.position.dtype
        return (sinusoids(t, self.position.numel()).to(dtype) + self.position)[:, None]


class TimeMLP(nn.Module):
    """The time embedding of a branch with adaLN-Zero: ``t [B] or [1]`` -> ``[B or 1, D]``."""

    def __init__(self, dim: int, frequencies: int) -> None:
        super().__init__()
        self.proj = nn.Linear(frequencies, dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, t: Tensor) -> Tensor:
        wave = sinusoids(t, self.proj.in_features).to(self.proj.weight.dtype)
        return self.out(F.silu(self.proj(wave)))


# Blocks. The time reaches them through their norms, or through their modulation.


class TransformerBlock(nn.Module):
    """Attention and MLP, each after a norm and with a residual. ``[B, L, D]`` -> ``[B, L, D]``."""

    def __init__(self, config: DiMRConfig, branch: int) -> None:
        super().__init__()
        D = config.dims[branch]
        self.norm1 = make_norm(config.norm, D)
        self.attn = dk.SelfAttention(D, config.num_heads)
        self.norm2 = make_norm(config.norm, D)
        self.mlp = make_mlp(config, branch)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h, x = self.norm2(self.attn(self.norm1(x, t)), t, residual=x)
        return x + self.mlp(h)


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution, then norm and MLP, each with a residual. ``[B, H, W, D]`` -> ``[B, H, W, D]``."""

    def __init__(self, config: DiMRConfig, branch: int) -> None:
        super().__init__()
        D = config.dims[branch]
        self.conv = dk.DepthwiseConv2d(D, config.kernel_size)
        self.norm = make_norm(config.norm, D)
        self.mlp = make_mlp(config, branch)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        x = self.conv(x, residual=x)
        return x + self.mlp(self.norm(x, t))


def make_block(config: DiMRConfig, branch: int) -> nn.Module:
    """Make a block of the given branch."""
    attends = branch == 0 and config.first_branch == "transformer"
    if config.norm == "adaln_zero":
        return (AdaLNZeroTransformerBlock if attends else AdaLNZeroConvNeXtBlock)(config, branch)
    return (TransformerBlock if attends else ConvNeXtBlock)(config, branch)


class Modulation(nn.Module):
    """adaLN-Zero: a scale, a shift and a gate for each of two norms, ``c [B or 1, D]`` -> six ``[B or 1, 1.., D]``.

    All six start at zero, so that the block starts as the identity.

    Args:
        dim: D.
        hidden: add a hidden layer of width D before the projection.
    """

    def __init__(self, dim: int, hidden: bool = False) -> None:
        super().__init__()
        self.hidden = nn.Linear(dim, dim) if hidden else None
        self.proj = nn.Linear(dim, 6 * dim)

    def init_zero(self) -> None:
        nn.init.zeros_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)

    def forward(self, c: Tensor, dimensions: int) -> tuple[Tensor, ...]:
        """``dimensions``: the number of dimensions of the modulated tensor ``[B, ..., D]``."""
        h = F.silu(c)
        if self.hidden is not None:
            h = F.silu(self.hidden(h))
        six = self.proj(h)
        return six.view(six.shape[0], *[1] * (dimensions - 2), six.shape[1]).chunk(6, dim=-1)


def modulate(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return torch.addcmul(x + shift, x, scale)


class AdaLNZeroBlock(nn.Module):
    """Two residual branches, each normalised, modulated and gated by the time: ``x [B, ..., D]``, ``c [B or 1, D]``."""

    def __init__(self, config: DiMRConfig, branch: int) -> None:
        super().__init__()
        D = config.dims[branch]
        self.modulation = Modulation(D, hidden=config.modulation == "mlp")
        self.norm1, self.norm2 = LayerNorm(D), LayerNorm(D)
        self.mlp = make_mlp(config, branch)

    def mix(self, h: Tensor) -> Tensor:
        """Mix positions, by attention or convolution."""
        raise NotImplementedError

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        scale1, shift1, gate1, scale2, shift2, gate2 = self.modulation(c, x.dim())
        x = x + gate1 * self.mix(modulate(self.norm1(x), scale1, shift1))
        return x + gate2 * self.mlp(modulate(self.norm2(x), scale2, shift2))


class AdaLNZeroTransformerBlock(AdaLNZeroBlock):
    def __init__(self, config: DiMRConfig, branch: int) -> None:
        super().__init__(config, branch)
        self.attn = dk.SelfAttention(config.dims[branch], config.num_heads)

    def mix(self, h: Tensor) -> Tensor:
        return self.attn(h)


class AdaLNZeroConvNeXtBlock(AdaLNZeroBlock):
    """Has a norm before its convolution too, unlike :class:`ConvNeXtBlock`, and therefore six vectors."""

    def __init__(self, config: DiMRConfig, branch: int) -> None:
        super().__init__(config, branch)
        self.conv = dk.DepthwiseConv2d(config.dims[branch], config.kernel_size)

    def mix(self, h: Tensor) -> Tensor:
        return self.conv(h)


# Prediction heads


class NoiseHead(nn.Module):
    """Norm and 3x3 convolution: ``[B, H, W, D]`` -> ``[B, C, H, W]``."""

    def __init__(self, norm: nn.Module, dim: int, out_channels: int) -> None:
        super().__init__()
        self.norm = norm
        self.conv = nn.Conv2d(dim, out_channels, kernel_size=3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.conv(self.norm(x, t).permute(0, 3, 1, 2)).contiguous()


def make_head(config: DiMRConfig, index: int) -> nn.Module:
    """Make the layer that predicts the noise at a branch's resolution."""
    D, C, p = config.dims[index], config.in_channels, config.patch_size
    norm = dk.TDLayerNorm(D) if config.has_td_norms else LayerNorm(D)
    return NoiseHead(norm, D, C) if p == 1 else PatchHead(norm, D, C, p)


class PatchHead(nn.Module):
    """Norm, projection to the pixels of each patch, 3x3 convolution (U-ViT).

    ``[B, h, w, D]`` -> ``[B, C, h * p, w * p]``.
    """

    def __init__(self, norm: nn.Module, dim: int, out_channels: int, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.norm = norm
        self.proj = nn.Linear(dim, out_channels * patch_size * patch_size)
        self.conv = nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        pixels = self.proj(self.norm(x, t)).permute(0, 3, 1, 2)
        return self.conv(F.pixel_shuffle(pixels, self.patch_size))


# Upsampling from one branch to the next


def make_upsample(config: DiMRConfig, dim_in: int, dim_out: int) -> nn.Module:
    """Make the upsampling from one branch to the next (paper, eq. (2)), called with ``x, y, t``."""
    kind = dk.PixelShuffleUpsample if config.has_td_norms else PlainUpsample
    upsample = kind(dim_in, dim_out, upscale_factor=2)
    return ConcatUpsample(upsample, dim_out) if config.cascade == "concat" else upsample


class PlainUpsample(nn.Module):
    """:class:`dimr_kernels.PixelShuffleUpsample` with plain layer norms: ``y + LN(shuffle(Linear(LN(x))))``."""

    def __init__(self, dim_in: int, dim_out: int, upscale_factor: int = 2) -> None:
        super().__init__()
        self.upscale_factor = upscale_factor
        self.norm_in = LayerNorm(dim_in)
        self.proj = nn.Linear(dim_in, upscale_factor * upscale_factor * dim_out)
        self.norm_out = LayerNorm(dim_out)

    def forward(self, x: Tensor, y: Tensor, t: Tensor | None = None) -> Tensor:
        """``x [B, H, W, dim_in]``, ``y [B, r*H, r*W, dim_out]`` -> ``[B, r*H, r*W, dim_out]``."""
        B, H, W, _ = x.shape
        r = self.upscale_factor
        h = self.proj(self.norm_in(x)).view(B, H, W, r, r, -1).transpose(2, 3).reshape(B, r * H, r * W, -1)
        return y + self.norm_out(h)


class ConcatUpsample(nn.Module):
    """The cascade by concatenation: ``Linear(cat(y, upsampled x))`` instead of ``y + upsampled x``."""

    def __init__(self, upsample: nn.Module, dim: int) -> None:
        super().__init__()
        self.upsample = upsample
        self.fuse = nn.Linear(2 * dim, dim)

    def forward(self, x: Tensor, y: Tensor, t: Tensor) -> Tensor:
        return self.fuse(torch.cat((y, self.upsample(x, torch.zeros_like(y), t)), dim=-1))


# Branches


class Branch(nn.Module):
    """Base class of the branches: patch embedding, blocks with long skips, prediction (paper, section 3.2).

    Its layers may be on several devices, if hooks bring each one's input there; what comes together is moved here.
    """

    def __init__(self, config: DiMRConfig, index: int) -> None:
        super().__init__()
        D, count = config.dims[index], config.blocks[index]
        self.embed = PatchEmbedding(config.in_channels, D, config.patch_sizes[index], config.resolutions[index])
        self.blocks = nn.ModuleList(make_block(config, index) for _ in range(count))
        self.skips = nn.ModuleList(nn.Linear(2 * D, D) for _ in range(count // 2))
        self.head = make_head(config, index)
        self.time_mlp: TimeMLP | None = None
        if config.norm == "adaln_zero":
            self.time_mlp = TimeMLP(D, D if config.modulation == "mlp" else FREQUENCIES)
        self.has_next = index + 1 < config.num_branches
        self.passes_all_features = config.branch_skips
        self.checkpointing = "none"  # see DiMR.set_checkpointing

    def run_blocks(self, h: Tensor, t: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Run the blocks on ``h [B, ..., D]``.

        The outputs of the first half are long skips into the second half, in reverse order.

        Returns:
            The last block's output, and the features for the next branch: the embedding and the output of every block,
            or the last output alone.
        """
        if self.time_mlp is not None:
            t = self.time_mlp(t)  # [B or 1, D]: adaLN-Zero blocks take the embedding instead of t
        features: list[Tensor] = [h]
        skips: list[Tensor] = []
        half = len(self.skips)
        for i in range(len(self.blocks)):
            h = checkpointed(self.checkpointing, self._block, i, h, skips.pop() if i > half else None, t)
            if i < half:
                skips.append(h)
            if self.has_next:
                features.append(h)
        return h, features if self.passes_all_features else [h]

    def _block(self, i: int, h: Tensor, skip: Tensor | None, t: Tensor) -> Tensor:
        if skip is not None:
            h = dk.functional.apply_linear(
                self.skips[i - len(self.skips) - 1], torch.cat((h, skip.to(h.device)), dim=-1)
            )
        return self.blocks[i](h, t)


class TransformerBranch(Branch):
    """The lowest resolution. Its tokens are the time (only with ``norm="layer"``), the class, then the image."""

    def __init__(self, config: DiMRConfig, index: int) -> None:
        super().__init__(config, index)
        self.class_embedding = nn.Embedding(config.num_embeddings, config.dims[index])
        self.time_token = TimeToken(config.dims[index]) if config.norm == "layer" else None
        self.resolution = config.resolutions[index]

    def forward(self, x: Tensor, t: Tensor, class_labels: Tensor) -> tuple[Tensor, list[Tensor]]:
        """``x [B, C, S, S]``, ``t [B] or [1]``, ``class_labels [B]`` -> prediction and features ``[B, h, w, D]``."""
        patches = self.embed(x).flatten(1, 2)
        tokens = torch.cat((self.class_embedding(class_labels)[:, None].to(patches), patches), dim=1)
        if self.time_token is not None:
            time = self.time_token(t).to(tokens).expand(len(tokens), -1, -1)
            tokens = torch.cat((time, tokens), dim=1)
        h, features = self.run_blocks(tokens, t)
        return self.head(self._to_image(h), t), [self._to_image(f) for f in features]

    def _to_image(self, tokens: Tensor) -> Tensor:
        """Drop the leading class and time tokens: ``[B, 1 or 2 + h * w, D]`` -> ``[B, h, w, D]``, a view."""
        return tokens[:, -(self.resolution**2) :].unflatten(1, (self.resolution, self.resolution))


class ConvNeXtBranch(Branch):
    """A higher resolution: the input's patches plus the upsampled features of the branch below."""

    def __init__(self, config: DiMRConfig, index: int) -> None:
        super().__init__(config, index)
        features = config.blocks[index - 1] + 1 if config.branch_skips else 1
        self.upsample = make_upsample(config, features * config.dims[index - 1], config.dims[index])

    def forward(self, x: Tensor, t: Tensor, lower: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """``x [B, C, S, S]``, ``t [B] or [1]``, ``lower [B, h/2, w/2, D'] each`` -> prediction and features."""
        h = checkpointed(self.checkpointing, self._add_lower, self.embed(x), t, *lower)
        h, features = self.run_blocks(h, t)
        return self.head(h, t), features

    def _add_lower(self, patches: Tensor, t: Tensor, *lower: Tensor) -> Tensor:
        return self.upsample(torch.cat([f.to(patches.device) for f in lower], dim=-1), patches, t)


def make_first_branch(config: DiMRConfig) -> Branch:
    """Make the branch of the lowest resolution."""
    return {"transformer": TransformerBranch, "convnext": ConvNeXtFirstBranch}[config.first_branch](config, 0)


class ConvNeXtFirstBranch(Branch):
    """The lowest resolution without attention; the class is added at every position."""

    def __init__(self, config: DiMRConfig, index: int) -> None:
        super().__init__(config, index)
        self.class_embedding = nn.Embedding(config.num_embeddings, config.dims[index])

    def forward(self, x: Tensor, t: Tensor, class_labels: Tensor) -> tuple[Tensor, list[Tensor]]:
        patches = self.embed(x)
        classes = self.class_embedding(class_labels)[:, None, None].to(patches)
        h, features = self.run_blocks(patches + classes, t)
        return self.head(h, t), features


# Activation checkpointing
#
# "none" keeps everything for the backward. "blocks" keeps the input of each block and recomputes the block. "selective"
# keeps the results of matrix products, attention and convolutions, and recomputes what costs one pass over memory:
# norms, GeGLU products, sums, concatenations and casts.

_KEPT = {
    "aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::convolution",
    "aten::_scaled_dot_product_flash_attention", "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_efficient_attention", "aten::_scaled_dot_product_cudnn_attention",
    "flash_attn::_flash_attn_forward", "dimr_kernels::depthwise_conv2d", "dimr_kernels::geglu_linear",
}  # fmt: skip


def check_checkpointing(mode: str) -> None:
    if mode not in CHECKPOINTING_MODES:
        raise ValueError(f"checkpointing must be one of {', '.join(map(repr, CHECKPOINTING_MODES))}; got {mode!r}")


def checkpointed(mode: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call the function so that its backward recomputes what ``mode`` does not keep.

    The function must not draw random numbers: the state of the generators is not restored.
    """
    if mode == "none" or not torch.is_grad_enabled():
        return function(*arguments)
    options: dict[str, Any] = {}
    if torch.compiler.is_compiling():  # the compiled code is the same both times
        if mode == "selective":
            options["context_fn"] = partial(create_selective_checkpoint_contexts, _checkpoint_policy)
    else:
        options["context_fn"] = partial(_checkpoint_contexts, mode)
    return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False, **options)


def _checkpoint_policy(context: Any, operator: Any, *arguments: Any, **options: Any) -> CheckpointPolicy:
    kept = operator.name().partition(".")[0] in _KEPT
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


def _checkpoint_contexts(mode: str) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """Return the contexts of the forward and of its recomputation.

    The recomputation must choose the forward's backend again: the backward may run outside the forward's
    ``with use_backend(...)`` block, and on a GPU it runs in another thread.
    """
    same = dk.use_backend(dk.current_backend())
    if mode == "blocks":
        return contextlib.nullcontext(), same
    forward, again = create_selective_checkpoint_contexts(_checkpoint_policy)
    return _nested(_without_autocast_cache(), forward), _nested(same, again)


@contextlib.contextmanager
def _nested(outer: AbstractContextManager[Any], inner: AbstractContextManager[Any]) -> Iterator[None]:
    with outer, inner:
        yield


@contextlib.contextmanager
def _without_autocast_cache() -> Iterator[None]:
    """Disable autocast's cache of cast weights.

    A weight that an earlier forward left in the cache would be cast only in the recomputation, and torch refuses to
    run other operators there than in the forward.
    """
    enabled = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(enabled)
