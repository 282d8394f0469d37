"""The rows of the paper's Tables 2 and 3, all on ImageNet-64 at size M, by name.

Two of Table 2's counts leave the architecture open. What is built here reaches them, and no more is claimed:

- adaLN-Zero, multi-branch (217.9 M): six vectors in every block, a norm before each ConvNeXt block's convolution too,
  and a time MLP 256 -> D -> D in every branch; the layer norms keep weights and biases. 217.94 M.
- adaLN-Zero (202.4 M): DiT's own six vectors per block, with any time MLP, stay 9 M below. A hidden layer D -> D before
  each block's six and one time MLP D -> D -> D make 121 layers of D x D more than U-ViT has. 202.40 M.

Table 3's counts are not known here. Its first branch without attention adds the class at every position, its
concatenation is projected back to the branch's width, and a cascade without skips hands on the last feature only.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from .config import DiMRConfig
from .network import DiMR

_ABLATION_64: dict[str, Any] = {
    "in_channels": 3, "input_size": 64, "num_classes": 1000, "unconditional_class": False,
}  # fmt: skip
_FINEST_ONLY = (0.0, 0.0, 1.0)
_MULTI_SCALE = (1 / 16, 1 / 4, 1.0)


def uvit_config(dim: int, depth: int, num_heads: int, patch_size: int, **fields: Any) -> DiMRConfig:
    """U-ViT (Bao et al. 2023): one branch of transformer blocks with long skips, the time and the class as tokens.

    Args:
        depth: blocks, an odd number (an even one gets one more).
        fields: others of the configuration, such as ``input_size``; they may replace those of U-ViT.
    """
    own: dict[str, Any] = {"mlp": "gelu", "mlp_ratio": 4, "norm": "layer"}
    return DiMRConfig(dims=(dim,), layers=(depth,), num_heads=num_heads, patch_size=patch_size, **(own | fields))


@dataclasses.dataclass(frozen=True)
class Ablation:
    """A row of one of the tables.

    Attributes:
        source: where in the paper.
        config: the model.
        loss_weights: of the branches' losses, lowest resolution first.
        paper_parameters: what the paper counts, in millions; None where it is not known here.
    """

    source: str
    config: DiMRConfig
    loss_weights: tuple[float, ...]
    paper_parameters: float | None = None

    def recipe_overrides(self, name: str) -> tuple[str, ...]:
        """What turns the recipe of M/3R into this row's, which is called ``name``; see ``dimr train --set``."""
        weights = ", ".join(f"{weight:g}" for weight in self.loss_weights)
        return f"model.name={name}", f"training.loss_weights=[{weights}]"


_UVIT_M_4 = uvit_config(768, 17, 12, 4, **_ABLATION_64)
_DIMR_M_3R = DiMRConfig(dims=(768, 384, 192), layers=(15, 8, 8), num_heads=12, norm="td_layer", **_ABLATION_64)
_PLAIN_M_3R = dataclasses.replace(_DIMR_M_3R, mlp="gelu", mlp_ratio=4)

ABLATIONS: dict[str, Ablation] = {
    "ablation-time-token-m-4": Ablation("Table 2, row 1", _UVIT_M_4, (1.0,), 130.9),
    "ablation-adaln-zero-m-4": Ablation(
        "Table 2, row 2", dataclasses.replace(_UVIT_M_4, norm="adaln_zero", modulation="mlp"), (1.0,), 202.4
    ),
    "ablation-adaln-zero-m-3r": Ablation(
        "Table 2, row 3", dataclasses.replace(_PLAIN_M_3R, norm="adaln_zero"), _FINEST_ONLY, 217.9
    ),
    "ablation-td-ln-m-3r": Ablation("Table 2, row 4", _PLAIN_M_3R, _FINEST_ONLY, 154.0),
    "ablation-glu-m-3r": Ablation("Table 2, row 5", _DIMR_M_3R, _FINEST_ONLY, 132.9),
    "ablation-multi-scale-loss-m-3r": Ablation("Table 2, row 6", _DIMR_M_3R, _MULTI_SCALE, 132.9),
    "ablation-convnext-first-m-3r": Ablation(
        "Table 3", dataclasses.replace(_DIMR_M_3R, first_branch="convnext"), _MULTI_SCALE
    ),
    "ablation-concat-m-3r": Ablation("Table 3", dataclasses.replace(_DIMR_M_3R, cascade="concat"), _MULTI_SCALE),
    "ablation-no-branch-skips-m-3r": Ablation(
        "Table 3", dataclasses.replace(_DIMR_M_3R, branch_skips=False), _MULTI_SCALE
    ),
}


