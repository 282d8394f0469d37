"""The paper's ablations by name: parameter counts, configurations, recipes, commands."""

from __future__ import annotations

import json
import sys

import pytest
import torch

import dimr
from dimr.cli import main
from dimr.model.variants import ABLATIONS, uvit_config
from tests.support.ablations import small_config


@pytest.mark.parametrize("name", [name for name, row in ABLATIONS.items() if row.paper_parameters is not None])
def test_parameters_are_those_of_the_paper(name):
    row = ABLATIONS[name]
    assert round(dimr.count_parameters(row.config) / 1e6, 1) == row.paper_parameters


def test_table_3_by_hand():
    """Compute the parameters that each choice adds to or removes from M/3R."""
    whole = dimr.count_parameters(ABLATIONS["ablation-glu-m-3r"].config)

    def change(name: str) -> int:
        return dimr.count_parameters(ABLATIONS[name].config) - whole

    assert change("ablation-concat-m-3r") == sum(2 * D * D + D for D in (384, 192))
    lost = (15 * 768, 9 * 384)  # features that are not handed on: all of a branch's but one
    assert change("ablation-no-branch-skips-m-3r") == -sum(
        n * (8 + 4 * D) for n, D in zip(lost, (384, 192), strict=True)
    )
    D = 768
    attention, norm, convolution = 4 * D * D + D, 8 * D, (7 * 7 + 1) * D
    assert change("ablation-convnext-first-m-3r") == 15 * (convolution - attention - norm)


def test_only_differences_are_written():
    assert set(dimr.DiMRConfig().to_dict()) == {
        "in_channels", "input_size", "dims", "layers", "num_heads", "num_classes", "unconditional_class",
        "kernel_size", "mlp_ratio", "norm",
    }  # fmt: skip
    for name in dimr.list_ablations():
        config = dimr.model_config(name)
        written = config.to_dict()
        assert set(config.ablations) <= set(written)
        assert dimr.DiMRConfig.from_dict(json.loads(json.dumps(written))) == config


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"mlp": "relu"}, ValueError, "mlp must be one of 'geglu', 'gelu'; got 'relu'"),
        ({"cascade": "mean"}, ValueError, "cascade must be one of 'add', 'concat'; got 'mean'"),
        ({"first_branch": "mamba"}, ValueError, "first_branch must be one of 'transformer', 'convnext'"),
        ({"branch_skips": 1}, TypeError, "branch_skips must be true or false, got 1"),
        ({"patch_size": 0}, ValueError, "patch_size must be at least 1, got 0"),
        ({"patch_size": 3}, ValueError, "input_size must be a multiple of 6 for 2 branches, got 32"),
        ({"modulation": "conv"}, ValueError, "modulation must be one of 'linear', 'mlp'"),
        ({"modulation": "mlp"}, ValueError, "modulation='mlp' needs norm='adaln_zero', got 'td_rms'"),
        ({"norm": "layer", "first_branch": "convnext"}, ValueError, "needs first_branch='transformer'"),
        ({"norm": "layer", "dims": (15, 8), "num_heads": 3}, ValueError, "dims must be even .* got 15"),
    ],
)
def test_bad_choices_are_named(fields, error, message):
    with pytest.raises(error, match=message):
        dimr.DiMRConfig(**fields)


def test_uvit_by_hand():
    """Against Bao et al.'s arithmetic: every parameter of a small one."""
    D, depth, C, p, classes = 8, 3, 2, 2, 5
    config = uvit_config(D, depth, 2, p, in_channels=C, input_size=8, num_classes=classes, unconditional_class=False)
    block = 4 * D * D + D + 8 * D * D + 5 * D + 4 * D
    patches, positions, time = C * p * p * D + D, 16 * D, D
    head = 2 * D + D * C * p * p + C * p * p + 9 * C * C + C
    wanted = depth * block + 2 * D * D + D + patches + positions + time + classes * D + head
    assert dimr.count_parameters(config) == wanted
    (prediction,) = dimr.DiMR(config)(torch.randn(2, C, 8, 8), 5.0, torch.tensor([0, 4]))
    assert prediction.shape == (2, C, 8, 8)


@pytest.mark.parametrize("name", ABLATIONS)
def test_each_row_is_a_recipe_away(name):
    recipes = pytest.importorskip("dimr.training.recipe")
    if sys.version_info < (3, 11):
        pytest.importorskip("tomli")
    row = ABLATIONS[name]
    recipe = recipes.load_recipe("dimr-m-3r", row.recipe_overrides(name))
    assert recipe.model == row.config
    assert recipe.training.loss_weights == row.loss_weights
    assert (recipe.training.steps, recipe.training.batch_size) == (300_000, 1024)


def test_commands(tmp_path, capsys):
    assert main(["info", "ablation-adaln-zero-m-4"]) == 0
    out = capsys.readouterr().out
    assert "202.40 M parameters" in out
    assert "Table 2, row 2: 202.4 M; loss weights [1.0]" in out
    assert '"modulation": "mlp"' in out
    assert "dimr train dimr-m-3r --set model.name=ablation-adaln-zero-m-4 --set 'training.loss_weights=[1]'" in out
    assert main(["info", "ablation-x"]) == 2
    assert "ablation-concat-m-3r" in capsys.readouterr().err
    pytest.importorskip("safetensors")
    pytest.importorskip("tqdm")
    dimr.save_model(dimr.DiMR(small_config("ablation-concat-m-3r")), tmp_path / "a")
    command = ["sample", str(tmp_path / "a"), "--per-class", "1", "--steps", "2", "--output"]
    assert main([*command, str(tmp_path / "s.safetensors")]) == 0
    assert main([*command, str(tmp_path / "s.safetensors"), "--engine"]) == 2
    assert "--engine: it cannot pack an ablation, and this model has cascade='concat'" in capsys.readouterr().err
