"""Networks that turn images into features."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import itertools
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checkpoints import CheckpointError
from ..checkpoints.weights import read_state_dict
from ..utils import file_sha256, first_line, is_out_of_memory, require, weights_sha256
from .metrics import EvaluationError

SPATIAL_CHANNELS = 7  # of the intermediate map, as in ADM's evaluation suite
LARGEST_SPATIAL = 8192  # its covariance takes 512 MiB


class Features(NamedTuple):
    """Features of a batch of images."""

    pooled: Tensor  # [B, D]
    logits: Tensor | None  # [B, classes]
    spatial: Tensor | None  # [B, S]


@dataclasses.dataclass(frozen=True)
class FeatureExtractor:
    """A network with its description for reports.

    Args:
        module: maps uint8 images ``[B, 3, H, W]`` to features ``[B, D]``, or to a mapping with ``"features"`` and,
            optionally, ``"logits" [B, classes]`` and ``"spatial" [B, C, h, w]``, an intermediate feature map.
        name: name that metrics on it get.
        sha256: hash of its weights.
        resize: side of the square that images are resized to first, bicubic with antialiasing; None does not resize.
        own_resize: description of the resizing that the network itself does.
        is_fid: True for the network that FID, sFID and the Inception Score are defined on.
    """

    module: nn.Module
    name: str
    sha256: str
    resize: int | None = None
    own_resize: str = "as it is"
    is_fid: bool = False

    @property
    def resize_method(self) -> str:
        if self.resize is None:
            return self.own_resize
        return f"{self.resize}x{self.resize}, bicubic with antialiasing, rounded to 8 bits; then {self.own_resize}"

    @property
    def device(self) -> torch.device:
        """The device of its weights; the CPU if it has none."""
        tensors = itertools.chain(self.module.parameters(), self.module.buffers())
        return next((tensor.device for tensor in tensors), torch.device("cpu"))

    def __call__(self, images: Tensor) -> Features:
        """Compute the features of uint8 images ``[B, 3, H, W]``."""
        if self.resize is not None:
            images = _resize(images, self.resize)
        found = self._call_module(images)
        outputs = found if isinstance(found, Mapping) else {"features": found}
        pooled, logits, spatial = (outputs.get(name) for name in ("features", "logits", "spatial"))
        if isinstance(pooled, Tensor) and pooled.dim() == 4 and pooled.shape[2:] == (1, 1):
            pooled = pooled.flatten(1)
        count = len(images)
        pooled = self._checked("features", pooled, count, 2, "[B, D]")
        if logits is not None:
            logits = self._checked("logits", logits, count, 2, "[B, classes]")
        if spatial is not None:
            spatial = self._first_channels(self._checked("spatial", spatial, count, 4, "[B, C, h, w]"))
        return Features(pooled, logits, spatial)

    def _call_module(self, images: Tensor) -> Any:
        try:
            return self.module(images)
        except Exception as error:  # the network is foreign code and may raise anything
            if is_out_of_memory(error):
                raise
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise EvaluationError(f"{self.name} fails on images {list(images.shape)}: {reason}") from error

    def _checked(self, key: str, found: Any, count: int, dimensions: int, wanted: str) -> Tensor:
        if not isinstance(found, Tensor) or found.dim() != dimensions or len(found) != count:
            got = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise EvaluationError(f"{self.name}: wanted {key!r} of shape {wanted} with B = {count}, got {got}")
        if not found.is_floating_point():
            raise EvaluationError(f"{self.name}: wanted {key!r} in a floating type, got {found.dtype}")
        return found

    def _first_channels(self, spatial: Tensor) -> Tensor:
        """Flatten the first 7 channels, ``[B, C, h, w]`` -> ``[B, h * w * 7]``, channels last as ADM does."""
        rows = spatial[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)
        if rows.shape[1] > LARGEST_SPATIAL:
            raise EvaluationError(
                f"{self.name}: {list(spatial.shape[1:])} is too large a 'spatial' map: "
                f"its first {SPATIAL_CHANNELS} channels may have {LARGEST_SPATIAL} values"
            )
        return rows


def wrap_module(module: nn.Module, name: str | None = None, resize: int | None = None) -> FeatureExtractor:
    """Make an extractor of any module; see :class:`FeatureExtractor` for what it must take and return."""
    return FeatureExtractor(module, name or type(module).__name__, weights_sha256(module), resize)


def load_extractor(source: str, name: str | None = None, resize: int | None = None) -> FeatureExtractor:
    """Load an extractor from ``"package.module:callable"``, a callable that returns the module, or from a file.

    Files are those of ``torch.export.save`` (``.pt2``, exported with a dynamic batch) and TorchScript. Pickles in them
    are refused, but both formats are programs, as Python modules are: use only files from sources that you trust.

    Raises:
        EvaluationError: there is no such callable or file, it fails, or it does not return a module.
    """
    if Path(source).is_file():
        return wrap_module(_load_file(source), name or Path(source).stem, resize)
    package, separator, attribute = source.partition(":")
    if not separator:
        raise EvaluationError(f"features: wanted MODULE:CALLABLE, or a .pt2 or TorchScript file, got {source!r}")
    try:
        made = getattr(importlib.import_module(package), attribute)()
    except Exception as error:  # foreign code may raise anything
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise EvaluationError(f"features: cannot take {attribute!r} from {package!r}: {reason}") from error
    if not isinstance(made, nn.Module):
        raise EvaluationError(f"features: {source} returned {type(made).__name__}, wanted a torch.nn.Module")
    return wrap_module(made, name or attribute, resize)


def _load_file(path: str) -> nn.Module:
    try:
        if path.endswith(".pt2"):
            with _no_pickles():
                return _Exported(torch.export.load(path).module())
        return torch.jit.load(path, map_location="cpu")
    except Exception as error:  # torch raises errors of many types for damaged files
        raise EvaluationError(f"{path}: not a network that torch can load: {first_line(error)}") from error


@contextlib.contextmanager
def _no_pickles() -> Iterator[None]:
    """Keep torch.export from unpickling arbitrary objects when its safe loading fails, and from logging tracebacks."""
    key, log = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", logging.getLogger("torch.export")
    before, was_disabled = os.environ.get(key), log.disabled
    os.environ[key], log.disabled = "1", True
    try:
        yield
    finally:
        log.disabled = was_disabled
        os.environ.pop(key)
        if before is not None:
            os.environ[key] = before


class _Exported(nn.Module):
    """An exported program, whose own ``train()`` and ``eval()`` raise because its mode is fixed."""

    def __init__(self, program: nn.Module) -> None:
        super().__init__()
        self.program = program

    def train(self, mode: bool = True) -> _Exported:
        return self

    def forward(self, images: Tensor) -> Any:
        return self.program(images)


def _resize(images: Tensor, size: int) -> Tensor:
    resized = F.interpolate(images.float(), size=(size, size), mode="bicubic", antialias=True)
    return resized.round().clamp(0, 255).to(torch.uint8)


# FID's Inception network, from torch-fidelity.


WEIGHTS_NAME = "weights-inception-2015-12-05-6726825d.pth"
WEIGHTS_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{WEIGHTS_NAME}"
PUBLISHED_SHA256 = "6726825d"  # the first digits, as in the name
OWN_RESIZE = "299x299, bilinear as in TensorFlow 1 (torch-fidelity), no antialiasing"
# In TensorFlow's graph: "pool_3", "softmax" without its bias, and "mixed_6/conv".
FEATURES, LOGITS, SPATIAL_LAYER = "2048", "logits_unbiased", "Mixed_6d.branch1x1"


def find_weights() -> Path | None:
    """Return the weights in torch.hub's folder, where torch-fidelity downloads them; None if they are not there."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS_NAME
    return path if path.is_file() else None


