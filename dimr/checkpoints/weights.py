"""Weights on disk: state dicts from files that may be truncated, foreign or hostile, and folders that hold a model.

A model's folder has ``model.safetensors`` and ``config.json``; that of a run also ``weights.json``.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dimr_kernels.checks import is_plain_tensor

from ..model.config import DiMRConfig
from ..model.modified import plain_view
from ..model.network import DiMR, without_weights
from ..utils import UserError, first_line, read_json, replacing, require, write_json

logger = logging.getLogger(__name__)

WEIGHTS = "model.safetensors"
# In a folder STEP.ckpt of the published code.
PUBLISHED = {"ema": "nnet_ema.pth", "raw": "nnet.pth"}
KINDS = tuple(PUBLISHED)
INDEX_SUFFIX = ".index.json"  # of the index of shards, after the name that one file would have
SHARD = re.compile(r"-\d{5}-of-(\d{5})\.")
ABOUT = "weights.json"  # in the folder of a run's model: which of the run's weights it has
CONFIG = "config.json"
NAMES_SHOWN = 10


class CheckpointError(UserError, ValueError):
    """A checkpoint that cannot be read or does not fit the model."""


def save_model(model: DiMR, folder: str | os.PathLike[str]) -> Path:
    """Write the model's weights, in their own dtypes, and its configuration. Existing files are replaced atomically.

    Adapters (peft) and parametrizations are merged into the weights that are written; the model is not changed. Other
    changes that other libraries make to layers cannot be saved: a warning names them where the weights themselves fit.

    Raises:
        CheckpointError: the model has other weights than its configuration says, or weights without data or of a class
            of their own (quantised, sharded), so that the folder could not be loaded.

    Example:
        >>> import tempfile, dimr
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = dimr.save_model(dimr.create_model("dimr-tiny-3r"), folder)
        ...     dimr.load_model(folder).config.dims
        (96, 48, 24)
    """
    return write_model(loadable_weights(model), model.config, folder)


def loadable_weights(model: DiMR) -> dict[str, Tensor]:
    """Return the weights as :func:`save_model` writes them, adapters and parametrizations merged.

    Raises:
        CheckpointError: see :func:`save_model`.
    """
    view = plain_view(model)
    weights = view.model.state_dict()
    wanted = {name: tuple(p.shape) for name, p in without_weights(model.config).named_parameters()}
    changes = [f"{path or 'the model'} {what}" for path, what in view.modified.items()]
    cause = f" ({shortened(changes)})" if changes else ""
    try:
        check_keys({name: tuple(value.shape) for name, value in weights.items()}, wanted, "its state")
        for name, value in weights.items():
            if value.is_meta:
                raise CheckpointError(f"{name} has no data here, but on the meta device")
            if not is_plain_tensor(value):
                raise CheckpointError(f"{name} is of class {type(value).__name__}")
    except CheckpointError as error:
        raise CheckpointError(f"this model cannot be saved so that it loads again: {error}{cause}") from None
    if changes:
        logger.warning("the saved weights are without what else the model computes: %s", shortened(changes))
    return weights


def write_model(weights: Mapping[str, Tensor], config: DiMRConfig, folder: str | os.PathLike[str]) -> Path:
    """Write a model's folder from a state dict and a configuration."""
    safetensors = require_safetensors()
    folder = Path(folder)
    tensors = {name: value.detach().contiguous() for name, value in weights.items()}
    try:
        with replacing(folder / WEIGHTS) as temporary:
            safetensors.torch.save_file(tensors, temporary)
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{folder / WEIGHTS} cannot be written: {error}") from error
    write_json(folder / CONFIG, config.to_dict())
    return folder


def load_model(folder: str | os.PathLike[str], device: torch.device | str = "cpu") -> DiMR:
    """Load a model that :func:`save_model` wrote, in evaluation mode.

    Raises:
        FileNotFoundError: the folder or one of its two files is missing.
        CheckpointError: a file is damaged, or weights and configuration do not fit each other.
    """
    folder = Path(folder)
    config, file = read_config(folder), weights_file(folder)
    return model_of(read_state_dict(file), config, str(file)).to(device).eval()


def model_of(weights: Mapping[str, Tensor], config: DiMRConfig, source: str) -> DiMR:
    """Build a model of the tensors themselves; ``source`` is what messages call them.

    Raises:
        CheckpointError: weights and configuration do not fit each other.
    """
    model = _empty_model(config, source)
    check_weights(weights, source)
    wanted = {name: tuple(p.shape) for name, p in model.named_parameters()}
    check_keys({name: tuple(v.shape) for name, v in weights.items()}, wanted, source)
    model.load_state_dict(weights, assign=True)
    return model