def list_ablations() -> list[str]:
    """Names of the paper's ablations, in its order; :func:`dimr.create_model` takes them too."""
    return list(ABLATIONS)


# The paper's models (Table 4) and small ones for trials, by name.


_PIXELS_64: dict[str, Any] = {
    "in_channels": 3,
    "input_size": 64,
    "num_classes": 1000,
    "unconditional_class": False,
    "norm": "td_layer",
}
_LATENT_256: dict[str, Any] = {
    "in_channels": 4,
    "input_size": 32,
    "num_classes": 1000,
    "unconditional_class": True,
    "norm": "td_rms",
}
_LATENT_512 = {**_LATENT_256, "input_size": 64}
_TRIAL: dict[str, Any] = {"in_channels": 3, "num_classes": 10, "unconditional_class": True, "norm": "td_layer"}

VARIANTS: dict[str, DiMRConfig] = {
    "dimr-tiny-3r": DiMRConfig(dims=(96, 48, 24), layers=(5, 2, 2), num_heads=3, input_size=16, **_TRIAL),
    "dimr-small-3r": DiMRConfig(dims=(192, 96, 48), layers=(7, 4, 4), num_heads=3, input_size=32, **_TRIAL),
    "dimr-m-3r": DiMRConfig(dims=(768, 384, 192), layers=(15, 8, 8), num_heads=12, **_PIXELS_64),
    "dimr-l-3r": DiMRConfig(dims=(768, 384, 192), layers=(33, 16, 16), num_heads=12, **_PIXELS_64),
    "dimr-xl-2r": DiMRConfig(dims=(960, 480), layers=(39, 20), num_heads=16, **_LATENT_256),
    "dimr-xl-3r": DiMRConfig(dims=(960, 480, 240), layers=(39, 20, 20), num_heads=16, **_LATENT_512),
    "dimr-g-2r": DiMRConfig(dims=(1152, 576), layers=(57, 28), num_heads=16, **_LATENT_256),
}


def list_models() -> list[str]:
    """Names that :func:`create_model` and :func:`model_config` take, smallest first.

    Example:
        >>> list_models()[0]
        'dimr-tiny-3r'
    """
    return list(VARIANTS)


def model_config(name: str, **overrides: Any) -> DiMRConfig:
    """The named model's or ablation's configuration, with fields replaced.

    An unknown name or field is a ``ValueError``.
    """
    if name not in VARIANTS and name not in ABLATIONS:
        raise ValueError(f"no model is called {name!r}; there are {', '.join((*VARIANTS, *ABLATIONS))}")
    unknown = sorted(set(overrides) - {field.name for field in dataclasses.fields(DiMRConfig)})
    if unknown:
        raise ValueError(f"DiMRConfig has no field {', '.join(map(repr, unknown))}")
    config = VARIANTS[name] if name in VARIANTS else ABLATIONS[name].config
    return dataclasses.replace(config, **overrides)


def create_model(name: str, **overrides: Any) -> DiMR:
    """The named model, newly initialised, for example ``create_model("dimr-xl-2r", norm="td_layer")``.

    Example:
        >>> create_model("dimr-tiny-3r", num_classes=5).config.num_classes
        5
    """
    return DiMR(model_config(name, **overrides))
