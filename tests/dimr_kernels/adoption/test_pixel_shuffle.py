"""Pixel shuffles that go into a sum: which are proved, which are left, and what is computed then."""

from __future__ import annotations

import copy
import operator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dimr_kernels as dk
from dimr_kernels.adoption import tracing
from dimr_kernels.extension import extension_status
from tests.support.dispatch import operators_called

from .comparing import computed
from .models import Upsample
from .pixel_shuffle_modules import LEFT, PROVED, Plain, SameTwice, Twice


def inputs() -> tuple[Tensor, Tensor]:
    return torch.randn(2, 4, 3, 5), torch.randn(2, 4, 6, 10)


@pytest.mark.parametrize("backend", ["auto", pytest.param("eager", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", PROVED)
def test_proved(kind, backend):
    model = kind()
    original, arguments = copy.deepcopy(model), inputs()
    report = dk.adopt(model)
    assert len(report.swapped) == PROVED[kind], str(report)
    with dk.use_backend(backend):
        torch.testing.assert_close(computed(model, arguments), computed(original, arguments))
    if backend == "auto" and extension_status().loaded:
        with torch.no_grad(), operators_called() as called:
            model(*arguments)
        assert called["pixel_shuffle_add"] == PROVED[kind] + (kind is SameTwice)
        assert called["pixel_shuffle"] == 0
    assert {row.why for row in dk.adopt(model).left if row.path in [s.path for s in report.swapped]} == {
        "already adopted"
    }


@pytest.mark.parametrize("kind", LEFT)
def test_left(kind):
    model = kind()
    before = {name: set(vars(module)) for name, module in model.named_modules()}
    report = dk.adopt(model)
    (row,) = [row for row in report.left if row.path == "shuffle"]
    assert pytest.raises(AssertionError, match=LEFT[kind]).matches(AssertionError(row.why)), row.why
    assert type(model) is kind
    assert {name: set(vars(module)) for name, module in model.named_modules()} == before


def test_hooks_on_the_way_are_respected():
    model = Upsample()
    model.up.register_forward_hook(lambda module, inputs, output: 2 * output)
    (row,) = dk.adopt(model).left
    assert row.why == "a module around it, which its result leaves, has hooks"
    model = Plain()
    model.shuffle.register_forward_pre_hook(lambda module, inputs: None)
    assert "it has hooks" in next(row for row in dk.adopt(model).left if row.path == "shuffle").why


@pytest.mark.parametrize("change", ["hook", "hook above", "other factor", "other layer", "conv", "forward"])
def test_what_is_changed_later_takes_effect(change):
    model, (x, y) = Upsample(), inputs()
    dk.adopt(model)
    if change == "hook":
        model.up[1].register_forward_hook(lambda module, inputs, output: 3 * output)
    elif change == "hook above":
        model.up.register_forward_hook(lambda module, inputs, output: 3 * output)
    elif change == "forward":
        model.up[1].forward = lambda x: 3 * F.pixel_shuffle(x, 2)
    elif change == "other layer":
        model.up[1] = nn.Sequential(nn.PixelShuffle(2), nn.Conv2d(4, 4, 1))
    elif change == "conv":
        model.up[0] = nn.Conv2d(4, 16, 1)
    else:
        model.up = nn.Sequential(nn.Conv2d(4, 36, 1), model.up[1])
        model.up[1].upscale_factor = 3
        y = torch.randn(2, 4, 9, 15)
    torch.testing.assert_close(model(x, y), model.up(x) + model.skip(y))


@pytest.mark.parametrize(
    "other",
    [torch.randn(2, 4, 1, 1), torch.randn(6, 10), torch.randn(2, 4, 6, 10, dtype=torch.float64), 3.0, torch.tensor(2)],
    ids=["broadcast", "fewer dimensions", "float64", "number", "integer"],
)
def test_sums_with_something_else(other):
    """A trace knows no shapes: what the operator does not take is added as before."""
    model = Plain()
    original, x = copy.deepcopy(model), inputs()[0]
    dk.adopt(model)
    found, expected = model(x, other), original(x, other)
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected)
    one, of_original = (m(x[0], torch.zeros(4, 6, 10)) for m in (model, original))
    torch.testing.assert_close(one, of_original)


def test_memory_format_is_kept():
    model, (x, y) = Plain(), inputs()
    original = copy.deepcopy(model)
    dk.adopt(model)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        arguments = [value.contiguous(memory_format=memory_format) for value in (x, y)]
        assert model(*arguments).stride() == original(*arguments).stride()


def test_shared_shuffles():
    shuffle = nn.PixelShuffle(2)
    model = nn.ModuleList([Plain(), Plain()])
    for module in model:
        module.shuffle = shuffle
    report = dk.adopt(model)
    (row,) = [row for row in report.left if row.path == "0.shuffle"]
    assert row.why == "it is shared: 0.shuffle, 1.shuffle"
    twice = nn.ModuleList([model[0]] * 2)
    model[1].shuffle = nn.PixelShuffle(2)
    assert [row.path for row in dk.adopt(twice).swapped] == ["0.shuffle"]


def test_two_shuffles_of_one_module_are_undone():
    model, arguments = Twice(), inputs()
    expected = model(*arguments)
    report = dk.adopt(model)
    assert [row.path for row in report.swapped] == ["shuffle", "up.1"]
    report.undo()
    assert type(model) is Twice
    assert not any(name.startswith("_adopted") for name in vars(model))
    assert torch.equal(model(*arguments), expected)


def test_a_copy_that_was_changed_runs_its_own_forward():
    """A copy proves again; where that fails it computes what its class says."""
    model, arguments = Upsample(), inputs()
    dk.adopt(model)
    model.up = nn.Sequential(nn.Conv2d(4, 16, 1), nn.Sequential(nn.PixelShuffle(2)))
    twin = copy.deepcopy(model)
    assert vars(twin)["_adopted_forward"] is None
    torch.testing.assert_close(twin(*arguments), model.up(arguments[0]) + model.skip(arguments[1]))


def test_the_trace_is_of_the_modules_own_class():
    """Also where it has been adopted: unpickling and a second shuffle trace it again."""
    model = Plain()
    dk.adopt(model)
    tracing.rewritten(model, ("shuffle",))
    assert type(model).__name__ == "AdoptedPlain"


def test_operators_of_the_sum():
    x, y = torch.randn(2, 16, 3, 5), torch.randn(2, 4, 6, 10)
    torch.testing.assert_close(tracing.shuffle_and_add(x, y, 2), operator.add(F.pixel_shuffle(x, 2), y))


def test_gradients_of_gradients():
    model, arguments = Plain().double(), [value.double().requires_grad_() for value in inputs()]
    dk.adopt(model)
    assert torch.autograd.gradgradcheck(lambda *a: model(*a), [v[:1, :, :1, :1] if i == 0 else v[:1, :, :2, :2]
                                        for i, v in enumerate(arguments)])  # fmt: skip
