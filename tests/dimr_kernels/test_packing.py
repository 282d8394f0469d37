from __future__ import annotations

import copy
from unittest import mock

import pytest
import torch

import dimr_kernels as dk
from dimr_kernels.functional import attention
from dimr_kernels.ops import attention as operator

HEADS, HEAD_DIM, DIM = 2, 60, 120


def weights(dtype=torch.float64):
    qkv = torch.randn(3 * HEADS * HEAD_DIM, DIM, dtype=dtype) / 8
    out = torch.randn(DIM, HEADS * HEAD_DIM, dtype=dtype) / 8
    return qkv.requires_grad_(), out.requires_grad_()


def attend(x, qkv_weight, out_weight):
    qkv = torch.nn.functional.linear(x, qkv_weight).unflatten(-1, (3, HEADS, -1))
    h = attention(*qkv.permute(2, 0, 3, 1, 4), backend="math", scale=HEAD_DIM**-0.5)
    return torch.nn.functional.linear(h.transpose(1, 2).flatten(-2), out_weight)


@pytest.mark.parametrize(("head_dim", "padded"), [(60, 64), (64, 64), (72, 72), (1, 8)])
def test_padded_head_dim(head_dim, padded):
    assert dk.padded_head_dim(head_dim) == padded


def test_padded_weights_compute_the_same():
    qkv, out = weights()
    x = torch.randn(2, 7, DIM, dtype=torch.float64, requires_grad=True)
    wide = dk.pad_head_dim(qkv, out, HEADS)
    assert [tuple(w.shape) for w in wide] == [(3 * HEADS * 64, DIM), (DIM, HEADS * 64)]
    cotangent = torch.randn(2, 7, DIM, dtype=torch.float64)
    expected = attend(x, qkv, out)
    found = attend(x, *wide)
    torch.testing.assert_close(found, expected)
    wanted = torch.autograd.grad(expected, (x, qkv, out), cotangent)
    torch.testing.assert_close(torch.autograd.grad(found, (x, qkv, out), cotangent), wanted)


def test_padding_gets_no_gradient_and_stays_zero():
    wide = [w.detach().requires_grad_() for w in dk.pad_head_dim(*weights(), HEADS)]
    attend(torch.randn(2, 7, DIM, dtype=torch.float64), *wide).square().sum().backward()
    qkv_grad = wide[0].grad.unflatten(0, (3 * HEADS, 64))
    out_grad = wide[1].grad.unflatten(1, (HEADS, 64))
    assert not qkv_grad[:, HEAD_DIM:].any()
    assert not out_grad[:, :, HEAD_DIM:].any()
    assert qkv_grad[:, :HEAD_DIM].any()
    assert out_grad[:, :, :HEAD_DIM].any()


def test_unpadding_is_the_inverse():
    qkv, out = weights()
    found = dk.unpad_head_dim(*dk.pad_head_dim(qkv, out, HEADS, multiple=32), HEADS, HEAD_DIM)
    assert torch.equal(found[0], qkv)
    assert torch.equal(found[1], out)


def test_multiples_are_left_alone():
    qkv, out = torch.randn(3 * 64, 8), torch.randn(8, 64)
    found = dk.pad_head_dim(qkv, out, 1)
    assert found[0] is qkv
    assert found[1] is out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(180, 4), torch.zeros(4, 61), 1), r"3 rows per column.*\[180, 4\].*\[4, 61\]"),
        ((torch.zeros(180, 4), torch.zeros(4, 60), 7), "180 entries, not a multiple of 21"),
        ((torch.zeros(180), torch.zeros(4, 60), 1), "qkv_weight must have 2 dimensions"),
    ],
)
def test_bad_weights_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        dk.pad_head_dim(*arguments)


def test_unpadding_more_than_there_is():
    with pytest.raises(ValueError, match=r"between 1 and 64.*got 65"):
        dk.unpad_head_dim(torch.zeros(192, 4), torch.zeros(4, 64), 1, 65)


def test_only_half_types_on_a_gpu_are_padded():
    def would_copy(device, dtype, head_dim=60):
        x = mock.Mock(device=torch.device(device), dtype=dtype)
        return operator.flash_would_copy(x, head_dim)

    assert would_copy("cuda", torch.bfloat16)
    assert not would_copy("cuda", torch.bfloat16, 72)
    assert not would_copy("cuda", torch.float32)
    assert not would_copy("cpu", torch.bfloat16)


