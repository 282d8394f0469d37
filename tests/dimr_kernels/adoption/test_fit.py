"""Least squares of TD-LN's form to tables over timesteps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dimr_kernels.adoption.fit import LEAST_SPREAD, Gated, fit_gated

T = torch.arange(0, 1000, 10, dtype=torch.float64) / 500 - 1


def drawn(D: int, gate: str) -> Gated:
    G = D if gate == "channel" else 1
    p, q = torch.randn(2, D, dtype=torch.float64)
    weight, offset = torch.randn(2, G, dtype=torch.float64)
    return Gated(p, q, 4 * weight, 2 * offset)


def unexplained(fitted: Gated, t: Tensor, values: Tensor) -> Tensor:
    """Return the residual's share of the variance, ``[D]``."""
    return (fitted(t) - values).square().sum(0) / (values - values.mean(0)).square().sum(0)


@pytest.mark.parametrize("gate", ["channel", "scalar"])
def test_a_table_of_its_own_form_is_recovered(gate):
    values = drawn(32, gate)(T)
    fitted = fit_gated(T, values, gate)
    assert fitted.weight.shape == fitted.offset.shape == ((32,) if gate == "channel" else (1,))
    torch.testing.assert_close(fitted(T), values, rtol=0, atol=1e-5)


def test_the_gate_itself_is_found_where_the_table_shows_it():
    truth = Gated(*torch.tensor([[2.0, -1.0], [0.5, 1.0], [3.0, 9.0], [-1.0, 2.0]], dtype=torch.float64))
    fitted = fit_gated(T, truth(T))
    for found, wanted in zip(vars(fitted).values(), vars(truth).values(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("gate", ["channel", "scalar"])
def test_no_other_gate_fits_better(gate):
    """Compare with the closed-form solution for many gates, on smooth tables that do not have the form."""
    powers = torch.stack([(k * T + k).sin() for k in (1, 2, 3, 5)], dim=1)
    values = powers @ torch.randn(4, 12, dtype=torch.float64)
    fitted = fit_gated(T, values, gate)
    shared = (fitted(T) - values).square().sum(0)
    best = torch.full_like(shared, torch.inf)
    total = torch.inf
    for slope in torch.logspace(-0.3, 2, 60, dtype=torch.float64):
        for centre in torch.linspace(-1.5, 1.5, 61, dtype=torch.float64):
            s = torch.sigmoid(slope * (T - centre))
            if s.std() < LEAST_SPREAD:
                continue
            basis = torch.stack((s, 1 - s), dim=1)
            left = (values - basis @ torch.linalg.lstsq(basis, values).solution).square().sum(0)
            best = torch.minimum(best, left)
            total = min(total, left.sum().item())
    if gate == "channel":
        assert (shared <= best * (1 + 1e-9)).all()
    else:
        assert shared.sum() <= total * (1 + 1e-9)


def test_the_ends_are_the_closed_solution():
    values = torch.randn(len(T), 3, dtype=torch.float64)
    fitted = fit_gated(T, values)
    for i in range(3):
        s = torch.sigmoid(T * fitted.weight[i] + fitted.offset[i])
        ends = torch.linalg.lstsq(torch.stack((s, 1 - s), dim=1), values[:, i : i + 1]).solution[:, 0]
        torch.testing.assert_close(torch.stack((fitted.p[i], fitted.q[i])), ends)


@pytest.mark.parametrize("gate", ["channel", "scalar"])
def test_values_that_do_not_move(gate):
    values = torch.tensor([0.1, -3.0, 0.0], dtype=torch.float64).expand(len(T), 3)
    fitted = fit_gated(T, values, gate)
    torch.testing.assert_close(fitted.p, values[0])
    assert torch.equal(fitted.p, fitted.q)
    assert (fitted.weight == 1).all()
    assert (fitted.offset == 0).all()


def test_a_still_column_beside_a_moving_one():
    values = torch.stack((torch.full_like(T, 7.0), T.square()), dim=1)
    fitted = fit_gated(T, values)
    torch.testing.assert_close(fitted(T)[:, 0], values[:, 0])
    torch.testing.assert_close(fitted(T)[:, 1], fit_gated(T, values[:, 1:])(T)[:, 0])


@pytest.mark.parametrize(
    "shape", [T, T.exp(), T.sign(), (T > 0.9).double()], ids=["line", "exponential", "step", "end"]
)
def test_ends_stay_within_what_float32_holds(shape):
    fitted = fit_gated(T, shape[:, None])
    assert unexplained(fitted, T, shape[:, None]) < 1e-4
    rounded = Gated(*(v.float().double() for v in vars(fitted).values()))
    torch.testing.assert_close(rounded(T), fitted(T), rtol=0, atol=1e-4)
    assert fitted.p.abs().max() < 2 * shape.std() / LEAST_SPREAD


def test_the_unit_of_time_does_not_matter():
    values = drawn(8, "channel")(T)
    thousand = fit_gated((T + 1) * 500, values)
    torch.testing.assert_close(thousand((T + 1) * 500), fit_gated(T, values)(T), rtol=0, atol=1e-9)


def test_twice_the_same_bits():
    values = torch.randn(len(T), 6)
    first, second = (fit_gated(T, values) for _ in range(2))
    for a, b in zip(vars(first).values(), vars(second).values(), strict=True):
        assert torch.equal(a, b)


def test_wrong_arguments():
    values = torch.zeros(len(T), 2)
    with pytest.raises(ValueError, match="gate must be one of 'channel', 'scalar'; got 'row'"):
        fit_gated(T, values, "row")
    with pytest.raises(ValueError, match=r"values \[T, D\], got \[100\] and \[99, 2\]"):
        fit_gated(T, values[1:])
    with pytest.raises(ValueError, match="must be finite"):
        fit_gated(T, values.index_fill(0, torch.tensor([3]), torch.nan))
    with pytest.raises(ValueError, match="at least four different timesteps, got 3"):
        fit_gated(torch.tensor([0.0, 0.0, 1.0, 2.0]), values[:4])
