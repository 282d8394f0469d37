"""Networks of timm, torchvision and diffusers compute the same after they were adopted."""

from __future__ import annotations

import copy

import pytest
import torch

import dimr_kernels as dk
from tests.support.requirements import needs_inductor

from .comparing import assert_adopted_parity, computed
from .models import CASES, Case, basic_transformer_block, glu_vit, image, timm_convnext, torchvision_convnext

every_model = pytest.mark.parametrize("name", CASES)


@every_model
def test_as_chosen_for_this_machine(name):
    assert_adopted_parity(CASES[name]())


@every_model
@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)])
def test_half_precision(name, dtype):
    assert_adopted_parity(CASES[name](), dtype)


FUSED = [
    *[(name, torch.float32) for name in list(CASES)[4:]],
    ("ViT, gate first, tanh", torch.bfloat16),
    ("BasicTransformerBlock", torch.bfloat16),
    ("Upsample", torch.bfloat16),
]
FUSED_CONVOLUTIONS = [  # which the interpreter takes long for
    ("timm ConvNeXt", torch.float32),
    ("timm ConvNeXt, linear MLP", torch.bfloat16),
    ("torchvision ConvNeXt", torch.float32),
]


@pytest.mark.parametrize(
    ("name", "dtype"), [*FUSED, *[pytest.param(*case, marks=pytest.mark.slow) for case in FUSED_CONVOLUTIONS]]
)
def test_fused(name, dtype):
    assert_adopted_parity(CASES[name](), dtype, "cuda" if name == "Upsample" else "triton")


@pytest.mark.parametrize("name", ["timm ConvNeXt V2", "BasicTransformerBlock", "Upsample"])
def test_autocast(name):
    assert_adopted_parity(CASES[name](), autocast=torch.bfloat16, backend="auto")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["torchvision ConvNeXt", "ViT, gate last"])
def test_autocast_fused(name):
    assert_adopted_parity(CASES[name](), autocast=torch.bfloat16, backend="triton")


@pytest.mark.parametrize(
    "make",
    [
        lambda: Case(timm_convnext(drop_path=0.5), (image(batch=4),), 4),
        lambda: Case(torchvision_convnext(stochastic_depth=0.5), (image(batch=4),), 2),
        lambda: Case(glu_vit(drop=0.5), (image(size=16),), 2),
        lambda: Case(basic_transformer_block(dropout=0.5), (torch.randn(2, 5, 16), None, torch.randn(2, 3, 12)), 1),
    ],
    ids=["timm ConvNeXt", "torchvision ConvNeXt", "ViT", "BasicTransformerBlock"],
)
def test_random_layers_draw_the_same_numbers(make):
    case = make()
    original = copy.deepcopy(case.model)
    dk.adopt(case.model)
    for training in (True, False):
        expected = computed(original.train(training), case.inputs)
        found = computed(case.model.train(training), case.inputs)
        torch.testing.assert_close(found, expected)
    evaluated = expected["out.0"]
    assert not torch.equal(computed(original.train(), case.inputs)["out.0"], evaluated)  # they do draw


@pytest.mark.slow
@needs_inductor
@pytest.mark.parametrize(
    "name", ["timm ConvNeXt", "torchvision ConvNeXt", "ViT, gate last", "BasicTransformerBlock", "Upsample"]
)
def test_compiles_whole(name):
    case = CASES[name]()
    expected = computed(case.model, case.inputs)
    dk.adopt(case.model)
    compiled = torch.compile(case.model, fullgraph=True, backend="aot_eager")
    found = {key.replace("_orig_mod.", ""): value for key, value in computed(compiled, case.inputs).items()}
    torch.testing.assert_close(found, expected)
