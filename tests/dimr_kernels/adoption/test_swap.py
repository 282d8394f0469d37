"""Adopted networks of timm, torchvision and diffusers: results, state that stays the same, and undo."""

from __future__ import annotations

import copy
import io
import pickle
import sys

import pytest
import torch
from torch import nn

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
    assert_adopted_parity(CASES[name](), dtype, "triton")


@pytest.mark.parametrize("name", ["timm ConvNeXt V2", "BasicTransformerBlock"])
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
@pytest.mark.parametrize("name", ["timm ConvNeXt", "torchvision ConvNeXt", "ViT, gate last", "BasicTransformerBlock"])
def test_compiles_whole(name):
    case = CASES[name]()
    expected = computed(case.model, case.inputs)
    dk.adopt(case.model)
    compiled = torch.compile(case.model, fullgraph=True, backend="aot_eager")
    found = {key.replace("_orig_mod.", ""): value for key, value in computed(compiled, case.inputs).items()}
    torch.testing.assert_close(found, expected)


def described(model: nn.Module) -> dict[str, object]:
    """Describe what must stay: names and order of modules and tensors, tensors' identity and flags, hooks, mode."""
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {
        "modules": [(name, id(module), module.training) for name, module in model.named_modules()],
        "tensors": [(n, id(t), t.dtype, t.device, t.requires_grad, t.stride(), t._version) for n, t in tensors],
        "state": list(model.state_dict()),
        "hooks": [(name, list(module._forward_hooks.items())) for name, module in model.named_modules()],
        "attributes": {name: set(vars(module)) for name, module in model.named_modules()},
    }


@every_model
def test_adopted_and_undone(name):
    case = CASES[name]()
    model = case.model
    next(model.parameters()).requires_grad_(False)
    model.register_forward_hook(lambda module, inputs, output: None)
    before, values = described(model), copy.deepcopy(model.state_dict())
    types = [type(module) for module in model.modules()]
    pre_hooks = [dict(module._forward_pre_hooks) for module in model.modules()]
    expected = computed(model, case.inputs)

    report = dk.adopt(model, **case.keywords)
    during = described(model)
    for kept in ("modules", "tensors", "state", "hooks"):
        assert during[kept] == before[kept], kept
    assert all(isinstance(module, cls) for module, cls in zip(model.modules(), types, strict=True))
    assert [type(module) for module in model.modules()] != types

    report.undo()
    assert described(model) == before
    assert [type(module) for module in model.modules()] == types
    assert [dict(module._forward_pre_hooks) for module in model.modules()] == pre_hooks
    for key, value in model.state_dict().items():
        assert torch.equal(value, values[key]), key
    found = computed(model, case.inputs)
    assert all(torch.equal(found[key], value) for key, value in expected.items())
    report.undo()  # nothing is left to undo


@every_model
def test_adopting_again_changes_nothing(name):
    case = CASES[name]()
    first = dk.adopt(case.model, **case.keywords)
    before, types = described(case.model), [type(module) for module in case.model.modules()]
    hooks = [len(module._forward_pre_hooks) for module in case.model.modules()]
    second = dk.adopt(case.model, **case.keywords)
    assert second.swapped == []
    assert [row.path for row in second.left if row.why == "already adopted"] == [row.path for row in first.swapped]
    assert described(case.model) == before
    assert [type(module) for module in case.model.modules()] == types
    assert [len(module._forward_pre_hooks) for module in case.model.modules()] == hooks
    second.undo()
    assert [type(module) for module in case.model.modules()] == types, "an undo takes back its own swaps alone"


def pickled(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))


