"""Opening the data set that a :class:`DataSpec` describes."""

from __future__ import annotations

from .dataset import Dataset, ImageDataset, ImageSource
from .errors import DataError
from .latents import LatentDataset
from .pictures import Decoding
from .sources.folder import FolderSource
from .sources.hub import HuggingFaceSource
from .sources.npz import open_npz
from .sources.tar import TarSource
from .sources.zip import ZipSource
from .spec import DataSpec


def open_dataset(spec: DataSpec) -> Dataset:
    """Open the data set that ``spec`` describes.

    Raises:
        FileNotFoundError: there is nothing at the path.
        DataError: what is there cannot be used, or the description does not fit it.
        MissingPackageError: the kind of data needs a package that is not installed.
    """
    spec = spec.resolved()
    if spec.kind == "latents":
        return LatentDataset(spec.path, spec.image_size, spec.flip, spec.max_skipped)
    return open_images(spec)


def open_images(spec: DataSpec) -> ImageDataset:
    """Open a data set of any kind but latents; raises the errors of :func:`open_dataset`."""
    spec = spec.resolved()
    source = _open_source(spec)
    try:
        return ImageDataset(source, spec.image_size or 0, spec.flip, spec.max_skipped)
    except DataError as error:
        raise DataError(f"{spec.path}: {error}") from error


def _open_source(spec: DataSpec) -> ImageSource:
    decoding = Decoding(spec.exif_orientation, spec.background)
    if spec.kind == "folder":
        return FolderSource(spec.path, decoding, spec.split, spec.label_key)
    if spec.kind in ("hugging_face", "parquet"):
        return HuggingFaceSource(
            spec.path, spec.split, spec.image_key, spec.label_key, decoding, parquet=spec.kind == "parquet"
        )
    if spec.kind == "npz":
        return open_npz(spec.path, spec.image_key, spec.label_key, decoding)
    if spec.kind == "zip":
        return ZipSource(spec.path, decoding)
    if spec.kind == "tar":
        return TarSource(spec.path, spec.max_skipped == 0, decoding)
    raise DataError(f"wanted pictures, {spec.path} holds {spec.kind}")
