"""References that samples are compared with: images, statistics computed earlier, or both."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.errors import DataError
from ..utils import replacing, require
from .extractors import FeatureExtractor
from .images import Images, open_images
from .metrics import EvaluationError, Moments

MOMENTS = ("mu", "sigma")  # as in the reference batches of ADM's evaluation suite
SPATIAL_MOMENTS = ("mu_s", "sigma_s")
ORIGIN = ("features", "sha256", "resize", "count")  # more keys, in files that this package writes


@dataclasses.dataclass(frozen=True)
class Reference:
    """A reference, with ``images`` or ``moments`` or both."""

    description: str
    images: Images | None = None
    moments: Moments | None = None
    spatial: Moments | None = None
    origin: dict[str, str] = dataclasses.field(default_factory=dict)


def open_reference(
    reference: str | os.PathLike[str] | Tensor, crop: int | None = None, exif_orientation: bool = True
) -> Reference:
    """Open images as :func:`open_images` does, or an ``.npz`` with ``mu``, ``sigma`` and perhaps images."""
    if isinstance(reference, Tensor) or Path(reference).suffix.lower() != ".npz" or not Path(reference).is_file():
        images = open_images(reference, crop, exif_orientation)
        return Reference(images.description, images)
    path = Path(reference)
    names, arrays = _read(path)
    from ..data.sources.npz import IMAGE_KEYS

    has_images = any(key in names for key in IMAGE_KEYS)
    if not has_images and "mu" not in names:
        raise EvaluationError(
            f"{path}: wanted images ({' or '.join(IMAGE_KEYS)}) or statistics ({', '.join(MOMENTS)}), "
            f"found {', '.join(names) or 'nothing'}"
        )
    return Reference(
        str(path),
        open_images(path, crop, exif_orientation) if has_images else None,
        _moments(path, arrays, MOMENTS),
        _moments(path, arrays, SPATIAL_MOMENTS),
        {key: str(arrays[key]) for key in ORIGIN if key in arrays},
    )


def save_statistics(
    path: str | os.PathLike[str], extractor: FeatureExtractor, count: int, moments: Moments, spatial: Moments | None
) -> None:
    """Write an ``.npz`` for :func:`open_reference` and ADM's evaluation suite, which also describes the features."""
    numpy = require("numpy", "evaluate", "writing .npz")
    arrays: dict[str, Any] = {"mu": moments.mean.cpu().numpy(), "sigma": moments.covariance.cpu().numpy()}
    if spatial is not None:
        arrays |= {"mu_s": spatial.mean.cpu().numpy(), "sigma_s": spatial.covariance.cpu().numpy()}
    origin = (extractor.name, extractor.sha256, extractor.resize_method, count)
    with replacing(path) as temporary:
        numpy.savez(temporary, **arrays, **dict(zip(ORIGIN, origin, strict=True)))


def usable_moments(reference: Reference, extractor: FeatureExtractor) -> tuple[Reference, list[str]]:
    """Drop statistics that are not of the extractor's features, and return the reference with a list of warnings.

    Raises:
        EvaluationError: the statistics say that they are of other features.
    """
    if reference.moments is None:
        return reference, []
    expected = {"sha256": extractor.sha256, "resize": extractor.resize_method}
    for key, wanted in expected.items():
        found = reference.origin.get(key, wanted)
        if found != wanted:
            raise EvaluationError(
                f"{reference.description}: its statistics have {key} {found!r}, {extractor.name} has {wanted!r}"
            )
    if "sha256" in reference.origin or extractor.is_fid:
        return reference, []
    # Statistics without a description are most likely Inception's.
    if reference.images is not None:
        return dataclasses.replace(reference, moments=None, spatial=None), [
            f"the statistics in {reference.description} do not say what features they are of: its images are used"
        ]
    return reference, [
        f"the statistics in {reference.description} do not say what features they are of: "
        f"they are taken to be of {extractor.name}"
    ]


def _read(path: Path) -> tuple[list[str], dict[str, Any]]:
    """Read the names of all arrays, and the arrays that are statistics."""
    require("numpy", "evaluate", "reading .npz")
    from ..data.sources.npz import array_names, read_array

    try:
        names = array_names(path)
        wanted = [key for key in (*MOMENTS, *SPATIAL_MOMENTS, *ORIGIN) if key in names]
        return names, {key: read_array(path, key) for key in wanted}
    except DataError as error:
        raise EvaluationError(str(error)) from error


def _moments(path: Path, arrays: dict[str, Any], keys: tuple[str, str]) -> Moments | None:
    found = [key for key in keys if key in arrays]
    if not found:
        return None
    if len(found) == 1:
        raise EvaluationError(f"{path}: wanted both {keys[0]} and {keys[1]}, found {found[0]}")
    for key in keys:
        if arrays[key].dtype.kind not in "fiu":
            raise EvaluationError(f"{path}: wanted numbers in {key}, found {arrays[key].dtype}")
    mean, covariance = (torch.from_numpy(arrays[key].astype("float64")) for key in keys)
    if mean.dim() != 1 or covariance.shape != (len(mean), len(mean)):
        raise EvaluationError(
            f"{path}: wanted {keys[0]} [D] and {keys[1]} [D, D], found {list(mean.shape)} and {list(covariance.shape)}"
        )
    if not (torch.isfinite(mean).all() and torch.isfinite(covariance).all()):
        raise EvaluationError(f"{path}: {keys[0]} or {keys[1]} has values that are not finite")
    return Moments(mean, covariance)
