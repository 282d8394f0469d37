"""Fields of a configuration in which the paper's ablations differ from its models, and what fits together."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

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


# What a DiMR is made of.


KERNEL_SIZES = (3, 5, 7)
LARGEST = 2**24  # of any size, beyond which sizes of tensors would overflow before memory runs out
MOST_LAYERS = 2**12  # of a branch; each takes a place in memory before any weight is looked at


@dataclasses.dataclass(frozen=True)
class DiMRConfig:
    """Hyperparameters of a DiMR (paper, section 3 and Table 4).

    Branch 0 has the lowest resolution and transformer blocks; the others have ConvNeXt blocks. Branch ``i`` of ``n``
    works at ``input_size / 2**(n - 1 - i)``. The fields after ``norm`` are for the paper's ablations; their defaults
    are its models.

    Args:
        in_channels: channels of the image or latent, and of every prediction.
        input_size: its height and width, a multiple of ``patch_size * 2**(branches - 1)``.
        dims: width of each branch, lowest resolution first.
        layers: layers of each branch; ``n`` builds ``2 * (n // 2) + 1`` blocks (half, a middle one, half with skips).
        num_heads: attention heads of branch 0; divides ``dims[0]``.
        num_classes: classes that can be asked for, ids 0 .. num_classes - 1.
        unconditional_class: whether one more id, ``num_classes``, stands for "no class" (needed for guidance).
        kernel_size: of the depthwise convolutions; 3, 5 or 7.
        mlp_ratio: hidden width of the MLPs over the branch's width.
        norm: the blocks' norm and with it the way the time enters. "td_layer" or "td_rms": time-dependent norms;
            those of upsampling and output are TD layer norms with either. "layer": layer norms everywhere, the time is
            a token of branch 0 (U-ViT). "adaln_zero": layer norms everywhere; in each block six vectors made from the
            time scale, shift and gate (DiT).
        modulation: how adaLN-Zero makes them: "linear" from the branch's time embedding, or by an "mlp" of the block's.
        mlp: "geglu" or "gelu".
        first_branch: blocks of branch 0, "transformer" or "convnext", to which the class is added at every position.
        cascade: upsampled features are "add"ed to the next branch's patches, or "concat"enated and projected.
        branch_skips: whether every feature of a branch goes into the next one, or the last only.
        patch_size: side of the finest branch's patches of the input.

    Raises:
        ValueError, TypeError: a field that does not fit, by name.
    """

    in_channels: int = 4
    input_size: int = 32
    dims: tuple[int, ...] = (960, 480)
    layers: tuple[int, ...] = (39, 20)
    num_heads: int = 16
    num_classes: int = 1000
    unconditional_class: bool = True
    kernel_size: int = 7
    mlp_ratio: float = 2
    norm: str = "td_rms"
    modulation: str = "linear"
    mlp: str = "geglu"
    first_branch: str = "transformer"
    cascade: str = "add"
    branch_skips: bool = True
    patch_size: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "dims", _positive_integers("dims", self.dims))
        object.__setattr__(self, "layers", _positive_integers("layers", self.layers))
        for name in ("in_channels", "input_size", "num_heads", "num_classes", "kernel_size", "patch_size"):
            _check_positive_integer(name, getattr(self, name))
        if not isinstance(self.unconditional_class, bool):
            raise TypeError(f"unconditional_class must be True or False, got {self.unconditional_class!r}")
        check_choices(self)
        self._check_sizes()

    def _check_sizes(self) -> None:
        if max(self.layers) > MOST_LAYERS:
            raise ValueError(f"layers must be at most {MOST_LAYERS}, got {max(self.layers)}")
        if len(self.dims) > self.input_size.bit_length():
            raise ValueError(f"input_size = {self.input_size} cannot be halved for {len(self.dims)} branches")
        if len(self.dims) != len(self.layers):
            raise ValueError(f"layers must have one entry per branch: dims is {self.dims}, layers is {self.layers}")
        if self.input_size % self.patch_sizes[0]:
            raise ValueError(
                f"input_size must be a multiple of {self.patch_sizes[0]} for {self.num_branches} branches, "
                f"got {self.input_size}"
            )
        if self.dims[0] % self.num_heads:
            raise ValueError(f"num_heads must divide dims[0] = {self.dims[0]}, got {self.num_heads}")
        if self.kernel_size not in KERNEL_SIZES:
            raise ValueError(f"kernel_size must be one of {', '.join(map(str, KERNEL_SIZES))}; got {self.kernel_size}")
        ratio = self.mlp_ratio
        if isinstance(ratio, bool) or not isinstance(ratio, (int, float)):
            raise TypeError(f"mlp_ratio must be a number, got {ratio!r}")
        if not (0 < ratio <= LARGEST and all(ratio * D >= 1 and (ratio * D) % 1 == 0 for D in self.dims)):
            raise ValueError(
                f"mlp_ratio must give a whole number of hidden channels for dims {self.dims}, got {_short(ratio)}"
            )

    @property
    def num_branches(self) -> int:
        return len(self.dims)

    @property
    def patch_sizes(self) -> tuple[int, ...]:
        """Side of each branch's patches of the input."""
        return tuple(self.patch_size * 2 ** (self.num_branches - 1 - i) for i in range(self.num_branches))

    @property
    def resolutions(self) -> tuple[int, ...]:
        """Side of each branch's feature maps."""
        return tuple(self.input_size // p for p in self.patch_sizes)

    @property
    def prediction_sizes(self) -> tuple[int, ...]:
        """Side of each branch's prediction: its feature maps' but for models with a ``patch_size``."""
        return tuple(s * self.patch_size for s in self.resolutions)

    @property
    def blocks(self) -> tuple[int, ...]:
        """Blocks that each branch has."""
        return tuple(2 * (n // 2) + 1 for n in self.layers)

    @property
    def hidden_dims(self) -> tuple[int, ...]:
        """Hidden width of each branch's MLPs."""
        return tuple(int(self.mlp_ratio * D) for D in self.dims)

    @property
    def num_embeddings(self) -> int:
        """Class ids the model knows, the unconditional one included."""
        return self.num_classes + int(self.unconditional_class)

    @property
    def has_td_norms(self) -> bool:
        return self.norm in TD_NORMS

    @property
    def ablations(self) -> dict[str, Any]:
        """The fields that no model of the paper's Table 4 has so; empty for its own architecture."""
        return ablated(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON. Fields for ablations are there only where they differ from the paper's models."""
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}
        return {k: v for k, v in values.items() if k not in DEFAULTS or v != DEFAULTS[k]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DiMRConfig:
        """The inverse of :meth:`to_dict`; a field that does not exist is an error."""
        unknown = sorted(set(values) - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise ValueError(f"DiMRConfig has no field {', '.join(map(repr, unknown))}")
        return cls(**values)


def _check_positive_integer(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {_short(value)}")
    if value > LARGEST:
        raise ValueError(f"{name} must be at most {LARGEST}, got {_short(value)}")


def _short(number: float) -> str:
    """Python itself refuses to write out integers of thousands of digits."""
    if isinstance(number, int) and number.bit_length() > 64:
        return f"an integer of {number.bit_length()} bits"
    return str(number)


def _positive_integers(name: str, values: object) -> tuple[int, ...]:
    if not isinstance(values, (tuple, list)):
        raise TypeError(f"{name} must be a sequence of integers, got {values!r}")
    if not values:
        raise ValueError(f"{name} must have at least one entry")
    for i, value in enumerate(values):
        _check_positive_integer(f"{name}[{i}]", value)
    return tuple(values)