def through_torch_save(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@every_model
@pytest.mark.parametrize("duplicate", [copy.deepcopy, pytest.param(pickled, marks=pytest.mark.slow)])
def test_copies(name, duplicate):
    case = CASES[name]()
    dk.adopt(case.model, **case.keywords)
    twin = duplicate(case.model)
    assert [type(module) for module in twin.modules()] == [type(module) for module in case.model.modules()]
    expected, found = computed(case.model, case.inputs), computed(twin, case.inputs)
    assert all(torch.equal(found[key], value) for key, value in expected.items())
    assert dk.adopt(twin, **case.keywords).swapped == []
    with torch.no_grad():  # nothing of the copy leads back
        for parameter in twin.parameters():
            parameter.zero_()
    again = computed(case.model, case.inputs)
    assert all(torch.equal(again[key], value) for key, value in expected.items())


@pytest.mark.parametrize("name", ["timm ConvNeXt", "BasicTransformerBlock"])
def test_saved_whole(name):
    case = CASES[name]()
    dk.adopt(case.model)
    torch.testing.assert_close(computed(through_torch_save(case.model), case.inputs), computed(case.model, case.inputs))


@every_model
def test_state_dicts_go_both_ways(name):
    case, other = CASES[name](), CASES[name]()
    dk.adopt(case.model, **case.keywords)
    case.model.load_state_dict(other.model.state_dict(), strict=True)
    expected, found = computed(other.model, case.inputs), computed(case.model, case.inputs)
    torch.testing.assert_close(found, expected)
    other.model.load_state_dict(case.model.state_dict(), strict=True)
    case.model.load_state_dict(copy.deepcopy(case.model.state_dict()), assign=True)
    torch.testing.assert_close(computed(case.model, case.inputs), expected)


def train(model: nn.Module, case: Case, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        computed(model, case.inputs)
        optimizer.step()


@pytest.mark.parametrize("name", ["timm ConvNeXt", "ViT, gate last"])
def test_the_same_optimizer_goes_on(name):
    """Step an optimizer before and after adoption, against a model that was never adopted."""
    case = CASES[name]()
    original = copy.deepcopy(case.model)
    optimizer, of_original = (torch.optim.AdamW(m.parameters(), lr=1e-3) for m in (case.model, original))
    train(case.model, case, optimizer, 2)
    start = copy.deepcopy(case.model.state_dict())
    report = dk.adopt(case.model)
    train(case.model, case, optimizer, 2)
    report.undo()
    train(case.model, case, optimizer, 1)
    train(original, case, of_original, 5)
    assert not torch.equal(*(next(iter(state.values())) for state in (start, case.model.state_dict())))
    for key, value in original.state_dict().items():
        torch.testing.assert_close(case.model.state_dict()[key], value, rtol=1e-3, atol=1e-4)


def test_moved_to_another_dtype_and_back():
    case = CASES["timm ConvNeXt"]()
    original = copy.deepcopy(case.model)
    dk.adopt(case.model)
    twice = [model.double()(case.inputs[0].double()) for model in (case.model, original)]
    torch.testing.assert_close(*twice)


def test_a_layer_at_two_places_is_swapped_once():
    block = basic_transformer_block()
    model = nn.ModuleDict({"first": block, "second": block})
    report = dk.adopt(model)
    assert [row.path for row in report.swapped] == ["first.ff.net.0"]
    assert model["second"].ff.net[0] is model["first"].ff.net[0]
    report.undo()
    assert type(model["second"].ff.net[0]).__name__ == "GEGLU"


def test_a_shared_network_gets_one_hook():
    network = timm_convnext()
    model = nn.ModuleList([network, network])
    report = dk.adopt(model)
    assert len(report.notes) == 1
    assert len(network._forward_pre_hooks) == 1


def test_undo_says_what_was_changed_since():
    case = CASES["timm ConvNeXt"]()
    report = dk.adopt(case.model)
    conv = case.model.stages[0].blocks[0].conv_dw
    torch.nn.utils.parametrizations.weight_norm(conv)
    with pytest.raises(RuntimeError, match=r"undo: 'stages.0.blocks.0.conv_dw' is ParametrizedAdoptedConv2d now"):
        report.undo()
    assert type(case.model.stages[1].blocks[0].conv_dw).__name__ == "AdoptedConv2d", "nothing is undone by half"
    torch.nn.utils.parametrize.remove_parametrizations(conv, "weight")
    report.undo()
    assert type(conv) is nn.Conv2d


def test_undo_refuses_where_the_forward_was_replaced_since():
    case = CASES["BasicTransformerBlock"]()
    report = dk.adopt(case.model)
    layer = case.model.ff.net[0]
    layer.forward = layer.forward
    with pytest.raises(RuntimeError, match=r"forward of 'ff\.net\.0' was replaced since"):
        report.undo()


@pytest.mark.parametrize(("norms", "line"), [(0, "0 layers swapped"), (1, "1 layer swapped"), (2, "2 layers swapped")])
def test_the_report_counts_in_english(norms, line):
    model = nn.Sequential(*(nn.LayerNorm(4) for _ in range(norms)))
    assert str(dk.adopt(model, layer_norm=True)).startswith(f"{line}, 0 left")


def test_the_report_reads_as_a_table():
    case = CASES["UNet2DConditionModel"]()
    report = dk.adopt(case.model)
    lines = str(report).splitlines()
    assert lines[0].startswith("4 layers swapped, ")
    assert len(lines) < 10, "one line for all layers of one kind and one fate"
    assert any("4 x diffusers GEGLU" in line and "by geglu_linear" in line for line in lines)
    assert any("nn.LayerNorm" in line and "layer_norm=True" in line for line in lines)


def test_adopt_names_what_it_got():
    with pytest.raises(TypeError, match=r"adopt: model must be an nn\.Module, got dict"):
        dk.adopt({})


def test_nothing_is_imported_for_it(monkeypatch):
    """Check that adoption imports no library; it looks among the loaded modules only."""
    libraries = ("timm", "torchvision", "diffusers")
    for name in [name for name in sys.modules if name.split(".")[0] in libraries]:
        monkeypatch.delitem(sys.modules, name)
    model = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.LayerNorm(4))
    assert len(dk.adopt(model, layer_norm=True).swapped) == 1
    assert [name for name in sys.modules if name.split(".")[0] in libraries] == []


def test_the_model_may_be_the_layer_itself():
    activations = pytest.importorskip("diffusers.models.activations")
    layer, x = activations.GEGLU(6, 5), torch.randn(3, 6)
    expected = layer(x)
    report = dk.adopt(layer)
    assert [row.path for row in report.swapped] == [""]
    assert "(the model)" in str(report)
    torch.testing.assert_close(layer(x), expected)