def weights_file(folder: Path) -> Path:
    """Return the path of a model folder's weights: one file, or the index of shards."""
    index = folder / f"{WEIGHTS}{INDEX_SUFFIX}"
    return index if index.is_file() and not (folder / WEIGHTS).is_file() else folder / WEIGHTS


def read_config(folder: Path) -> DiMRConfig:
    """Read the configuration in a model's folder.

    Raises:
        FileNotFoundError: there is none.
        CheckpointError: it is damaged.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"no configuration at {path}{_hint(folder)}")
    try:
        values = read_json(path)
        if not isinstance(values, dict):
            raise TypeError(f"wanted an object, got {type(values).__name__}")
        return DiMRConfig.from_dict(values)
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path} is not a DiMR configuration: {error}") from error


def _hint(folder: Path) -> str:
    """Suggest what to do with a run's output folder, or with a checkpoint folder of the published code."""
    if (folder / PUBLISHED["ema"]).is_file():
        return f"; it is a checkpoint of the published code, which dimr convert {folder} OUT --model NAME converts"
    if (folder / "model_index.json").is_file():
        return f"; it is a pipeline of diffusers, which dimr convert {folder} OUT converts"
    found = [folder / name for name in ("model", "checkpoint") if (folder / name / CONFIG).is_file()]
    return f"; did you mean {found[0]}?" if found else ""


def _empty_model(config: DiMRConfig, source: str) -> DiMR:
    try:
        return without_weights(config)
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:  # sizes whose product exceeds 64 bits
        raise CheckpointError(
            f"{source}: no memory can hold the model that is described: {first_line(error)}"
        ) from error


# Which weights of a run a folder has

MUCH = 0.1  # share of the initial weights in an average that is worth a warning


class SavedWeights(NamedTuple):
    """A set of weights on disk.

    Attributes:
        tensors: by published names or our own.
        config: None where the file does not say it.
        file: the file that the tensors were read from.
        kind: "ema" or "raw"; None where that is unknown.
        step: number of steps of training; None where that is unknown.
        initial_share: share of the average that is the weights which training began with; 0 for raw weights.
    """

    tensors: dict[str, Tensor]
    config: DiMRConfig | None
    file: Path
    kind: str | None = None
    step: int | None = None
    initial_share: float = 0.0

    def describe(self) -> str:
        """Say what the weights are, such as ``the average after 300 steps in run/checkpoints/step-00000300.pt``."""
        kind = {"ema": "the average", "raw": "the raw weights", None: "the weights"}[self.kind]
        return f"{kind}{'' if self.step is None else f' after {self.step} steps'} in {self.file}"

    def warning(self) -> str | None:
        """Say how much of an average is still the weights that training began with, if it is much."""
        if self.initial_share < MUCH:
            return None
        return (
            f"{self.describe()}: {self.initial_share:.1%} of it is still what training began with; "
            f"--weights raw on the run's folder takes the weights of the last step"
        )


def read_model_folder(folder: Path, kind: str | None = None) -> SavedWeights:
    """Read the weights in a model's folder, which must be of this ``kind``, unless it is None.

    Raises:
        FileNotFoundError: the configuration or the weights are missing.
        CheckpointError: a file is damaged, or the weights are known to be others.
    """
    config, file = read_config(folder), weights_file(folder)
    about = read_about(folder)
    found = about.get("weights")
    if kind not in (None, found):
        holds = "the average only" if found == "ema" else "one set of weights only"
        raise CheckpointError(f"--weights {kind}: {folder} holds {holds}; give the folder of its run")
    return SavedWeights(read_state_dict(file), config, file, found, about.get("step"), about.get("initial_share", 0.0))


def write_about(folder: Path, kind: str, step: int, initial_share: float) -> None:
    """Write beside a run's model which of the run's weights it has."""
    write_json(folder / ABOUT, {"weights": kind, "step": step, "initial_share": initial_share})


def read_about(folder: Path) -> dict[str, Any]:
    """Read what :func:`write_about` wrote; nothing where there is no such file.

    Raises:
        CheckpointError: the file is damaged.
    """
    if not (folder / ABOUT).is_file():
        return {}
    try:
        about = read_json(folder / ABOUT)
        fits = about["weights"] in KINDS and type(about["step"]) is int and 0 <= about["initial_share"] <= 1
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{folder / ABOUT} cannot be read: {type(error).__name__}: {error}") from error
    if not fits:
        raise CheckpointError(f"{folder / ABOUT}: wanted weights, step and initial_share, found {about}")
    return about


