"""Which blocks and arguments ``adopt_ada_norm`` refuses, and what it says."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dimr_kernels.adoption.ada_norm import adopt_ada_norm

from ...support.dit import WIDTH, DiT, DiTBlock, random_dit


class Swapped(nn.Module):
    """A block with the parts of the published one that takes scale for shift."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        for name, child in block.named_children():
            self.add_module(name, child)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        scale1, shift1, alpha1, shift2, scale2, alpha2 = self.adaLN_modulation(c)[:, None].chunk(6, dim=-1)
        x = x + alpha1 * self.attn(self.norm1(x) * (1 + scale1) + shift1)
        return x + alpha2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)


class Dropping(Swapped):
    """The published block, but while it trains."""

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        x = DiTBlock.forward(self, x, c)
        return nn.functional.dropout(x, 0.1, self.training)


class Raising(Swapped):
    def forward(self, x: Tensor, c: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        raise NotImplementedError


def test_what_is_no_such_block_is_left_with_the_reason():
    model = random_dit(depth=7)
    b = model.blocks
    b[0], b[1] = Swapped(b[0]), Raising(b[1])
    b[2].gate = nn.Linear(1, 1)
    b[3].norm2 = b[3].norm1
    b[4].adaLN_modulation[0] = nn.GELU()
    b[5].norm1 = nn.RMSNorm(WIDTH)
    b[6] = Dropping(b[6])
    report = adopt_ada_norm(model)
    assert not report.swapped
    assert not report.notes
    reasons = {row.path: row.why for row in report.left}
    assert reasons.pop("blocks.1").startswith("could not be tried on [2, 4, D]: TypeError: ")
    assert reasons == {
        "blocks.0": "computes something else than adaLN-Zero, attention and MLP",
        "blocks.2": "has other layers: gate",
        "blocks.3": f"its modulation does not give scale, shift and gate of two norms over [{WIDTH}]",
        "blocks.4": "adaLN_modulation is not SiLU and Linear",
        "blocks.5": "of its LayerNorm: it is a torch.nn.modules.normalization.RMSNorm, which may compute something "
        "else than LayerNorm",
        "blocks.6": "computes something else than adaLN-Zero, attention and MLP",
        "final_layer": "has no norm1, attn, norm2, mlp",
    }


def test_a_second_time_nothing_is_left_to_do():
    model = random_dit()
    adopt_ada_norm(model)
    assert {row.why for row in adopt_ada_norm(model).left if row.path != "final_layer"} == {
        "of its LayerNorm: it is a dimr_kernels.adoption.ada_blocks.FittedTDLayerNorm, which may compute something "
        "else than LayerNorm"
    }


def test_wrong_arguments_leave_the_model_alone():
    model = random_dit()
    before = dict(model.named_modules())
    for kwargs, message in (
        ({"gate": "row"}, "gate must be one of"),
        ({"time_range": (1.0, 1.0)}, r"time_range must be two rising numbers, got \(1.0, 1.0\)"),
        ({"labels": []}, "labels must be one or more whole numbers"),
        ({"labels": [0.5]}, "labels must be one or more whole numbers"),
        ({"timesteps": [0, 1, 2]}, "at least four different timesteps"),
        ({"conditioning": lambda t, y: torch.full((len(t), WIDTH), torch.nan)}, "must be finite"),
    ):
        with pytest.raises(ValueError, match=message):
            adopt_ada_norm(model, **kwargs)
    assert all(m is before[name] for name, m in model.named_modules())
    with pytest.raises(TypeError, match=r"adopt_ada_norm: model must be an nn\.Module, got list"):
        adopt_ada_norm([model])
    del model.t_embedder
    with pytest.raises(ValueError, match="the DiT has no t_embedder: give conditioning="):
        adopt_ada_norm(model)
    assert type(model) is DiT


def test_a_block_without_its_model_says_what_is_missing():
    model = random_dit()
    adopt_ada_norm(model)
    with pytest.raises(ValueError, match="no timestep: the model's forward keeps it"):
        model.blocks[0](torch.randn(2, 4, WIDTH), torch.randn(2, WIDTH))
    report = adopt_ada_norm(nn.Sequential(random_dit().blocks[0]))
    assert [row.why for row in report.left] == [
        "no model around it is called with the timestep (t, timestep or timesteps) second"
    ]
