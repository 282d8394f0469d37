"""The Inception network of FID, from torch-fidelity and its weights file."""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoints import CheckpointError
from ..checkpoints.reading import read_state_dict
from ..hashes import file_sha256
from ..optional import require
from .errors import EvaluationError
from .extractors import FeatureExtractor

WEIGHTS_NAME = "weights-inception-2015-12-05-6726825d.pth"
WEIGHTS_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{WEIGHTS_NAME}"
PUBLISHED_SHA256 = "6726825d"  # its beginning, as in the name
OWN_RESIZE = "299x299, bilinear as in TensorFlow 1 (torch-fidelity), no antialiasing"
# Inception in the names of TensorFlow's graph: "pool_3", "softmax" without its bias, and "mixed_6/conv".
FEATURES, LOGITS, SPATIAL_LAYER = "2048", "logits_unbiased", "Mixed_6d.branch1x1"


def find_weights() -> Path | None:
    """The weights where torch.hub keeps them, which is where torch-fidelity puts them, if they are there."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS_NAME
    return path if path.is_file() else None


def load_inception(weights: str | os.PathLike[str] | None = None) -> FeatureExtractor:
    """InceptionV3 with the weights of 2015-12-05 that FID is defined on (Heusel et al. 2017), ported to PyTorch.

    Nothing is downloaded. Weights whose hash is not the published one make an extractor of another name, whose
    metrics are not FID.

    Args:
        weights: The file; None looks where torch.hub keeps it.

    Raises:
        EvaluationError: no weights, or a file that does not hold them.
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
    """torch-fidelity's network with the map that sFID needs: uint8 ``[B, 3, H, W]`` to a mapping of features."""

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
        """The library unpickles without restraint, so the file is first read with it."""
        try:
            read_state_dict(weights)
        except CheckpointError as error:
            raise EvaluationError(str(error)) from error


def _torch_fidelity() -> ModuleType:
    try:
        return require("torch_fidelity", "evaluate", "FID")
    except RuntimeError as error:  # a torchvision made for another torch
        raise EvaluationError(f"torch-fidelity is installed but does not load: {error}") from error
