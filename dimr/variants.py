"""The paper's models (Table 4) and small ones for trials, by name."""

from __future__ import annotations

import dataclasses
from typing import Any

from .ablations.table import ABLATIONS
from .config import DiMRConfig
from .network import DiMR

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
