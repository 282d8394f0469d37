from __future__ import annotations

import pytest
import torch

import dimr
from dimr.diffusion.loss import noise_target


def test_targets_keep_unit_variance():
    noise = torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    for size in (16, 8, 4, 2):
        target = noise_target(noise, size)
        assert target.shape == (64, 3, size, size)
        assert target.std().item() == pytest.approx(1, rel=0.1)
    block = noise[0, 1, 4:8, 8:12]
    assert noise_target(noise, 4)[0, 1, 1, 2].item() == pytest.approx(block.sum().item() / 4, rel=1e-5)


def test_weights():
    """An error of one at one resolution alone."""
    noise = torch.randn(2, 3, 8, 8)
    targets = [noise_target(noise, size) for size in (2, 4, 8)]
    for i, weight in enumerate((1 / 16, 1 / 4, 1.0)):
        outputs = tuple(target + (1.0 if i == j else 0.0) for j, target in enumerate(targets))
        torch.testing.assert_close(dimr.multi_scale_loss(outputs, noise), torch.full((2,), weight))
        torch.testing.assert_close(dimr.branch_losses(outputs, noise)[i], torch.ones(2))


def test_other_weights():
    noise = torch.randn(2, 3, 8, 8)
    outputs = tuple(torch.randn(2, 3, size, size) for size in (2, 4, 8))
    losses = dimr.branch_losses(outputs, noise)
    torch.testing.assert_close(dimr.multi_scale_loss(outputs, noise, (0, 0, 1)), losses[-1])
    torch.testing.assert_close(dimr.multi_scale_loss(outputs, noise, (2, 0.5, 0)), 2 * losses[0] + losses[1] / 2)
    usual = dimr.multi_scale_loss(outputs, noise, (1 / 16, 1 / 4, 1))
    torch.testing.assert_close(usual, dimr.multi_scale_loss(outputs, noise))
    for weights in ((1,), (1, 1, -1), (1, 1, float("nan"))):
        with pytest.raises(ValueError, match="weights must be 3 finite numbers of at least 0, got"):
            dimr.multi_scale_loss(outputs, noise, weights)


def test_low_precision_is_summed_in_float32():
    noise = torch.randn(2, 3, 8, 8)
    loss = dimr.multi_scale_loss((torch.zeros(2, 3, 8, 8, dtype=torch.bfloat16),), noise)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, noise.square().mean(dim=(1, 2, 3)))


@pytest.mark.parametrize(
    ("outputs", "error", "message"),
    [
        ((torch.zeros(2, 3, 3, 3),), ValueError, r"noise must have shape \[B, C, S, S\], S a multiple of 3"),
        ((torch.zeros(2, 4, 8, 8),), ValueError, r"outputs\[0\] must have shape \[2, 3, 8, 8\].*\[2, 4, 8, 8\]"),
        ((torch.zeros(2, 3, 4, 4), torch.zeros(1, 3, 8, 8)), ValueError, r"outputs\[1\] must have shape"),
        ((), TypeError, "outputs must be a non-empty tuple"),
        (torch.zeros(2, 3, 8, 8), TypeError, "outputs must be a non-empty tuple"),
    ],
)
def test_bad_input_is_named(outputs, error, message):
    with pytest.raises(error, match=message):
        dimr.multi_scale_loss(outputs, torch.zeros(2, 3, 8, 8))
