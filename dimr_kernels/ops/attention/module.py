"""Multi-head self-attention as a module."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ... import checks, packing
from ...plain import is_plain_linear
from . import functional as F


class SelfAttention(nn.Module):
    """Projection to queries, keys and values, attention without mask, and the projection back.

    Args:
        dim: width of the input and of the result.
        num_heads: must divide ``dim``.
        qkv_bias, out_bias: whether the projections have one.
        backend: as for :func:`dimr_kernels.functional.attention`.

    Shape: ``[B, L, dim]`` -> ``[B, L, dim]``.

    A head dim that is no multiple of 8 (60, say) would make flash kernels copy queries, keys and values in every call.
    In float16 and bfloat16 on a GPU the weights are padded instead: in every forward while training, or once and for
    all by :meth:`pack_head_dim`. Parameters and state dict keep their unpadded shapes, packed or not.

    Example:
        >>> attention = SelfAttention(60, num_heads=5)  # heads of 12
        >>> x = torch.randn(2, 7, 60)
        >>> y = attention(x)
        >>> torch.allclose(attention.pack_head_dim()(x), y, atol=1e-6)
        True
    """

    def __init__(
        self, dim: int, num_heads: int, qkv_bias: bool = False, out_bias: bool = True, backend: str = "auto"
    ) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"SelfAttention: num_heads must divide dim = {dim}, got {num_heads}")
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.backend = backend
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.out = nn.Linear(dim, dim, bias=out_bias)
        self.register_state_dict_post_hook(_unpad_state)
        self.register_load_state_dict_pre_hook(_pad_state)

    @property
    def is_packed(self) -> bool:
        return self.out.weight.shape[1] != self.num_heads * self.head_dim

    def pack_head_dim(self, multiple: int = 8) -> SelfAttention:
        """Pad the weights in place, once, for inference. An optimizer made before holds the old parameters."""
        if not self.is_packed:
            self._replace(lambda w: packing.pad_qkv(w, self.num_heads, multiple),
                          lambda w: packing.pad_out(w, self.num_heads, multiple))  # fmt: skip
        return self

    def unpack_head_dim(self) -> SelfAttention:
        """Undo :meth:`pack_head_dim`."""
        if self.is_packed:
            self._replace(lambda w: packing.unpad_qkv(w, self.num_heads, self.head_dim),
                          lambda w: packing.unpad_out(w, self.num_heads, self.head_dim))  # fmt: skip
        return self

    @torch.no_grad()
    def _replace(self, qkv: Any, out: Any) -> None:
        for name, parameter in list(self.qkv.named_parameters()):
            setattr(self.qkv, name, nn.Parameter(qkv(parameter), parameter.requires_grad))
        self.out.weight = nn.Parameter(out(self.out.weight), self.out.weight.requires_grad)
        self.qkv.out_features, self.out.in_features = self.qkv.weight.shape[0], self.out.weight.shape[1]

    def forward(self, x: Tensor) -> Tensor:
        checks.check_rank("SelfAttention", "x", x, 3, "[B, L, dim]")
        would_copy = not self.is_packed and packing.flash_would_copy(x, self.head_dim)
        if would_copy and is_plain_linear(self.qkv) and is_plain_linear(self.out):
            qkv_weight, qkv_bias, out_weight = self._padded()
            h = self._attended(nn.functional.linear(x, qkv_weight, qkv_bias))
            return nn.functional.linear(h, out_weight, self.out.bias)
        return self.out(self._attended(self.qkv(x)))

    def _attended(self, qkv: Tensor) -> Tensor:
        """``[B, L, 3 * heads * head_dim]``, padded or not, -> ``[B, L, heads * head_dim]``."""
        # [B, L, 3, heads, head_dim] -> three views [B, heads, L, head_dim]; this order lets the backward join the three
        # gradients in one copy.
        q, k, v = (part.transpose(1, 2) for part in qkv.unflatten(-1, (3, self.num_heads, -1)).unbind(2))
        h = F.attention(q, k, v, self.backend, scale=self.head_dim**-0.5)
        return h.transpose(1, 2).flatten(-2)

    def _padded(self) -> tuple[Tensor, Tensor | None, Tensor]:
        bias = self.qkv.bias
        return (
            packing.pad_qkv(self.qkv.weight, self.num_heads),
            None if bias is None else packing.pad_qkv(bias, self.num_heads),
            packing.pad_out(self.out.weight, self.num_heads),
        )

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, head_dim={self.head_dim}, backend={self.backend!r}"


def _unpad_state(module: SelfAttention, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    if not module.is_packed:
        return
    for name in ("qkv.weight", "qkv.bias"):
        if prefix + name in state:
            state[prefix + name] = packing.unpad_qkv(state[prefix + name], module.num_heads, module.head_dim)
    state[prefix + "out.weight"] = packing.unpad_out(state[prefix + "out.weight"], module.num_heads, module.head_dim)


def _pad_state(module: SelfAttention, state: dict[str, Any], prefix: str, *rest: Any) -> None:
    """Pad an unpadded state that is about to be loaded into a packed module; leave other shapes to be refused."""
    if not module.is_packed:
        return
    width = module.out.weight.shape[1] // module.num_heads
    unpadded = module.num_heads * module.head_dim
    for name, pad, dimension in (
        ("qkv.weight", packing.pad_qkv, 0),
        ("qkv.bias", packing.pad_qkv, 0),
        ("out.weight", packing.pad_out, -1),
    ):
        value = state.get(prefix + name)
        if value is not None and value.shape[dimension] == (3 * unpadded if dimension == 0 else unpadded):
            state[prefix + name] = pad(value, module.num_heads, width)


TRITON_MODULES = ()
