"""Replacement of plain norms by time-dependent ones that compute the same until they are trained."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

import dimr_kernels as dk
from dimr_kernels.adoption.time_norms import adopt_time_norms

D = 16


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(D, eps=1e-3)
        self.mix = nn.Linear(D, D)
        self.norm2 = nn.LayerNorm(D)
        self.out = nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mix(self.norm1(x))
        return x + self.out(self.norm2(x)).tanh()


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.norm = nn.LayerNorm(D, elementwise_affine=False)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


def network() -> Network:
    model = Network()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model


@pytest.mark.parametrize("t", [-1.0, 0.7, torch.tensor([-0.5, 0.0, 1.0])], ids=["first", "float", "batch"])
@pytest.mark.parametrize("backend", ["eager", "triton"])
@pytest.mark.parametrize("gate", ["channel", "scalar"])
def test_the_same_function_at_every_timestep(t, backend, gate, device):
    model = network().to(device)
    x = torch.randn(3, 5, D, device=device)
    t = t.to(device) if isinstance(t, Tensor) else t
    wanted = model(x)
    report = adopt_time_norms(model, gate=gate)
    with dk.time_conditioning(t), dk.use_backend(backend):
        torch.testing.assert_close(model(x), wanted, rtol=1e-5, atol=1e-5)
    assert [row.path for row in report.swapped] == [
        "blocks.0.norm1", "blocks.0.norm2", "blocks.1.norm1", "blocks.1.norm2", "norm",
    ]  # fmt: skip
    assert not report.left
    assert sum(isinstance(m, dk.TDLayerNorm) for m in model.modules()) == 5


def test_gradients_at_the_start_are_the_plain_norms():
    model = network()
    x = torch.randn(3, 5, D)
    model(x).square().sum().backward()
    wanted = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    adopt_time_norms(model)
    with dk.time_conditioning(torch.tensor([-0.5, 0.0, 1.0])):
        model(x).square().sum().backward()
    for name, p in model.named_parameters():
        if ".mix." in name or ".out." in name:
            torch.testing.assert_close(p.grad, wanted[name], rtol=1e-4, atol=1e-4)
    norm = model.blocks[0].norm1  # both ends share what the one weight had
    torch.testing.assert_close(norm.p1.grad + norm.p2.grad, wanted["blocks.0.norm1.weight"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(norm.p3.grad + norm.p4.grad, wanted["blocks.0.norm1.bias"], rtol=1e-4, atol=1e-4)


def test_without_a_timestep_the_error_says_what_to_do():
    model = network()
    adopt_time_norms(model)
    with pytest.raises(ValueError, match=r"no timestep.*time_conditioning"):
        model(torch.randn(1, 2, D))


def test_undo_brings_the_very_norms_back():
    model = network()
    before = dict(model.named_modules())
    state = {k: v.clone() for k, v in model.state_dict().items()}
    report = adopt_time_norms(model)
    assert model.state_dict().keys() != state.keys()
    report.undo()
    assert all(module is before[name] for name, module in model.named_modules())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_a_norm_at_two_places_stays_one():
    model = network()
    model.blocks[1].norm1 = model.blocks[0].norm1
    report = adopt_time_norms(model)
    assert len(report.swapped) == 4
    assert model.blocks[1].norm1 is model.blocks[0].norm1
    assert isinstance(model.blocks[1].norm1, dk.TDLayerNorm)


@pytest.mark.parametrize(
    ("select", "wanted"),
    [
        (r"blocks\.\d+\.norm1", ["blocks.0.norm1", "blocks.1.norm1"]),
        ([r"norm", r"blocks\.1\..*"], ["blocks.1.norm1", "blocks.1.norm2", "norm"]),
        (lambda name, norm: norm.eps == 1e-3, ["blocks.0.norm1", "blocks.1.norm1"]),
    ],
)
def test_a_selection(select, wanted):
    model = network()
    report = adopt_time_norms(model, select)
    assert [row.path for row in report.swapped] == wanted
    assert sum(isinstance(m, dk.TDLayerNorm) for m in model.modules()) == len(wanted)


def test_wrong_arguments():
    with pytest.raises(ValueError, match=r"select='norm9' fits no norm of the model; it has: blocks\.0\.norm1, .*norm"):
        adopt_time_norms(network(), "norm9")
    with pytest.raises(ValueError, match="gate must be one of 'channel', 'scalar'; got 'row'"):
        adopt_time_norms(network(), gate="row")
    with pytest.raises(ValueError, match=r"select must be a regular expression.*got '\(' \(missing \)"):
        adopt_time_norms(network(), "(")
    with pytest.raises(TypeError, match="select must be a regular expression, several, or a function; got 3"):
        adopt_time_norms(network(), 3)
    with pytest.raises(TypeError, match=r"adopt_time_norms: model must be an nn\.Module, got list"):
        adopt_time_norms([network()])


def test_rms_norms_with_eps_zero_only():
    model = nn.Sequential(nn.RMSNorm(D, eps=0.0), nn.RMSNorm(D, eps=1e-6), nn.RMSNorm(D))
    nn.init.normal_(model[0].weight)
    x = torch.randn(3, D)
    wanted = model(x)
    report = adopt_time_norms(model)
    assert isinstance(model[0], dk.TDRMSNorm)
    assert [(row.path, row.why) for row in report.left] == [
        ("1", "eps 1e-06 is inside the root, TDRMSNorm's outside"),
        ("2", "eps None is inside the root, TDRMSNorm's outside"),
    ]
    with dk.time_conditioning(0.2):
        torch.testing.assert_close(model(x), wanted, rtol=1e-5, atol=1e-5)


class Doubled(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Same(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)


class ChannelsFirst(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@pytest.mark.parametrize(("norm", "why"), [(Doubled, "a forward of its own"), (ChannelsFirst, "a forward of its own")])
def test_a_subclass_that_computes_something_else_is_left(norm, why):
    model = nn.Sequential(norm(D))
    report = adopt_time_norms(model)
    assert type(model[0]) is norm
    assert [row.why for row in report.left] == [f"has {why}"]
    assert not report.swapped


def test_a_subclass_that_computes_the_same_is_swapped():
    model = nn.Sequential(Same(D))
    nn.init.normal_(model[0].weight)
    x = torch.randn(2, D)
    wanted = model(x)
    assert [row.what for row in adopt_time_norms(model).swapped] == ["Same"]
    with dk.time_conditioning(0.0):
        torch.testing.assert_close(model(x), wanted)


def watch(*_: object) -> None:
    pass


def test_norms_that_must_stay():
    several, hooked = nn.LayerNorm((2, D)), nn.LayerNorm(D)
    hooked.register_forward_hook(watch)
    encoder = nn.TransformerEncoderLayer(D, 2, batch_first=True)
    report = adopt_time_norms(nn.ModuleList((several, hooked, encoder)))
    assert not report.swapped
    assert [row.why for row in report.left] == [
        f"normalises over [2, {D}], more than one dimension",
        "it has hooks: watch",
        *["torch's encoder layer reads its weights, without calling it"] * 2,
    ]
    assert [row.why for row in adopt_time_norms(nn.LayerNorm(D)).left] == ["is the model itself, nothing holds it"]


def test_dtype_device_mode_and_frozen_parameters_are_kept():
    model = network().to(torch.bfloat16).eval().requires_grad_(False)
    adopt_time_norms(model)
    norms = [m for m in model.modules() if isinstance(m, dk.TDLayerNorm)]
    assert all(p.dtype == torch.bfloat16 for norm in norms[:4] for p in norm.parameters())
    assert not any(p.requires_grad for p in model.blocks.parameters())
    assert norms[4].p1.requires_grad  # the plain norm had no weights that could be frozen
    assert not any(norm.training for norm in norms)
    with torch.device("meta"):
        shapes = network()
    adopt_time_norms(shapes)
    with torch.device("meta"):
        own = nn.Sequential(Same(D))
    assert [row.why for row in adopt_time_norms(own).left] == ["has a forward of its own"]  # nothing to compare
    assert {p.device.type for p in shapes.parameters()} == {"meta"}  # the norm without weights too


def test_copies_pickles_and_state_dicts():
    model = network()
    adopt_time_norms(model)
    x = torch.randn(2, 3, D)
    with dk.time_conditioning(0.4):
        wanted = model(x)
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(other(x), wanted)
        fresh = network()
        adopt_time_norms(fresh)
        fresh.load_state_dict(model.state_dict())
        assert torch.equal(fresh(x), wanted)


@pytest.mark.slow
def test_compiled_with_a_full_graph(device):
    model = network().to(device)
    x = torch.randn(2, 4, D, device=device)
    wanted = model(x)
    adopt_time_norms(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with dk.time_conditioning(torch.tensor([-0.4, 0.9], device=device)):
        torch.testing.assert_close(compiled(x), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_timms_vision_transformer():
    timm = pytest.importorskip("timm")
    model = timm.create_model("vit_tiny_patch16_224", depth=2, img_size=32, num_classes=4).eval()
    x = torch.randn(2, 3, 32, 32)
    wanted = model(x)
    report = adopt_time_norms(model, r"blocks\..*")
    assert len(report.swapped) == 4
    with dk.time_conditioning(torch.tensor([-0.4, 0.9])):
        torch.testing.assert_close(model(x), wanted, rtol=1e-4, atol=1e-5)
