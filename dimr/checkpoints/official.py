"""Published checkpoint files: loading, writing, and the tensor names they use.

The published implementation keeps the two halves of a gated projection apart, stores patch and position weights in
other shapes, and stores a gate's weight as ``w - 1``.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..model.config import DiMRConfig
from ..model.network import DiMR, without_weights
from ..model.variants import model_config
from ..utils import replacing
from .weights import (
    CheckpointError,
    check_keys,
    check_weights,
    load_model,
    loadable_weights,
    read_state_dict,
    require_safetensors,
    save_model,
)
from .wrappers import unwrapped

SUFFIXES = (".pth", ".pt", ".safetensors")


def load_official_checkpoint(
    path_or_state_dict: str | os.PathLike[str] | Mapping[str, Tensor],
    config_or_name: DiMRConfig | str,
    key: str | None = None,
) -> DiMR:
    """Load a published checkpoint, or one of a program that trains the model, under the published or our own names.

    Weights inside a dictionary, such as ``{"ema": ...}``, or under prefixes such as ``module.`` are found where there
    is one set of them.

    Args:
        path_or_state_dict: a ``.pth`` file (read with ``weights_only=True``), a ``.safetensors`` file or the index of
            several, or the state dict itself.
        config_or_name: the model's configuration, or a name from :func:`dimr.list_models`.
        key: the set of weights to take where there are several, for example ``"ema"``.

    Returns:
        The model on the CPU, in float32, in evaluation mode.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: an unreadable file, or keys that are missing, unexpected or misshapen, by name.
    """
    config = model_config(config_or_name) if isinstance(config_or_name, str) else config_or_name
    if isinstance(path_or_state_dict, Mapping):
        state, source = path_or_state_dict, "state dict"
    else:
        state, source = read_state_dict(path_or_state_dict), os.fspath(path_or_state_dict)
    weights = from_any_state_dict(unwrapped(state, source, key), config, source)
    model = without_weights(config)
    model.load_state_dict(weights, assign=True)
    for parameter in model.parameters():
        parameter.requires_grad_()
    return model.eval()


def convert_to_folder(
    source: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    config_or_name: DiMRConfig | str,
    key: str | None = None,
) -> Path:
    """Convert a file that :func:`load_official_checkpoint` reads to a folder for :func:`load_model`."""
    return save_model(load_official_checkpoint(source, config_or_name, key), folder)


def convert_to_published(folder: str | os.PathLike[str], target: str | os.PathLike[str]) -> Path:
    """Convert a model's folder to one file under the published names, ``.pth`` or ``.safetensors``.

    Converting there and back changes no tensor but the gates' weights, where ``(w - 1) + 1`` rounds to float32.
    """
    target = Path(target)
    if target.suffix not in SUFFIXES:
        raise CheckpointError(f"{target} must end in {', '.join(SUFFIXES)}")
    return publish(load_model(folder), target)


def publish(model: DiMR, target: Path) -> Path:
    """Write the model under the published names to a file whose suffix is one of ``SUFFIXES``."""
    write = require_safetensors().torch.save_file if target.suffix == ".safetensors" else torch.save
    state = to_official_state_dict(model)
    with replacing(target) as temporary:
        write(state, temporary)
    return target


def from_any_state_dict(
    state: Mapping[str, Tensor], config: DiMRConfig, source: str = "state dict"
) -> dict[str, Tensor]:
    """Convert tensors under published names or our own to our own, as newly allocated float32 tensors."""
    if not any(name.startswith("branches.") for name in state):
        return from_official_state_dict(state, config, source)
    check_weights(state, source)
    shapes = {name: tuple(p.shape) for name, p in without_weights(config).named_parameters()}
    check_keys({name: tuple(v.shape) for name, v in state.items()}, shapes, source)
    return {name: state[name].to("cpu", torch.float32, copy=True) for name in shapes}


def from_official_state_dict(
    state: Mapping[str, Tensor], config: DiMRConfig, source: str = "state dict"
) -> dict[str, Tensor]:
    """Convert published tensors to this package's names, as newly allocated float32 tensors."""
    check_weights(state, source)
    check_keys({name: tuple(v.shape) for name, v in state.items()}, official_shapes(config), source)
    return {entry.ours: _to_ours(entry, state) for entry in entries(config)}


def to_official_state_dict(model: DiMR) -> dict[str, Tensor]:
    """Return the model's weights under the published names, float32, on the CPU."""
    state = loadable_weights(model)
    published: dict[str, Tensor] = {}
    for entry in entries(model.config):
        value = state[entry.ours].detach().to("cpu", torch.float32)
        parts = (value - entry.offset if entry.offset else value).chunk(len(entry.published))
        for name, part in zip(entry.published, parts, strict=True):
            published[name] = part.reshape(entry.published_shape).clone()
    return published


def _to_ours(entry: Entry, state: Mapping[str, Tensor]) -> Tensor:
    value = torch.cat([state[name].to("cpu", torch.float32) for name in entry.published])
    return (value + entry.offset if entry.offset else value).reshape(entry.shape)


# The published names of every parameter


@dataclasses.dataclass(frozen=True)
class Entry:
    """A parameter and the published tensors it is made from."""

    ours: str
    published: tuple[str, ...]
    """Several tensors are concatenated along dimension 0."""
    published_shape: tuple[int, ...]
    """The shape of each published tensor."""
    shape: tuple[int, ...]
    """The shape of the parameter."""
    offset: float = 0.0
    """Added to the published values."""


def entries(config: DiMRConfig) -> list[Entry]:
    """List every parameter in the model's order. Ablations have no published names and raise a CheckpointError."""
    if config.ablations:
        raise CheckpointError(
            f"published checkpoints have the paper's own architecture only, not {config.describe_ablations()}"
        )
    return [entry for branch in range(config.num_branches) for entry in _branch(config, branch)]