def load_inception(weights: str | os.PathLike[str] | None = None) -> FeatureExtractor:
    """Load InceptionV3 with the weights of 2015-12-05 that FID is defined on (Heusel et al. 2017).

    Nothing is downloaded. With weights whose hash is not the published one, the extractor has another name and its
    metrics are not called FID.

    Args:
        weights: the file; None looks in torch.hub's folder.

    Raises:
        EvaluationError: there are no weights, or the file does not hold them.
        MissingPackageError: torch-fidelity is not installed.
    """
    path = find_weights() if weights is None else Path(weights)
    if path is None or not path.is_file():
        wanted = path or Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS_NAME
        raise EvaluationError(
            f"the weights of FID's Inception network are not at {wanted}: get them from {WEIGHTS_URL}, "
            "or give another feature extractor, on which the metrics get other names"
        )
    sha256 = file_sha256(path)
    published = sha256.startswith(PUBLISHED_SHA256)
    name = "inception-v3" if published else f"inception-v3 with weights {sha256[:8]}"
    return FeatureExtractor(_Inception(path), name, sha256, own_resize=OWN_RESIZE, is_fid=published)


class _Inception(nn.Module):
    """torch-fidelity's network, which also returns the feature map of sFID."""

    def __init__(self, weights: Path) -> None:
        super().__init__()
        library = _torch_fidelity()
        self._check(weights)
        self.network = library.FeatureExtractorInceptionV3(
            "inception-v3-compat", [FEATURES, LOGITS], feature_extractor_weights_path=str(weights)
        )
        self._spatial: Tensor | None = None
        self.network.get_submodule(SPATIAL_LAYER).register_forward_hook(self._keep_spatial)

    def forward(self, images: Tensor) -> dict[str, Any]:
        pooled, logits = self.network(images)
        spatial, self._spatial = self._spatial, None
        return {"features": pooled, "logits": logits, "spatial": spatial}

    def _keep_spatial(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self._spatial = output

    @staticmethod
    def _check(weights: Path) -> None:
        """Read the file safely first, because the library unpickles arbitrary objects."""
        try:
            read_state_dict(weights)
        except CheckpointError as error:
            raise EvaluationError(str(error)) from error


def _torch_fidelity() -> ModuleType:
    try:
        return require("torch_fidelity", "evaluate", "FID")
    except RuntimeError as error:  # torchvision was built for another torch
        raise EvaluationError(f"torch-fidelity is installed but does not load: {error}") from error
