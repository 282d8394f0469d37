"""Named configurations: the paper's models (Table 4), small ones for trials, and its ablations (Tables 2 and 3)."""

from __future__ import annotations

import dataclasses
from typing import Any

from .config import DiMRConfig
from .network import DiMR

_PIXELS_64: dict[str, Any] = {
    "in_channels": 3, "input_size": 64, "num_classes": 1000, "unconditional_class": False, "norm": "td_layer",
}  # fmt: skip
_LATENT_256: dict[str, Any] = {
    "in_channels": 4, "input_size": 32, "num_classes": 1000, "unconditional_class": True, "norm": "td_rms",
}  # fmt: skip
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
    """List the names of the models, smallest first.

    Example:
        >>> list_models()[0]
        'dimr-tiny-3r'
    """
    return list(VARIANTS)


def model_config(name: str, **overrides: Any) -> DiMRConfig:
    """Return the configuration of the named model or ablation, with fields replaced by ``overrides``.

    Raises:
        ValueError: an unknown name or field.
    """
    if name not in VARIANTS and name not in ABLATIONS:
        raise ValueError(f"no model is called {name!r}; there are {', '.join((*VARIANTS, *ABLATIONS))}")
    config = VARIANTS[name] if name in VARIANTS else ABLATIONS[name].config
    return DiMRConfig.from_dict(config.to_dict() | overrides)


def create_model(name: str, **overrides: Any) -> DiMR:
    """Create the named model with new weights, for example ``create_model("dimr-xl-2r", norm="td_layer")``.

    Example:
        >>> create_model("dimr-tiny-3r", num_classes=5).config.num_classes
        5
    """
    return DiMR(model_config(name, **overrides))


# The paper's ablations (Tables 2 and 3), all on ImageNet-64 at size M
#
# Two parameter counts of Table 2 do not determine the architecture. These configurations reach them, and no more is
# claimed:
#
# - adaLN-Zero, multi-branch (217.9 M): six vectors in every block, a norm before each ConvNeXt block's convolution too,
#   and a time MLP 256 -> D -> D in every branch; the layer norms keep weights and biases. 217.94 M.
# - adaLN-Zero (202.4 M): DiT's own six vectors per block, with any time MLP, fall 9 M short. A hidden layer D -> D
#   before each block's six and one time MLP D -> D -> D make 121 layers of D x D more than U-ViT has. 202.40 M.
#
# Table 3's counts are unknown. Its first branch without attention adds the class at every position, its concatenation
# is projected back to the branch's width, and a cascade without skips passes on the last feature only.

_ABLATION_64: dict[str, Any] = {
    "in_channels": 3, "input_size": 64, "num_classes": 1000, "unconditional_class": False,
}  # fmt: skip
_FINEST_ONLY = (0.0, 0.0, 1.0)
_MULTI_SCALE = (1 / 16, 1 / 4, 1.0)


def uvit_config(dim: int, depth: int, num_heads: int, patch_size: int, **fields: Any) -> DiMRConfig:
    """Configure a U-ViT (Bao et al. 2023): one transformer branch with long skips, the time and the class as tokens.

    Args:
        depth: number of blocks; an even number gets one more.
        fields: other fields of the configuration, such as ``input_size``; they may replace U-ViT's own.
    """
    own: dict[str, Any] = {"mlp": "gelu", "mlp_ratio": 4, "norm": "layer"}
    return DiMRConfig(dims=(dim,), layers=(depth,), num_heads=num_heads, patch_size=patch_size, **(own | fields))


@dataclasses.dataclass(frozen=True)
class Ablation:
    """A row of one of the tables.

    Attributes:
        source: table and row in the paper.
        config: the model's configuration.
        loss_weights: weights of the branches' losses, lowest resolution first.
        paper_parameters: the paper's parameter count in millions; None if unknown.
    """

    source: str
    config: DiMRConfig
    loss_weights: tuple[float, ...]
    paper_parameters: float | None = None

    def recipe_overrides(self, name: str) -> tuple[str, ...]:
        """Overrides that turn M/3R's recipe into that of this ablation, called ``name``, for ``dimr train --set``."""
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
    """List the names of the paper's ablations, in its order. :func:`dimr.create_model` takes them too."""
    return list(ABLATIONS)