def module(qkv_bias=True):
    return dk.SelfAttention(DIM, HEADS, qkv_bias=qkv_bias).double()


def test_module_matches_torch():
    ours, theirs = module(), torch.nn.MultiheadAttention(DIM, HEADS, batch_first=True).double()
    with torch.no_grad():
        theirs.in_proj_weight.copy_(ours.qkv.weight)
        theirs.in_proj_bias.copy_(ours.qkv.bias)
        theirs.out_proj.load_state_dict(ours.out.state_dict())
    x = torch.randn(2, 5, DIM, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x, x, x)[0])


@pytest.mark.parametrize("qkv_bias", [True, False])
@pytest.mark.parametrize("how", ["packed once", "padded in each forward"])
def test_module_computes_the_same_padded(qkv_bias, how):
    plain = module(qkv_bias)
    x = torch.randn(2, 5, DIM, dtype=torch.float64)
    expected = plain(x)
    names = [name for name, _ in plain.named_parameters()]
    wanted = dict(zip(names, torch.autograd.grad(expected.sum(), list(plain.parameters())), strict=True))
    if how == "packed once":
        plain.pack_head_dim()
        assert plain.is_packed
        torch.testing.assert_close(plain(x), expected)
        return
    with (
        mock.patch.object(operator, "flash_would_copy", return_value=True),
        mock.patch("dimr_kernels.ops.attention.attention", side_effect=attention) as called,
    ):
        found = plain(x)
    assert called.call_args.args[0].shape == (2, HEADS, 5, 64)
    torch.testing.assert_close(found, expected)
    for name, gradient in zip(names, torch.autograd.grad(found.sum(), list(plain.parameters())), strict=True):
        torch.testing.assert_close(gradient, wanted[name])


def test_packed_state_keeps_its_shape():
    plain = torch.nn.Sequential(module())
    before = {name: value.clone() for name, value in plain.state_dict().items()}
    plain[0].pack_head_dim()
    after = plain.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    other = torch.nn.Sequential(module()).state_dict()
    plain = copy.deepcopy(plain)
    plain.load_state_dict(other)
    assert plain[0].is_packed
    plain[0].unpack_head_dim()
    assert not plain[0].is_packed
    assert all(torch.equal(value, other[name]) for name, value in plain.state_dict().items())


def test_packed_module_refuses_other_shapes():
    packed = module().pack_head_dim()
    with pytest.raises(RuntimeError, match=r"size mismatch for qkv\.weight"):
        packed.load_state_dict({**module().state_dict(), "qkv.weight": torch.zeros(30, DIM)})


@pytest.mark.parametrize(("dim", "heads"), [(10, 3), (10, 0)])
def test_heads_that_do_not_divide(dim, heads):
    with pytest.raises(ValueError, match=f"num_heads must divide dim = 10, got {heads}"):
        dk.SelfAttention(dim, heads)


def test_module_refuses_images():
    with pytest.raises(ValueError, match=r"SelfAttention: x must have 3 dimensions \[B, L, dim\]"):
        module()(torch.zeros(1, 2, 2, DIM))


@pytest.mark.parametrize("would_copy", [True, False])
@pytest.mark.parametrize("change", ["hook", "subclass", "forward"])
def test_projections_that_do_more_are_called(change, would_copy):
    """Call projections that are replaced by adapters or have hooks."""

    class Doubling(torch.nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    module = dk.SelfAttention(12, 2).double()
    doubled = copy.deepcopy(module)
    for projection in (doubled.qkv, doubled.out):
        projection.weight.data.mul_(2)
    doubled.out.bias.data.mul_(2)
    for projection in (module.qkv, module.out):
        if change == "hook":
            projection.register_forward_hook(lambda module, arguments, h: 2 * h)
        elif change == "subclass":
            projection.__class__ = Doubling
        else:
            projection.forward = lambda x, plain=projection.forward: 2 * plain(x)
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    with mock.patch.object(operator, "flash_would_copy", return_value=would_copy):
        torch.testing.assert_close(module(x), doubled(x))
