"""Formulas for bytes, against a count of the tensors that operators read, save and return."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

import dimr_kernels as dk
from benchmarks import test_attention, test_depthwise_conv, test_geglu, test_pixel_shuffle, test_shuffle_norm_add
from benchmarks import test_td_norm as td_norm
from benchmarks.shapes import Image, Tokens
from benchmarks.workload import Workload, as_tuple

CASES = {
    "geglu": (test_geglu, Tokens(2, 3, 8)),
    "td_layer_norm": (td_norm, td_norm.Norm("td_layer_norm", 2, 3, 16)),
    "td_rms_norm": (td_norm, td_norm.Norm("td_rms_norm", 2, 3, 16)),
    "td_layer_norm_residual": (td_norm, td_norm.Norm("td_layer_norm_residual", 2, 3, 16)),
    "td_rms_norm_residual": (td_norm, td_norm.Norm("td_rms_norm_residual", 2, 3, 16)),
    "depthwise_conv7x7": (test_depthwise_conv, test_depthwise_conv.Convolution(7, 1, 3, 8)),
    "depthwise_conv3x3": (test_depthwise_conv, test_depthwise_conv.Convolution(3, 2, 3, 8)),
    "pixel_shuffle_add nhwc": (test_pixel_shuffle, test_pixel_shuffle.Shuffle("nhwc", 2, 3, 8)),
    "pixel_shuffle_add nchw": (test_pixel_shuffle, test_pixel_shuffle.Shuffle("nchw", 2, 3, 8)),
    "shuffle_norm_add": (test_shuffle_norm_add, Image(2, 3, 8)),
    "attention": (test_attention, test_attention.Heads(2, 3, 5, 8)),
}


def distinct_bytes(tensors: list[Tensor]) -> int:
    return sum({t.untyped_storage().data_ptr(): t.nbytes for t in tensors}.values())


def without_statistics(kept: list[Tensor], inputs: dict[str, Tensor]) -> list[Tensor]:
    """Drop tensors of one or two float32 numbers per row (means, maxima), which could also be recomputed."""
    given = {x.untyped_storage().data_ptr() for x in inputs.values()}
    return [x for x in kept if x.dtype != torch.float32 or x.untyped_storage().data_ptr() in given]


@contextmanager
def kept_tensors() -> Iterator[list[Tensor]]:
    """Collect the tensors that autograd saves inside the block."""
    kept: list[Tensor] = []

    def keep(x: Tensor) -> Tensor:
        kept.append(x)
        return x

    with saved_tensors_hooks(keep, lambda x: x):
        yield kept


@pytest.fixture(params=CASES)
def workload(request) -> Workload:
    module, shape = CASES[request.param]
    built = module.workload(shape, torch.float16, torch.device("cpu"))
    assert built.operator == request.param.split()[0]
    return built


def test_forward(workload):
    inputs = workload.make_inputs()
    with dk.use_backend("eager"):
        outputs = as_tuple(workload.function(**inputs))
    assert workload.directions["forward"].bytes == distinct_bytes([*inputs.values(), *outputs])
    assert all(out.shape[0] == workload.batch for out in outputs)


def test_gradients(workload, torch_attention_at_any_size):  # plain products save the scores
    """Count the tensors saved for the gradients asked for, the incoming gradients and the outgoing ones."""
    for direction in list(workload.directions.values())[1:]:
        inputs = workload.make_inputs()
        leaves = [inputs[name].requires_grad_() for name in direction.gradients]
        with dk.use_backend(workload.fused), kept_tensors() as kept:
            outputs = as_tuple(workload.function(**inputs))
            cotangents = [torch.randn_like(out) for out in outputs]
            gradients = torch.autograd.grad(outputs, leaves, cotangents)
        kept = without_statistics(kept, inputs)
        coming_in = [x.untyped_storage().data_ptr() for x in cotangents]
        # A sum passes its gradient on unchanged, and one tensor may be the gradient of two inputs.
        written = [x for x in gradients if x.untyped_storage().data_ptr() not in coming_in]
        assert direction.bytes == distinct_bytes(kept) + distinct_bytes(cotangents) + distinct_bytes(written)


def test_operations():
    K, B, S, C = 3, 2, 4, 5
    convolution = test_depthwise_conv.workload(
        test_depthwise_conv.Convolution(K, B, S, C), torch.float32, torch.device("cpu")
    )
    assert convolution.directions["forward"].flops == sum(2 for _ in range(B * S * S * C) for _ in range(K * K))
    attention = test_attention.workload(test_attention.Heads(2, 3, 5, 8), torch.float32, torch.device("cpu"))
    with FlopCounterMode(display=False) as counter, dk.use_backend("eager"):
        q, k, v = (x.requires_grad_() for x in attention.make_inputs().values())
        out = attention.function(q, k, v)
        forward = counter.get_total_flops()
        out.sum().backward()
    assert attention.directions["forward"].flops == forward
    # Flash kernels save no scores: their backward recomputes them.
    assert attention.directions["backward"].flops == counter.get_total_flops() - forward + forward // 2
