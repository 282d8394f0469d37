"""Fields of a configuration in which the paper's ablations differ from its models, and what fits together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..config import DiMRConfig

# The paper's choice first. The norm has two: "td_layer" in pixels, "td_rms" on latents.
CHOICES: dict[str, tuple[Any, ...]] = {
    "norm": ("td_layer", "td_rms", "layer", "adaln_zero"),
    "modulation": ("linear", "mlp"),
    "mlp": ("geglu", "gelu"),
    "first_branch": ("transformer", "convnext"),
    "cascade": ("add", "concat"),
    "branch_skips": (True, False),
}
DEFAULTS: dict[str, Any] = {k: values[0] for k, values in CHOICES.items() if k != "norm"} | {"patch_size": 1}
TD_NORMS = ("td_layer", "td_rms")


def check_choices(config: DiMRConfig) -> None:
    """Raises ValueError or TypeError, by name, for a choice that does not exist or does not fit the others."""
    if not isinstance(config.branch_skips, bool):
        raise TypeError(f"branch_skips must be True or False, got {config.branch_skips!r}")
    for name, values in CHOICES.items():
        value = getattr(config, name)
        if value not in values:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, values))}; got {value!r}")
    if config.modulation != "linear" and config.norm != "adaln_zero":
        raise ValueError(f"modulation={config.modulation!r} needs norm='adaln_zero', got {config.norm!r}")
    if config.norm == "layer" and config.first_branch != "transformer":
        raise ValueError("norm='layer' gives the time as a token, which needs first_branch='transformer'")
    embeds_time = config.dims if config.modulation == "mlp" else config.dims[: config.norm == "layer"]
    for D in embeds_time:  # as many sines as cosines
        if D % 2:
            raise ValueError(f"dims must be even where the timestep is embedded at the branch's width, got {D}")


def ablated(config: DiMRConfig) -> dict[str, Any]:
    """The fields that no model of the paper's Table 4 has so; empty for its own architecture."""
    found = {k: getattr(config, k) for k, default in DEFAULTS.items() if getattr(config, k) != default}
    return found if config.norm in TD_NORMS else {"norm": config.norm, **found}


def described(config: DiMRConfig) -> str:
    """For messages: ``norm='layer', patch_size=4``."""
    return ", ".join(f"{k}={v!r}" for k, v in ablated(config).items())
