"""Weights in the form in which the engine's products and kernels read them, made once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import dimr_kernels as dk


class Packer:
    """Makes copies that share no memory with the model: weights in ``dtype``, norms' parameters in float32."""

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
    """A time-dependent norm. ``columns``: the order in which its input has the channels, where it is another one."""

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
    """``x [M, K]`` -> ``[M, N]``, the bias in the product's epilogue."""

    def __init__(self, linear: nn.Linear, pack: Packer, columns: Tensor | None = None) -> None:
        self.weight = pack.weight(linear.weight if columns is None else linear.weight[:, columns])
        self.bias = pack.weight(linear.bias)

    def __call__(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight, self.bias)


class PackedMLP:
    """The second half of a block: ``out += W geglu(h)``, where ``out`` holds the bias of W already.

    The product adds to ``out`` in its epilogue. A bias beside that is more than torch's products take, so whatever
    writes ``out`` before adds it along with a bias of its own, and the norm in between subtracts it (``offset``):
    both for nothing. Per element of the stream that is 2 + 2 numbers for this product and the next norm; a product
    with a bias and a norm with a residual would move 1 + 4.
    """

    def __init__(self, mlp: Any, pack: Packer) -> None:
        self.up = pack.weight(mlp.geglu.proj.weight)
        self.up_bias = pack.weight(mlp.geglu.proj.bias)
        self.approximate, self.gate = mlp.geglu.approximate, mlp.geglu.gate
        self.down = pack.weight(mlp.out.weight).t()
        self.bias = mlp.out.bias.detach().float()
        self.offset = pack.exact(-self.bias)

    def __call__(self, h: Tensor, out: Tensor) -> None:
        """``h, out [M, D]``."""
        gated = dk.functional.geglu_linear(h, self.up, self.up_bias, self.approximate, self.gate)
        out.addmm_(gated, self.down)
