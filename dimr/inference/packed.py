"""A model's branches with packed weights, which write every feature where it is read and copy nothing.

Parts whose call does more than their weights say are not packed but called as they are (:class:`Kept`).

A branch keeps its features in one buffer ``[B, N, slots * D]``, with one row per token and one slot of D channels for
the output of the embedding and of every block. A block writes its output into its slot, and the cascade's norm reads
whole rows, so nothing is concatenated. The slots may have any order, because the cascade's parameters are permuted to
match. In the order used here the two inputs of every long skip are neighbours, so ``[h, skip]`` is a view too and the
skip is one matrix product.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dimr_kernels as dk

from ..model.layers import NoiseHead, PatchEmbedding


def slot_order(half: int) -> list[int]:
    """List the feature in each slot, for ``half`` blocks before and after the middle one.

    Feature 0 is the embedding, feature ``k`` the output of block ``k - 1``. Block ``half + j`` (j = 1 .. half) reads
    features ``half + j`` and, as its long skip, ``half + 1 - j``.
    """
    order = [0, 2 * half + 1]
    for j in range(1, half + 1):
        order += [half + j, half + 1 - j]
    return order


def column_order(half: int, dim: int) -> Tensor:
    """Return the channel indices of the cascade ``[(2 * half + 2) * dim]`` in the order of the slots."""
    slots = torch.tensor(slot_order(half))
    return (slots[:, None] * dim + torch.arange(dim)).flatten()


class FeatureBuffer:
    """The features of a branch: uninitialised slots for ``tokens`` tokens of each sample."""

    def __init__(self, batch: int, tokens: int, dim: int, half: int, like: Tensor) -> None:
        order = slot_order(half)
        self.dim = dim
        self.half = half
        self.all = like.new_empty(batch, tokens, len(order) * dim)
        self._start = {feature: slot * dim for slot, feature in enumerate(order)}

    def tokens(self, feature: int) -> Tensor:
        """Return the slot of a feature, a view ``[B, N, D]``."""
        return self.all.narrow(2, self._start[feature], self.dim)

    def with_skip(self, block: int) -> Tensor:
        """Return both inputs of a block after the middle one, a view ``[B * N, 2D]``."""
        return as_rows(self.all.narrow(2, self._start[block], 2 * self.dim))


def as_rows(x: Tensor) -> Tensor:
    """Flatten ``[B, N, D]`` to ``[B * N, D]``, always a view."""
    return x.view(x.shape[0] * x.shape[1], x.shape[2])


# Packed weights


class Packer:
    """Copies parameters, with weights in ``dtype`` and norms' parameters in float32, and counts their bytes."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.bytes = 0

    def weight(self, tensor: Tensor) -> Tensor:
        return self._copy(tensor, self.dtype)

    def exact(self, tensor: Tensor) -> Tensor:
        return self._copy(tensor, torch.float32)

    def _copy(self, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        copy = tensor.detach().to(dtype, copy=True, memory_format=torch.contiguous_format)
        self.bytes += copy.numel() * copy.element_size()
        return copy


class PackedNorm:
    """A time-dependent norm. ``columns`` is the order of its input's channels, if permuted."""

    def __init__(self, norm: Any, pack: Packer, columns: Tensor | None = None) -> None:
        def gate(name: str) -> Tensor | None:
            parameter = getattr(norm, name)
            if parameter is None:
                return None
            reordered = columns is not None and parameter.numel() == columns.numel()
            return pack.exact(parameter[columns] if reordered else parameter)

        self.gates = tuple(gate(name) for name in dk.inference.GATES)
        self.eps = norm.eps
        self.rms = isinstance(norm, dk.TDRMSNorm)

    def __call__(
        self,
        x: Tensor,
        t: Tensor,
        residual: Tensor | None = None,
        total: Tensor | None = None,
        offset: Tensor | None = None,
    ) -> Tensor:
        return dk.inference.td_norm(x, t, self.gates, self.eps, self.rms, residual, total, offset)


class PackedLinear:
    """A linear layer ``x [M, K]`` -> ``[M, N]``."""

    def __init__(self, linear: nn.Linear, pack: Packer, columns: Tensor | None = None) -> None:
        self.weight = pack.weight(linear.weight if columns is None else linear.weight[:, columns])
        self.bias = pack.weight(linear.bias)

    def __call__(self, x: Tensor) -> Tensor:
        return dk.functional.linear(x, self.weight, self.bias)


class PackedMLP:
    """The MLP of a block: ``out += W geglu(h)``, where ``out`` already includes the bias of W.

    The matrix product adds to ``out`` in its epilogue. torch's products cannot add a bias as well, so the operator that
    writes ``out`` first adds it together with its own bias, and the norm in between subtracts it (``offset``), both at
    no cost. Per element, this product and the next norm read and write 2 + 2 numbers; a product with a bias and a norm
    with a residual would read and write 1 + 4.
    """

    def __init__(self, mlp: Any, pack: Packer) -> None:
        self.up = pack.weight(mlp.geglu.proj.weight)
        self.up_bias = pack.weight(mlp.geglu.proj.bias)
        self.approximate, self.gate = mlp.geglu.approximate, mlp.geglu.gate
        self.down = pack.weight(mlp.out.weight)
        self.bias = mlp.out.bias.detach().float()
        self.offset = pack.exact(-self.bias)

    def __call__(self, h: Tensor, out: Tensor) -> None:
        """Add the MLP of ``h [M, D]`` to ``out [M, D]``."""
        gated = dk.functional.geglu_linear(h, self.up, self.up_bias, self.approximate, self.gate)
        dk.inference.linear_add_(out, gated, self.down)


# Blocks: seven and four launches, each of which writes where its result is read
#
# ``x`` is the block's input and ``out`` its slot, both ``[B, N, D]`` with any row stride. Per element of the residual
# stream, a transformer block reads and writes 9 numbers (norm 2, projection 1, norm with sum 4, product 2) and a
# ConvNeXt block 6 (convolution 2, norm 2, product 2), besides those inside attention and MLP.


class PackedTransformerBlock:
    """Norm, qkv, attention, projection, norm (adds the residual into ``out``), GeGLU, product added to ``out``."""

    def __init__(self, block: Any, pack: Packer, resolution: int) -> None:
        attn = block.attn
        self.num_heads = attn.num_heads
        self.scale = attn.head_dim**-0.5
        self.norm1, self.norm2 = PackedNorm(block.norm1, pack), PackedNorm(block.norm2, pack)
        qkv, out = attn.qkv.weight, attn.out.weight
        if pack.dtype != torch.float32 and not attn.is_packed:  # flash kernels need it; there are none for float32
            qkv, out = dk.pad_head_dim(qkv, out, self.num_heads)
        self.mlp = PackedMLP(block.mlp, pack)
        self.qkv, self.out = pack.weight(qkv), pack.weight(out)
        self.bias = pack.weight(attn.out.bias.detach().float() + self.mlp.bias)

    def __call__(self, x: Tensor, t: Tensor, out: Tensor) -> None:
        B, N, D = x.shape
        qkv = dk.functional.linear(as_rows(self.norm1(x, t)), self.qkv).view(B, N, 3, self.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # views [B, heads, N, head_dim]
        h = dk.functional.attention(q, k, v, scale=self.scale).transpose(1, 2)  # dense, so its rows are a view
        h = dk.functional.linear(h.reshape(B * N, -1), self.out, self.bias).view(B, N, D)
        h = self.norm2(h, t, residual=x, total=out, offset=self.mlp.offset)
        self.mlp(as_rows(h), as_rows(out))


class PackedConvNeXtBlock:
    """Convolution (adds its residual, into ``out``), norm, GeGLU, product added to ``out``."""

    def __init__(self, block: Any, pack: Packer, resolution: int) -> None:
        self.resolution = resolution
        self.norm = PackedNorm(block.norm, pack)
        self.mlp = PackedMLP(block.mlp, pack)
        C, _, K, _ = block.conv.weight.shape
        taps = pack.weight(block.conv.weight.reshape(C, K * K).t())  # [K * K, C], the order in memory
        self.weight = taps.t().unflatten(1, (1, K, K))
        self.bias = pack.weight(block.conv.bias.detach().float() + self.mlp.bias)

    def __call__(self, x: Tensor, t: Tensor, out: Tensor) -> None:
        image = (self.resolution, self.resolution)
        dk.inference.depthwise_conv2d(x.unflatten(1, image), self.weight, self.bias, out.unflatten(1, image))
        self.mlp(as_rows(self.norm(out, t, offset=self.mlp.offset)), as_rows(out))


# Branches: embedding, blocks with long skips, prediction, and the cascade between branches


class PackedEmbedding:
    """Projected patches plus position and bias, written into a slot.

    Patches are columns, ``[C * p * p, tokens]``, the layout of an image with p = 1. For p > 1 they are one small copy,
    of the input's size, a hundredth of a feature's. Position and bias are written first and the product adds to them.
    """

    def __init__(self, embed: PatchEmbedding, pack: Packer) -> None:
        self.patch_size = embed.patch_size
        self.weight = pack.weight(embed.proj.weight.t())  # [C * p * p, D]
        position = embed.position.detach().float() + embed.proj.bias.detach().float()
        self.position = pack.weight(position.flatten(0, 1))  # [tokens, D]

    def __call__(self, x: Tensor, out: Tensor) -> None:
        """Embed ``x [B, C, S, S]`` into ``out [B, tokens, D]``."""
        columns = x if self.patch_size == 1 else F.pixel_unshuffle(x, self.patch_size)
        patches = columns.flatten(2).transpose(1, 2)  # [B, tokens, C * p * p]
        weight = self.weight.expand(x.shape[0], -1, -1)
        torch.baddbmm(self.position, patches, weight, out=out)


class PackedHead:
    """TD layer norm and 3x3 convolution, both channels last, like the result."""

    def __init__(self, head: NoiseHead, pack: Packer) -> None:
        self.norm = PackedNorm(head.norm, pack)
        self.weight = pack.weight(head.conv.weight).contiguous(memory_format=torch.channels_last)
        self.bias = None if head.conv.bias is None else pack.weight(head.conv.bias)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """``x [B, h, w, D]`` -> ``[B, C, h, w]``."""
        return F.conv2d(self.norm(x, t).permute(0, 3, 1, 2), self.weight, self.bias, padding=1)


class PackedLift:
    """The first part of the cascade to the next branch: TD layer norm over all features, and a projection.

    The parameters are in the order of the buffer's slots. The norm reads the slots in place and writes the only copy.
    """

    def __init__(self, upsample: dk.PixelShuffleUpsample, pack: Packer, half: int, dim: int) -> None:
        columns = column_order(half, dim).to(upsample.proj.weight.device)
        self.norm = PackedNorm(upsample.norm_in, pack, columns)
        self.proj = PackedLinear(upsample.proj, pack, columns)

    def __call__(self, features: Tensor, t: Tensor) -> Tensor:
        """``[B, h, w, slots * D]`` -> ``[B, h, w, 4 * D of the next branch]``."""
        B, h, w, _ = features.shape
        return self.proj(as_rows(self.norm(features, t).flatten(1, 2))).view(B, h, w, -1)


class Kept:
    """A part of the model, called as it is and in the model's dtype: it is the model's own and no copy."""

    def __init__(self, part: Any, model_dtype: torch.dtype, dtype: torch.dtype) -> None:
        self.part = part
        self.model_dtype = model_dtype
        self.dtype = dtype

    def __call__(self, *features: Tensor, given: tuple[Tensor, ...] = ()) -> Tensor:
        """Call the part with ``features``, in its dtype and contiguous, and what is ``given`` as it is."""
        return self.part(*(x.to(self.model_dtype).contiguous() for x in features), *given).to(self.dtype)


class PackedBranch:
    """Base class of the branches.

    Args:
        branch: the branch as plain layers.
        above: the next branch, if any.
        kept: the parts that are not packed, by their names in ``branch``: "embed", "blocks.0", "skips.0", "head",
            "upsample", "class_embedding".
        lifts: False if the next branch's upsampling is kept, and takes the features themselves.
    """

    leading = 0
    """Number of tokens before those of the image."""
    block: Any

    def __init__(
        self, branch: Any, pack: Packer, resolution: int, above: Any, kept: Mapping[str, Kept], lifts: bool
    ) -> None:
        self.resolution = resolution
        self.dim = branch.embed.position.shape[-1]
        self.half = len(branch.skips)
        self.kept = kept
        self.embed = kept.get("embed") or PackedEmbedding(branch.embed, pack)
        self.blocks = [
            kept.get(f"blocks.{i}") or self.block(block, pack, resolution) for i, block in enumerate(branch.blocks)
        ]
        self.skips = [kept.get(f"skips.{i}") or PackedLinear(skip, pack) for i, skip in enumerate(branch.skips)]
        self.head = kept.get("head") or PackedHead(branch.head, pack)
        self.has_next = above is not None
        self.lift = PackedLift(above.upsample, pack, self.half, self.dim) if self.has_next and lifts else None

    @property
    def tokens(self) -> int:
        return self.leading + self.resolution**2

    def __call__(self, x: Tensor, t: Tensor, source: Tensor) -> tuple[Tensor, Tensor | None]:
        """Run the branch on ``x [B, C, S, S]``.

        ``source`` is the class labels in the first branch, else the result of the branch below. Returns the prediction
        and the source of the branch above.
        """
        buffer = FeatureBuffer(x.shape[0], self.tokens, self.dim, self.half, like=x)
        self.begin(x, t, source, buffer.tokens(0))
        for i, block in enumerate(self.blocks):
            h = buffer.tokens(i)
            if i > self.half:
                h = self.with_skip(buffer, i)
            out = buffer.tokens(i + 1)
            if isinstance(block, Kept):
                self.shaped(out).copy_(block(self.shaped(h), given=(t,)))
            else:
                block(h, t, out)
        last = self.image(buffer.tokens(len(self.blocks)))
        prediction = self.head(last, given=(t,)) if isinstance(self.head, Kept) else self.head(last, t)
        return prediction, self.for_next(buffer, t) if self.has_next else None

    def with_skip(self, buffer: FeatureBuffer, i: int) -> Tensor:
        """Join block i's input with its long skip, ``[B, N, D]``."""
        skip, both = self.skips[i - self.half - 1], buffer.with_skip(i)
        if isinstance(skip, Kept):
            tokens = both.unflatten(0, (-1, self.tokens))
            return skip(self.shaped(tokens)).view(-1, self.tokens, self.dim)
        return skip(both).view(-1, self.tokens, self.dim)

    def for_next(self, buffer: FeatureBuffer, t: Tensor) -> Tensor:
        """Compute the source of the branch above: the features in the model's order, if it lifts them itself."""
        if self.lift is not None:
            return self.lift(self.image(buffer.all), t)
        return torch.cat([self.image(buffer.tokens(i)) for i in range(len(self.blocks) + 1)], dim=-1)

    def embed_into(self, x: Tensor, out: Tensor) -> None:
        """Embed ``x [B, C, S, S]`` into ``out [B, N, D]``."""
        if isinstance(self.embed, Kept):
            out.copy_(self.embed(x).flatten(1, 2))
        else:
            self.embed(x, out)

    def begin(self, x: Tensor, t: Tensor, source: Tensor, out: Tensor) -> None:
        """Write the first feature, ``out [B, tokens, D]``."""
        raise NotImplementedError

    def shaped(self, tokens: Tensor) -> Tensor:
        """View ``[B, tokens, D]`` in the shape that the model's blocks take."""
        raise NotImplementedError

    def image(self, x: Tensor) -> Tensor:
        """``[B, tokens, channels]`` -> ``[B, h, w, channels]``, a view."""
        return x[:, self.leading :].unflatten(1, (self.resolution, self.resolution))


class PackedTransformerBranch(PackedBranch):
    leading = 1  # the class
    block = PackedTransformerBlock

    def __init__(self, branch: Any, pack: Packer, *rest: Any) -> None:
        super().__init__(branch, pack, *rest)
        self.classes = self.kept.get("class_embedding") or pack.weight(branch.class_embedding.weight)

    def begin(self, x: Tensor, t: Tensor, source: Tensor, out: Tensor) -> None:
        if isinstance(self.classes, Kept):
            out[:, 0].copy_(self.classes(given=(source,)))
        else:
            torch.index_select(self.classes, 0, source, out=out[:, 0])
        self.embed_into(x, out[:, 1:])

    def shaped(self, tokens: Tensor) -> Tensor:
        return tokens


class PackedConvNeXtBranch(PackedBranch):
    block = PackedConvNeXtBlock

    def __init__(self, branch: Any, pack: Packer, *rest: Any) -> None:
        super().__init__(branch, pack, *rest)
        self.factor = branch.upsample.upscale_factor
        self.upsample = self.kept.get("upsample")
        self.norm = None if self.upsample else PackedNorm(branch.upsample.norm_out, pack)

    def begin(self, x: Tensor, t: Tensor, source: Tensor, out: Tensor) -> None:
        self.embed_into(x, out)
        image, norm = self.image(out), self.norm
        if norm is None:
            image.copy_(self.upsample(source, image, given=(t,)))  # type: ignore[misc]
        else:
            dk.inference.pixel_shuffle_td_norm_add_(image, source, t, self.factor, norm.gates, norm.eps)

    def shaped(self, tokens: Tensor) -> Tensor:
        return self.image(tokens)
