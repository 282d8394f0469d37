"""The two forms of the linear layer with GeGLU, and random inputs of them."""

from __future__ import annotations

import torch

from dimr_kernels.functional import geglu_linear


def one_kernel(x, weight, bias=None, **options):
    return geglu_linear(x, weight, bias, form="one_kernel", **options)


def two_kernels(x, weight, bias=None, **options):
    return geglu_linear(x, weight, bias, form="two_kernels", **options)


def layer(M, K, N, dtype, device, bias=True):
    """Make inputs for which the projection has a deviation of 2, where GELU is most curved."""
    inputs = {
        "x": torch.randn(M, K, device=device).to(dtype).requires_grad_(),
        "weight": (2 * K**-0.5 * torch.randn(2 * N, K, device=device)).to(dtype).requires_grad_(),
    }
    if bias:
        inputs["bias"] = torch.randn(2 * N, device=device).to(dtype).requires_grad_()
    return inputs