def official_shapes(config: DiMRConfig) -> dict[str, tuple[int, ...]]:
    """Map each published name to its tensor's shape."""
    return {name: entry.published_shape for entry in entries(config) for name in entry.published}


def _plain(ours: str, published: str, shape: tuple[int, ...]) -> Entry:
    return Entry(ours, (published,), shape, shape)


def _linear(ours: str, published: str, dim_in: int, dim_out: int, bias: bool = True) -> Iterator[Entry]:
    yield _plain(f"{ours}.weight", f"{published}.weight", (dim_out, dim_in))
    if bias:
        yield _plain(f"{ours}.bias", f"{published}.bias", (dim_out,))


def _gated(ours: str, published: str, names: tuple[str, str], D: int) -> Iterator[Entry]:
    """A time-dependent vector: its two end points and the gate that blends them."""
    kind = "scale" if names == ("p1", "p2") else "shift"
    yield _plain(f"{ours}.{names[0]}", f"{published}.param0", (D,))
    yield _plain(f"{ours}.{names[1]}", f"{published}.param1", (D,))
    yield Entry(f"{ours}.{kind}_gate_weight", (f"{published}.nodecay_weight",), (D,), (D,), offset=1.0)
    yield _plain(f"{ours}.{kind}_gate_offset", f"{published}.nodecay_bias", (D,))


def _layer_norm(ours: str, published: str, D: int) -> Iterator[Entry]:
    yield from _gated(ours, f"{published}.weight", ("p1", "p2"), D)
    yield from _gated(ours, f"{published}.bias", ("p3", "p4"), D)


def _block_norm(config: DiMRConfig, ours: str, published: str, D: int) -> Iterator[Entry]:
    if config.norm == "td_layer":
        yield from _layer_norm(ours, published, D)
    else:
        yield from _gated(ours, f"{published}.scale", ("p1", "p2"), D)


def _mlp(ours: str, published: str, D: int, hidden: int) -> Iterator[Entry]:
    gate, value = f"{published}.w0", f"{published}.w1"
    yield Entry(f"{ours}.geglu.proj.weight", (f"{gate}.weight", f"{value}.weight"), (hidden, D), (2 * hidden, D))
    yield Entry(f"{ours}.geglu.proj.bias", (f"{gate}.bias", f"{value}.bias"), (hidden,), (2 * hidden,))
    yield from _linear(f"{ours}.out", f"{published}.w2", hidden, D)


def _transformer_block(config: DiMRConfig, ours: str, published: str, D: int, hidden: int) -> Iterator[Entry]:
    yield from _block_norm(config, f"{ours}.norm1", f"{published}.block1.norm", D)
    yield from _linear(f"{ours}.attn.qkv", f"{published}.block1.query_key_value", D, 3 * D, bias=False)
    yield from _linear(f"{ours}.attn.out", f"{published}.block1.dense", D, D)
    yield from _block_norm(config, f"{ours}.norm2", f"{published}.block2.norm", D)
    yield from _mlp(f"{ours}.mlp", f"{published}.block2", D, hidden)


def _convnext_block(config: DiMRConfig, ours: str, published: str, D: int, hidden: int) -> Iterator[Entry]:
    K = config.kernel_size
    yield Entry(f"{ours}.conv.weight", (f"{published}.block1.1.weight",), (D, 1, K, K), (D, 1, K, K))
    yield _plain(f"{ours}.conv.bias", f"{published}.block1.1.bias", (D,))
    yield from _block_norm(config, f"{ours}.norm", f"{published}.block2.norm", D)
    yield from _mlp(f"{ours}.mlp", f"{published}.block2", D, hidden)


def _branch(config: DiMRConfig, i: int) -> Iterator[Entry]:
    ours, published = f"branches.{i}", f"stages.{i}"
    C, D, p, s = config.in_channels, config.dims[i], config.patch_sizes[i], config.resolutions[i]
    yield Entry(
        f"{ours}.embed.position", (f"{published}.input_layer.3.position_embeddings.weight",), (s * s, D), (s, s, D)
    )
    yield Entry(f"{ours}.embed.proj.weight", (f"{published}.input_layer.1.weight",), (D, C, p, p), (D, C * p * p))
    yield _plain(f"{ours}.embed.proj.bias", f"{published}.input_layer.1.bias", (D,))
    block = _transformer_block if i == 0 else _convnext_block
    for n in range(config.blocks[i]):
        yield from block(config, f"{ours}.blocks.{n}", f"{published}.blocks.{n}", D, config.hidden_dims[i])
    for n in range(config.blocks[i] // 2):
        yield from _linear(f"{ours}.skips.{n}", f"{published}.skip_denses.{n}", 2 * D, D)
    yield from _layer_norm(f"{ours}.head.norm", f"{published}.output_layer.0", D)
    yield _plain(f"{ours}.head.conv.weight", f"{published}.output_layer.2.weight", (C, D, 3, 3))
    yield _plain(f"{ours}.head.conv.bias", f"{published}.output_layer.2.bias", (C,))
    if i == 0:
        embeddings = (config.num_embeddings, D)
        yield _plain(f"{ours}.class_embedding.weight", f"{published}.class_embeds.weight", embeddings)
    else:
        lower = config.dims[i - 1] * (config.blocks[i - 1] + 1)
        yield from _layer_norm(f"{ours}.upsample.norm_in", f"{published}.upsample.0", lower)
        yield from _linear(f"{ours}.upsample.proj", f"{published}.upsample.1.kernel", lower, 4 * D)
        yield from _layer_norm(f"{ours}.upsample.norm_out", f"{published}.upsample.2", D)
