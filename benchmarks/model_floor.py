"""Lower bound of the time of a model's forward or training step on a machine: its floor.

The model is cut into parts, and every part is one pass as an ideal kernel would make it. A part takes the longest of

- its operations in matrix products and attention over the measured rate of a large matrix product,
- its bytes over the measured rate of a large copy,
- its other operations, counted for the depthwise convolution only, over the rate of float32 fused multiply-adds;

parts follow one another, so the floor is their sum. What counts as moved, in numbers of ``element_size`` bytes for
``T`` rows of width ``D`` (``H`` is the MLP's hidden width; weights are read once in addition):

===================  ==================================================================================================
qkv, out             ``D + 3D`` and, with the residual in the product's epilogue, ``D + D + D``; ``2 T D 4D`` operations
attention            ``3D + D``; ``4 B L^2 D`` operations, the class token's row and column with them
transformer norms    two norms, each read and written once: ``4D``
mlp in               ``D + H``, the gate inside the product; ``2 T D 2H``
mlp out              ``H + D + D`` with the residual in the epilogue; ``2 T H D``
long skips           both sources and the result, no concatenation: ``3D``; ``2 T 2D D``
depthwise            read and written once, residual free: ``2D``; ``2 K^2 D`` operations outside the matrix units
convolution norms    read and written once: ``2D``
cascade product      all features of the branch below (``F``) in, ``4D`` out; ``2 T' F 4D`` for its ``T'`` pixels
cascade norms        the norm of the features ``2F`` per lower pixel, and shuffle, norm and sum in one pass ``3D``
===================  ==================================================================================================

Embeddings, prediction heads and anything that only depends on the timestep are left out: under 1% together.

A training step is three forwards (the backward of every part has twice its operations and moves twice its numbers) plus
the optimizer's traffic per parameter: 28 bytes of AdamW (float32 weight, gradient and two moments read, all but the
gradient written), 12 of the exponential average, 6 to cast the weight to 16 bits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import dimr

from .shapes import tokens

OPTIMIZER_BYTES = 28 + 12 + 6  # per parameter


@dataclasses.dataclass(frozen=True)
class Ceilings:
    """Rates that no kernel exceeds.

    Attributes:
        copy: bytes per second, read plus written.
        matmul: floating-point operations per second of a large matrix product.
        vector: the same of float32 multiply-adds outside of the matrix units; None takes them as free.
    """

    copy: float
    matmul: float
    vector: float | None = None


@dataclasses.dataclass(frozen=True)
class Part:
    """One kind of pass in one branch, made ``count`` times; operations and bytes are of one pass."""

    name: str
    count: int
    bytes: float
    matmul: float = 0.0
    vector: float = 0.0

    def bound(self, ceilings: Ceilings) -> tuple[float, str]:
        """Seconds of all passes, and what they are bound by: "bytes", "matmul" or "vector"."""
        times = [(self.bytes / ceilings.copy, "bytes"), (self.matmul / ceilings.matmul, "matmul")]
        if ceilings.vector is not None:
            times.append((self.vector / ceilings.vector, "vector"))
        seconds, limit = max(times)
        return self.count * seconds, limit


def forward_parts(config: dimr.DiMRConfig, rows: int, element_size: int = 2) -> list[Part]:
    """The parts of a forward of ``rows`` rows, lowest branch first; with guidance an image is two rows."""
    parts = [*_transformer(config, rows), *_mlps(config, rows, 0)]
    for branch in range(1, config.num_branches):
        parts += [*_cascade(config, rows, branch), *_convolutions(config, rows, branch), *_mlps(config, rows, branch)]
    return [dataclasses.replace(part, bytes=part.bytes * element_size) for part in parts]


def forward_floor(config: dimr.DiMRConfig, rows: int, ceilings: Ceilings, element_size: int = 2) -> float:
    """Seconds."""
    return sum(part.bound(ceilings)[0] for part in forward_parts(config, rows, element_size))


def training_floor(config: dimr.DiMRConfig, rows: int, ceilings: Ceilings, element_size: int = 2) -> float:
    """Seconds of a step: forward, backward, AdamW and exponential average."""
    optimizer = OPTIMIZER_BYTES * dimr.count_parameters(config) / ceilings.copy
    return 3 * forward_floor(config, rows, ceilings, element_size) + optimizer


def by_name(parts: list[Part], ceilings: Ceilings) -> dict[str, float]:
    """Name of a part -> seconds, all branches together."""
    seconds: dict[str, float] = {}
    for part in parts:
        seconds[part.name] = seconds.get(part.name, 0.0) + part.bound(ceilings)[0]
    return seconds


def _product(name: str, count: int, T: int, inner: int, outer: int, moved: float) -> Part:
    """``[T, inner] @ [inner, outer]``; ``moved`` numbers of activations."""
    return Part(name, count, bytes=moved + inner * outer, matmul=2.0 * T * inner * outer)


def _transformer(config: dimr.DiMRConfig, rows: int) -> Iterator[Part]:
    D, L, blocks = config.dims[0], tokens(config, 0), config.blocks[0]
    T = rows * L
    yield _product("qkv, out", blocks, T, D, 3 * D, 4 * T * D)
    yield _product("qkv, out", blocks, T, D, D, 3 * T * D)
    yield Part("attention", blocks, bytes=4 * T * D, matmul=4.0 * T * L * D)
    yield Part("transformer norms", 2 * blocks, bytes=2 * T * D)


def _convolutions(config: dimr.DiMRConfig, rows: int, branch: int) -> Iterator[Part]:
    D, blocks = config.dims[branch], config.blocks[branch]
    T = rows * tokens(config, branch)
    yield Part("depthwise", blocks, bytes=2 * T * D, vector=2.0 * config.kernel_size**2 * T * D)
    yield Part("convolution norms", blocks, bytes=2 * T * D)


def _mlps(config: dimr.DiMRConfig, rows: int, branch: int) -> Iterator[Part]:
    """And the long skips, which both kinds of branch have as well."""
    D, H, blocks = config.dims[branch], config.hidden_dims[branch], config.blocks[branch]
    T = rows * tokens(config, branch)
    yield _product("mlp in", blocks, T, D, 2 * H, T * (D + H))
    yield _product("mlp out", blocks, T, H, D, T * (H + 2 * D))
    yield _product("long skips", blocks // 2, T, 2 * D, D, 3 * T * D)


def _cascade(config: dimr.DiMRConfig, rows: int, branch: int) -> Iterator[Part]:
    D, features = config.dims[branch], config.dims[branch - 1] * (config.blocks[branch - 1] + 1)
    lower, T = rows * config.resolutions[branch - 1] ** 2, rows * tokens(config, branch)
    yield _product("cascade product", 1, lower, features, 4 * D, lower * (features + 4 * D))
    yield Part("cascade norms", 1, bytes=2 * lower * features)
    yield Part("cascade norms", 1, bytes=3 * T * D)
