"""Replacement of adaLN-Zero in diffusers' DiT by TD-LN."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dimr_kernels.adoption.ada_norm import DiffusersBlock, _forward_problem, adopt_ada_norm, output_error

diffusers = pytest.importorskip("diffusers")

CLASSES, D = 5, 16
TIMES = torch.arange(0, 1000, 50)


def random_dit() -> Any:
    model = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=D // 2, in_channels=3, num_layers=2, sample_size=8, patch_size=2,
        norm_num_groups=1, num_embeds_ada_norm=CLASSES,
    )  # fmt: skip
    for name, parameter in model.named_parameters():
        nn.init.normal_(parameter, std=0.3 if "norm1" in name else 0.1)
    return model.eval()


def arguments(batch: int = 3) -> dict[str, Tensor]:
    t = torch.linspace(37, 911, batch).round().long()
    return {"hidden_states": torch.randn(batch, 3, 8, 8), "timestep": t, "class_labels": torch.arange(batch) % CLASSES}


def test_swapped_with_the_names_and_signature_kept():
    model = random_dit()
    reference, inputs = copy.deepcopy(model), arguments()
    before = sum(p.numel() for p in model.parameters())
    report = adopt_ada_norm(model)
    assert [row.path for row in report.swapped] == ["transformer_blocks.0", "transformer_blocks.1"]
    assert [row.path for row in report.left] == ["norm_out"]
    assert report.parameters == (before, before - 2 * (4 * D * D + 4 * D) + 2 * 2 * 8 * D)
    assert {
        "transformer_blocks.0.norm1.norm.p1", "transformer_blocks.1.norm3.shift_gate_offset",
        "transformer_blocks.0.norm1.emb.timestep_embedder.linear_1.weight",
    } <= model.state_dict().keys()  # fmt: skip
    assert model(**inputs).sample.shape == (3, 3, 8, 8)
    error = output_error(reference, model, **inputs)
    assert 0 < error.relative < 1
    wanted = reference(**inputs).sample
    assert error.max_abs == pytest.approx((model(**inputs).sample - wanted).abs().max().item(), rel=1e-4)
    report.undo()
    assert torch.equal(model(**inputs).sample, wanted)
    assert type(model.transformer_blocks[0]) is type(reference.transformer_blocks[0])


def test_the_reported_error_is_the_one_seen_while_the_model_runs():
    model = random_dit()
    block = model.transformer_blocks[1]
    seen: list[Tensor] = []
    handle = block.norm1.linear.register_forward_hook(lambda module, args, out: seen.append(out.detach().double()))
    x = torch.randn(len(TIMES), 3, 8, 8)
    for label in range(CLASSES + 1):
        model(x, TIMES, torch.full_like(TIMES, label))
    handle.remove()
    shift, scale = torch.stack(seen).unflatten(2, (6, -1))[:, :, 3:5].unbind(2)  # [classes, T, D]
    report = adopt_ada_norm(model, timesteps=TIMES, labels=range(CLASSES + 1))
    fits = {(fit.path, fit.vector): fit for fit in report.fits}
    norm = block.norm3
    # The layer norm returns rows of one +1 and one -1 unchanged, so the output shows the norm's scale and shift.
    probe = torch.tensor([1.0, -1.0]).repeat(len(TIMES), D // 2)
    probe = torch.stack((probe, -probe), dim=1)  # [T, 2, D]
    up, down = norm(probe, norm.time(TIMES)).detach().double().unbind(1)
    for vector, fitted, table in (
        ("scale", (up - down) / (2 * probe[:, 0]), 1 + scale),
        ("shift", (up + down) / 2, shift),
    ):
        fit = fits["transformer_blocks.1.norm3", vector]
        variance = (table - table.mean((0, 1))).square().mean()
        assert fit.unexplained == pytest.approx(((table - fitted).square().mean() / variance).item(), rel=1e-3)
        assert fit.max_abs == pytest.approx((table - fitted).abs().max().item(), rel=1e-3)


def test_a_constant_modulation_is_kept_exactly():
    model = random_dit()
    for block in model.transformer_blocks:
        nn.init.zeros_(block.norm1.linear.weight)
    reference = copy.deepcopy(model)
    report = adopt_ada_norm(model)
    assert all(fit.unexplained == 0 and fit.max_abs < 1e-6 for fit in report.fits)
    assert output_error(reference, model, **arguments()).relative < 1e-5


def test_a_block_called_with_a_mask():
    model = random_dit()
    block = model.transformer_blocks[0]
    nn.init.zeros_(block.norm1.linear.weight)
    x, t, y = torch.randn(2, 16, D), torch.tensor([3, 700]), torch.tensor([0, 4])
    mask = torch.zeros(2, 1, 16).index_fill(2, torch.arange(4), -torch.inf)
    wanted = block(x, attention_mask=mask, timestep=t, class_labels=y)
    assert not torch.allclose(wanted, block(x, timestep=t, class_labels=y))
    adopt_ada_norm(model)
    torch.testing.assert_close(block(x, attention_mask=mask, timestep=t, class_labels=y), wanted)


def test_pipelines_call_it_and_gradients_reach_everything():
    model = random_dit()
    adopt_ada_norm(model)
    pipeline = diffusers.DiTPipeline(transformer=model, vae=nn.Identity(), scheduler=diffusers.DDIMScheduler())
    assert pipeline.transformer is model
    model.enable_gradient_checkpointing()
    model.train()
    model(**arguments()).sample.square().mean().backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]


def test_other_blocks_are_left():
    model = random_dit()
    model.transformer_blocks[0].attn2 = nn.Identity()
    model.transformer_blocks[1].norm1.emb = None
    report = adopt_ada_norm(model)
    assert [row.why for row in report.left[:2]] == ["has attn2", "norm1 does not embed the timestep"]
    assert not report.swapped


def test_affine_norms_are_taken_with_their_weights():
    block = random_dit().transformer_blocks[0]
    block.norm3 = nn.LayerNorm(D, eps=1e-5)
    for parameter in block.norm3.parameters():
        nn.init.normal_(parameter)
    for dropped in (0.1, 0.3, 0.5, 0.7, 0.9):  # drops classes while training; compared at one class
        block.norm1.emb.class_embedder.dropout_prob = dropped
        assert _forward_problem(DiffusersBlock("", block)) is None


@pytest.mark.slow
def test_compiled_with_a_full_graph():
    model = random_dit()
    adopt_ada_norm(model)
    inputs = arguments(2)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(**inputs).sample, model(**inputs).sample)