# State dicts


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read the tensors of a ``.safetensors`` file, or of any file that ``torch.save`` wrote, to the CPU.

    Shards are read through their index, ``model.safetensors.index.json``. Nothing in a file is executed
    (``weights_only=True``).
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    if path.name.endswith(INDEX_SUFFIX):
        return _read_shards(path)
    if (shard := SHARD.search(path.name)) and int(shard[1]) > 1:
        raise CheckpointError(f"{path} is one of {int(shard[1])} shards: give their index, FILE{INDEX_SUFFIX}")
    return _read_file(path)


def _read_file(path: Path) -> dict[str, Tensor]:
    state = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    if not isinstance(state, Mapping) or not all(isinstance(key, str) for key in state):
        raise CheckpointError(f"{path} holds a {type(state).__name__}, not a state dict of named tensors")
    return dict(state)


def _read_shards(index: Path) -> dict[str, Tensor]:
    try:
        files = read_json(index)["weight_map"]
        if not all(Path(file).name == file and not file.endswith(INDEX_SUFFIX) for file in files.values()):
            raise ValueError("wanted the names of files beside it")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{index} is not an index of shards: {type(error).__name__}: {error}") from error
    missing = sorted({file for file in files.values() if not (index.parent / file).is_file()})
    if missing:
        raise CheckpointError(f"{index} lists shards that are not there: {shortened(missing)}")
    shards = {file: _read_file(index.parent / file) for file in sorted(set(files.values()))}
    lost = [name for name, file in files.items() if name not in shards[file]]
    if lost:
        raise CheckpointError(f"{index} lists tensors that its shards lack: {shortened(lost)}")
    return {name: shards[file][name] for name, file in files.items()}


def require_safetensors() -> ModuleType:
    """Import the package safetensors and its ``torch`` module."""
    require("safetensors.torch", "demo", "a .safetensors checkpoint")
    return require("safetensors", "demo", "a .safetensors checkpoint")


def _read_safetensors(path: Path) -> Mapping[str, Tensor]:
    safetensors = require_safetensors()
    try:
        return safetensors.torch.load_file(path)
    except Exception as error:  # besides its own error, many others where the header's values are wrong
        raise CheckpointError(f"{path} is not a whole safetensors file: {first_line(error)}") from error


def _read_torch(path: Path) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler fails on damaged files with errors of many types
        foreign = re.search(r"GLOBAL (\S+)", str(error))
        if foreign:
            reason = f"it holds {foreign[1]}"
        elif "load DTensors" in str(error):
            reason = "it holds shards of tensors (DTensor): save whole ones"
        elif "Weights only" in str(error):  # torch's message, which advises to load the file unsafely
            reason = "it is something else"
        else:
            reason = f"{type(error).__name__}: {first_line(error)}"
        raise CheckpointError(f"{path} is not a whole file of tensors written by torch.save: {reason}") from error


def check_weights(state: Mapping[str, object], source: str) -> None:
    """Raise a :class:`CheckpointError` for a value that is not a plain, dense floating-point tensor."""
    for name, value in state.items():
        if not isinstance(value, Tensor) or not is_plain_tensor(value):
            raise CheckpointError(f"{source}: {name} must be a floating-point tensor, got {type(value).__name__}")
        if not value.is_floating_point() or value.layout != torch.strided or value.is_meta:
            found = f"a {value.dtype} tensor ({value.layout}, {value.device})"
            raise CheckpointError(f"{source}: {name} must be a floating-point tensor with data, got {found}")


def check_keys(
    found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]], source: str = "checkpoint"
) -> None:
    """Compare names and shapes; raise one :class:`CheckpointError` that lists every mismatch."""
    misshapen = [
        f"{key} (found {list(found[key])}, wanted {list(shape)})"
        for key, shape in wanted.items()
        if key in found and tuple(found[key]) != tuple(shape)
    ]
    problems = {
        "missing": [key for key in wanted if key not in found],
        "unexpected": [key for key in found if key not in wanted],
        "misshapen": misshapen,
    }
    lines = [f"{len(names)} {kind}: {shortened(names)}" for kind, names in problems.items() if names]
    if lines:
        raise CheckpointError(f"{source} does not fit the model: " + "; ".join(lines))


def shortened(names: Sequence[str]) -> str:
    """Join the names with commas; a long list ends with the number of names left out."""
    shown = ", ".join(names[:NAMES_SHOWN])
    return shown if len(names) <= NAMES_SHOWN else f"{shown}, and {len(names) - NAMES_SHOWN} more"
