"""Principal components of scale and shift, against curves whose rank is known."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

import dimr
import dimr_kernels as dk
from dimr.analysis.time_curves import as_json, explain, explained_variance, sampling_timesteps, time_curves
from dimr.cli import main

SMALL = dimr.DiMRConfig(
    in_channels=1, input_size=8, dims=(16, 8), layers=(3, 1), num_heads=2, num_classes=3, kernel_size=3, norm="td_layer"
)
ADALN = dataclasses.replace(SMALL, norm="adaln_zero")
TIMESTEPS = [1000 - 30 * i for i in range(33)]


def shaken(config: dimr.DiMRConfig) -> dimr.DiMR:
    model = dimr.DiMR(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return model


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_shares_of_known_rank(rank):
    time = torch.linspace(0, 1, 40, dtype=torch.float64)
    directions = torch.linalg.qr(torch.randn(12, rank, dtype=torch.float64)).Q.T * torch.arange(1, rank + 1)[:, None]
    waves = torch.stack([torch.cos(torch.pi * (k + 1) * (time + 1 / 80) / (1 + 1 / 40)) for k in range(rank)], dim=1)
    waves = torch.linalg.qr(waves - waves.mean(dim=0)).Q
    variance, shares = explained_variance(waves @ directions + 5, components=4)
    squares = sorted((k * k for k in range(1, rank + 1)), reverse=True)
    assert shares == pytest.approx([s / sum(squares) for s in squares] + [0] * (4 - rank), abs=1e-9)
    assert variance == pytest.approx(sum(squares) / 40)


def test_as_scikit_learn():
    decomposition = pytest.importorskip("sklearn.decomposition")
    values = torch.randn(20, 7, dtype=torch.float64) * torch.arange(1, 8) + 3
    wanted = decomposition.PCA(5).fit(values.numpy()).explained_variance_ratio_
    assert explained_variance(values, 5)[1] == pytest.approx(wanted.tolist())


def test_constant_curves_explain_nothing():
    assert explained_variance(torch.full((9, 4), 1 / 3)) == (0.0, None)
    assert explained_variance(torch.zeros(9, 4)) == (0.0, None)
    with pytest.raises(ValueError, match=r"T of at least 2.*got \[1, 4\]"):
        explained_variance(torch.zeros(1, 4))


def test_a_scale_of_rank_one():
    """A modulation whose weights have rank 1 moves along a line, whatever the embedding does."""
    model = shaken(ADALN)
    block = model.branches[0].blocks[1]
    with torch.no_grad():
        block.modulation.proj.weight[:16] = torch.outer(torch.randn(16), torch.randn(16))
    found = {
        (e.curve.layer, e.curve.kind): e.ratios
        for e in explain(time_curves(model, TIMESTEPS))
        if e.curve.layer.startswith("branches.0.blocks.1.")
    }
    assert len(found) == 6
    assert found["branches.0.blocks.1.norm1", "scale"][0] == pytest.approx(1, abs=1e-6)
    assert all(r[0] < 0.999 for place, r in found.items() if place != ("branches.0.blocks.1.norm1", "scale"))


def test_modulations_are_what_the_block_uses():
    model = shaken(ADALN)
    branch = model.branches[1]
    curves = {(c.layer, c.kind): c.values for c in time_curves(model, [700, 20])}
    seen = []
    block = branch.blocks[0]
    block.conv.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    x = torch.randn(2, 4, 4, 8)
    t = torch.tensor([700.0, 20.0]) / 500 - 1
    with torch.no_grad():
        block(x, branch.time_mlp(t))
        scale, shift = (curves["branches.1.blocks.0.norm1", kind].float()[:, None, None] for kind in ("scale", "shift"))
        torch.testing.assert_close(seen[0], block.norm1(x) * (1 + scale) + shift, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("norm", ["td_layer", "td_rms"])
def test_td_norms_are_what_the_operator_computes(norm):
    model = shaken(dataclasses.replace(SMALL, norm=norm))
    curves = time_curves(model, [900, 40])
    modules = dict(model.named_modules())
    checked = set()
    for curve in curves:
        module = modules[curve.layer]
        if curve.kind != "scale":
            continue
        D = curve.values.shape[1]
        x = torch.randn(2, 3, D)
        ends = (module(x, torch.tensor([900.0, 40.0]) / 500 - 1), module(-x, torch.tensor([900.0, 40.0]) / 500 - 1))
        plain = torch.nn.functional.layer_norm(x, (D,), eps=module.eps)
        if isinstance(module, dk.TDRMSNorm):
            plain = x / (x.square().mean(dim=-1, keepdim=True).sqrt() + module.eps)
        torch.testing.assert_close((ends[0] - ends[1]) / 2, plain * curve.values[:, None].float(), atol=1e-5, rtol=1e-5)
        checked.add(type(module))
    assert checked == ({dk.TDLayerNorm, dk.TDRMSNorm} if norm == "td_rms" else {dk.TDLayerNorm})
    blocks = [c for c in curves if ".blocks." in c.layer]
    assert {c.kind for c in blocks} == ({"scale"} if norm == "td_rms" else {"scale", "shift"})


def test_td_norms_with_one_gate_have_rank_one():
    """All channels share the gate, so scale and shift are mixes of two vectors by one sigmoid."""
    model = shaken(SMALL)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, dk.TDLayerNorm):
                for gate in (module.scale_gate_weight, module.shift_gate_weight):
                    gate.fill_(1.5)
                for offset in (module.scale_gate_offset, module.shift_gate_offset):
                    offset.fill_(-0.2)
    for explained in explain(time_curves(model, TIMESTEPS)):
        assert explained.ratios[0] == pytest.approx(1, abs=1e-9)


def test_new_models_do_not_move():
    for config in (SMALL, ADALN):
        found = as_json(explain(time_curves(dimr.DiMR(config), TIMESTEPS)))
        for summary in found["summary"].values():
            assert summary["constant"] == summary["layers"] > 0
            assert summary["mean_cumulative"] is None


def test_timesteps_are_those_of_sampling():
    seen = []
    model = shaken(SMALL)
    model.register_forward_pre_hook(lambda module, args: seen.append(args[1].item()))
    dimr.sample(model, [0], steps=7)
    assert seen == pytest.approx(sampling_timesteps(7))


def test_command(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    pytest.importorskip("safetensors")
    for name, config, kinds in (("td", SMALL, {"scale", "shift"}), ("ada", ADALN, {"scale", "shift", "gate"})):
        dimr.save_model(shaken(config), tmp_path / name)
        out = tmp_path / f"{name}-analysis"
        assert main(["analyze", "pca", str(tmp_path / name), "--output", str(out), "--steps", "9"]) == 0
        report = json.loads((out / "pca.json").read_text())
        assert set(report["summary"]) == kinds
        assert len(report["timesteps"]) == 9
        assert {len(layer["explained"]) for layer in report["layers"]} == {4}
        assert (out / "pca.png").read_bytes().startswith(b"\x89PNG")
        assert sorted(path.name for path in out.iterdir()) == ["pca.json", "pca.png"]
        assert "first component" in capsys.readouterr().out


def test_command_with_a_model_without_time_in_its_norms(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    pytest.importorskip("safetensors")
    dimr.save_model(dimr.DiMR(dataclasses.replace(SMALL, norm="layer")), tmp_path / "a")
    assert main(["analyze", "pca", str(tmp_path / "a"), "--output", str(tmp_path / "o")]) == 2
    assert "do not depend on the time" in capsys.readouterr().err
    assert main(["analyze", "pca", "dimr-none", "--output", str(tmp_path / "o")]) == 2
    assert "'dimr-none' is neither" in capsys.readouterr().err
