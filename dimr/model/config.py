"""The configuration of a DiMR."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ..settings import check_types, from_table, shown

# Values of the fields that the paper's ablations vary, the paper's own value first. Its models have two norms:
# "td_layer" on pixels and "td_rms" on latents.
PAPER_NORMS = ("td_layer", "td_rms")
CHOICES: dict[str, tuple[Any, ...]] = {
    "norm": (*PAPER_NORMS, "layer", "adaln_zero"),
    "modulation": ("linear", "mlp"),
    "mlp": ("geglu", "gelu"),
    "first_branch": ("transformer", "convnext"),
    "cascade": ("add", "concat"),
    "branch_skips": (True, False),
}
DEFAULTS: dict[str, Any] = {k: values[0] for k, values in CHOICES.items() if k != "norm"} | {"patch_size": 1}

KERNEL_SIZES = (3, 5, 7)
LARGEST = 2**24  # of any size; beyond it, tensor sizes overflow before memory runs out
MOST_LAYERS = 2**12  # per branch; each layer takes memory before any weight is read


@dataclasses.dataclass(frozen=True)
class DiMRConfig:
    """Hyperparameters of a DiMR (paper, section 3 and Table 4).

    Branch 0 has the lowest resolution and transformer blocks; the others have ConvNeXt blocks. Branch ``i`` of ``n``
    works at ``input_size / 2**(n - 1 - i)``. The fields after ``norm`` are for the paper's ablations; their defaults
    are its models.

    Args:
        in_channels: channels of the image or latent, and of every prediction.
        input_size: height and width of the input, a multiple of ``patch_size * 2**(branches - 1)``.
        dims: width of each branch, lowest resolution first.
        layers: layers of each branch; ``n`` builds ``2 * (n // 2) + 1`` blocks (half, a middle one, half with skips).
        num_heads: attention heads of branch 0; divides ``dims[0]``.
        num_classes: number of classes, with ids 0 to num_classes - 1.
        unconditional_class: add one more id, ``num_classes``, that means "no class" (needed for guidance).
        kernel_size: kernel size of the depthwise convolutions; 3, 5 or 7.
        mlp_ratio: hidden width of the MLPs divided by the branch's width.
        norm: the blocks' norm, which also decides how the model is conditioned on the time. "td_layer" or "td_rms":
            time-dependent norms in the blocks; the norms of upsampling and output are TD layer norms in both cases.
            "layer": layer norms everywhere, and the time is a token of branch 0 (U-ViT). "adaln_zero": layer norms
            everywhere, and each block computes six vectors from the time that scale, shift and gate (DiT).
        modulation: how adaLN-Zero computes its six vectors from the branch's time embedding: "linear", or with an "mlp"
            in each block.
        mlp: "geglu" or "gelu".
        first_branch: blocks of branch 0: "transformer", or "convnext" with the class added at every position.
        cascade: "add" the upsampled features to the next branch's patches, or "concat" them and project.
        branch_skips: pass the output of every block of a branch on to the next branch, or only the last block's.
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
        check_types(self)
        for name in ("in_channels", "input_size", "num_heads", "num_classes", "kernel_size", "patch_size"):
            _check_size(name, getattr(self, name))
        for name in ("dims", "layers"):
            if not getattr(self, name):
                raise ValueError(f"{name} must have at least one entry")
            for i, value in enumerate(getattr(self, name)):
                _check_size(f"{name}[{i}]", value)
        self._check_choices()
        self._check_sizes()

    def _check_choices(self) -> None:
        for name, values in CHOICES.items():
            value = getattr(self, name)
            if value not in values:
                raise ValueError(f"{name} must be one of {', '.join(map(repr, values))}; got {value!r}")
        if self.modulation != "linear" and self.norm != "adaln_zero":
            raise ValueError(f"modulation={self.modulation!r} needs norm='adaln_zero', got {self.norm!r}")
        if self.norm == "layer" and self.first_branch != "transformer":
            raise ValueError("norm='layer' gives the time as a token, which needs first_branch='transformer'")
        embeds_time = self.dims if self.modulation == "mlp" else self.dims[: self.norm == "layer"]
        for D in embeds_time:  # half of the embedding is sines, half cosines
            if D % 2:
                raise ValueError(f"dims must be even where the timestep is embedded at the branch's width, got {D}")

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
        if not (0 < ratio <= LARGEST and all(ratio * D >= 1 and (ratio * D) % 1 == 0 for D in self.dims)):
            raise ValueError(
                f"mlp_ratio must give a whole number of hidden channels for dims {self.dims}, got {shown(ratio)}"
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
        """Side of each branch's prediction, which is the side of its feature maps times ``patch_size``."""
        return tuple(s * self.patch_size for s in self.resolutions)

    @property
    def blocks(self) -> tuple[int, ...]:
        """Number of blocks of each branch."""
        return tuple(2 * (n // 2) + 1 for n in self.layers)

    @property
    def hidden_dims(self) -> tuple[int, ...]:
        """Hidden width of each branch's MLPs."""
        return tuple(int(self.mlp_ratio * D) for D in self.dims)

    @property
    def num_embeddings(self) -> int:
        """Number of class ids, including the unconditional one."""
        return self.num_classes + int(self.unconditional_class)

    @property
    def has_td_norms(self) -> bool:
        return self.norm in PAPER_NORMS

    @property
    def ablations(self) -> dict[str, Any]:
        """Fields whose value no model of the paper's Table 4 has; empty for the paper's own architecture."""
        found = {k: getattr(self, k) for k, default in DEFAULTS.items() if getattr(self, k) != default}
        return found if self.has_td_norms else {"norm": self.norm, **found}

    def describe_ablations(self) -> str:
        """Format :attr:`ablations` for a message, such as ``norm='layer', patch_size=4``."""
        return ", ".join(f"{k}={v!r}" for k, v in self.ablations.items())

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values for JSON. Fields for ablations are left out where they have their defaults."""
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}
        return {k: v for k, v in values.items() if k not in DEFAULTS or v != DEFAULTS[k]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DiMRConfig:
        """Convert :meth:`to_dict`'s result back; an unknown field is a ValueError."""
        return from_table(cls, values)


def _check_size(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {shown(value)}")
    if value > LARGEST:
        raise ValueError(f"{name} must be at most {LARGEST}, got {shown(value)}")
