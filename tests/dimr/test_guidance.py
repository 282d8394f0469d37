from __future__ import annotations

import math

import pytest
import torch

from dimr import Guidance


def test_constant():
    cond, uncond = torch.randn(2, 3), torch.randn(2, 3)
    torch.testing.assert_close(Guidance("constant", 0.4).combine(cond, uncond, 700.0), cond + 0.4 * (cond - uncond))
    torch.testing.assert_close(Guidance("constant", 0).combine(cond, uncond, 700.0), cond)


def test_power():
    guidance = Guidance("power", 4.0, 2.0)
    assert guidance.strength(1000) == pytest.approx(1)
    assert guidance.strength(1e-9) == pytest.approx(4)
    assert guidance.strength(300) == pytest.approx(3 * (1 - math.cos(math.pi * 0.7**2)) / 2 + 1)
    cond, uncond = torch.randn(2, 3), torch.randn(2, 3)
    wanted = uncond + guidance.strength(300) * (cond - uncond)
    torch.testing.assert_close(guidance.combine(cond, uncond, 300.0), wanted)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("linear", 1.0), ValueError, "kind must be one of 'constant', 'power'; got 'linear'"),
        (("constant", -0.1), ValueError, "scale must be .* got -0.1"),
        (("constant", math.inf), ValueError, "scale must be .* got inf"),
        (("power", 4.0, 0.0), ValueError, "power must be .* got 0.0"),
        (("power", "4"), TypeError, "scale must be a number, got '4'"),
    ],
)
def test_bad_fields_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        Guidance(*arguments)
