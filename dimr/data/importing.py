"""Latents that other programs computed, converted to folders as ``dimr encode`` writes them.

- DiMR and U-ViT: ``0.npy``, ``1.npy`` and so on, each the pickled pair of moments ``[2C, h, w]`` and label. Mirror
  images are samples of their own. Of a pickle, arrays and numbers are read and no code that it names is run.
- DiT: ``..._features/0.npy`` ``[1, C, h, w]``, scaled, and ``..._labels/0.npy``.
- LightningDiT: ``.safetensors`` with ``latents``, perhaps ``latents_flip``, and ``labels``; ``latents_stats.pt`` beside
  them has mean and standard deviation of each channel.
- REPA: ``vae-sd/00000/img-mean-std-00000000.npy`` ``[2C, h, w]``, mean and standard deviation, and ``dataset.json``.
- ``.npz`` files with ``moments`` or ``latents``, and labels under one of the usual names.
"""

from __future__ import annotations

import abc
import dataclasses
import hashlib
import itertools
import pickle
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..sampling.autoencoder import LatentScale
from ..utils import first_line, require
from .dataset import file_stamp
from .encoding import DTYPES, EncodingSettings, LatentWriter, parts
from .errors import DataError, SampleError
from .latents import LatentIndex
from .sources.labels import as_labels, choose_key, from_label_file
from .sources.npz import array_names, read_array
from .spec import REPA_LATENTS

STABLE_DIFFUSION = LatentScale(0.18215)  # of the autoencoders that DiMR, U-ViT and DiT use
SCALED = LatentScale(1.0)
READERS = 8  # threads
STATISTICS = "latents_stats.pt"
REPA_LABELS = "dataset.json"
REPA_FOLDER = "vae-sd"  # beside the folder of pictures
LEAST_LOG_DEVIATION = -15.0  # half the least log variance of the autoencoder


class LatentFiles(abc.ABC):
    """Latents and labels by index.

    Attributes:
        moments: mean and log variance are stored, not a latent.
        flipped: mirror images are stored with each sample.
        scale: from the stored latents to the model's; None if the files do not tell.
    """

    moments = False
    flipped = False
    scale: LatentScale | None = SCALED

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def file(self, index: int) -> Path:
        """Return the file that holds a sample."""

    @abc.abstractmethod
    def read(self, index: int) -> tuple[Any, Any]:
        """Read latents or moments ``[1 or 2, M, h, w]``, with the mirror image second, and the label."""


class PairFiles(LatentFiles):
    """The files of DiMR and U-ViT."""

    moments = True
    scale = STABLE_DIFFUSION

    def __init__(self, files: list[Path]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def file(self, index: int) -> Path:
        return self.files[index]

    def read(self, index: int) -> tuple[Any, Any]:
        pair = _read_npy(self.files[index], pickled=True)
        if pair.shape != (2,):
            raise ValueError(f"wanted a pair of moments and label, found {pair.dtype} {list(pair.shape)}")
        return np.asarray(pair[0])[None], pair[1]


class DitFiles(LatentFiles):
    """The files of DiT."""

    def __init__(self, features: list[Path], labels: Path) -> None:
        self.features = features
        self.labels = labels

    def __len__(self) -> int:
        return len(self.features)

    def file(self, index: int) -> Path:
        return self.features[index]

    def read(self, index: int) -> tuple[Any, Any]:
        path = self.features[index]
        return _read_npy(path), _read_npy(self.labels / path.name).reshape(-1)


class MeanStdFiles(LatentFiles):
    """The files of REPA, with the labels in ``dataset.json``."""

    moments = True
    scale = STABLE_DIFFUSION

    def __init__(self, root: Path, names: list[str]) -> None:
        self.root = root
        self.names = names
        path = root / REPA_LABELS
        if not path.is_file():
            raise DataError(f"{root} has no {REPA_LABELS} with the labels of its latents")
        labels = from_label_file(path.read_bytes(), str(path), names)
        if labels is None:
            raise DataError(f"{path} has no labels")
        self._labels = labels.ids

    def __len__(self) -> int:
        return len(self.names)

    def file(self, index: int) -> Path:
        return self.root / self.names[index]

    def read(self, index: int) -> tuple[Any, Any]:
        values = torch.as_tensor(_read_npy(self.file(index)))
        if values.dim() == 3 and len(values) % 2 == 0 and values.is_floating_point():
            mean, deviation = values.chunk(2)
            if not (deviation >= 0).all():
                raise ValueError("its second half has negative values; wanted standard deviations")
            values = torch.cat([mean, 2 * deviation.log().clamp(min=LEAST_LOG_DEVIATION)])
        return values[None], self._labels[index]


class SeveralPerFile(LatentFiles):
    """Files of several samples each, of which ``counts`` are in each file."""

    def __init__(self, files: list[Path], counts: Iterable[int]) -> None:
        self.files = files
        self._ends = list(itertools.accumulate(counts))

    def __len__(self) -> int:
        return self._ends[-1]

    def _find(self, index: int) -> tuple[int, int]:
        number = int(np.searchsorted(self._ends, index, side="right"))
        return number, index - (self._ends[number - 1] if number else 0)

    def file(self, index: int) -> Path:
        return self.files[self._find(index)[0]]


class ShardFiles(SeveralPerFile):
    """The files of LightningDiT."""

    scale = None

    def __init__(self, files: list[Path]) -> None:
        open_file = require("safetensors", "train", "reading latents").safe_open
        try:
            self._open = [open_file(file, "pt") for file in files]
            counts = [file.get_slice("labels").get_shape()[0] for file in self._open]
            self.flipped = all("latents_flip" in file.keys() for file in self._open)  # noqa: SIM118 - no mapping
        except Exception as error:  # safetensors has errors of its own
            raise DataError(f"{files[0].parent}: not latents with labels: {first_line(error)}") from error
        super().__init__(files, counts)
        self._mean, self._std = self._statistics(files[0].parent / STATISTICS)

    def _statistics(self, path: Path) -> tuple[Tensor, Tensor]:
        if not path.is_file():
            return torch.zeros(1), torch.ones(1)
        try:
            found = torch.load(path, weights_only=True)
            mean, std = (found[key].float().reshape(-1, 1, 1) for key in ("mean", "std"))
        except Exception as error:  # damage surfaces anywhere in the unpickler
            raise DataError(f"{path}: not the mean and std of latents: {first_line(error)}") from error
        if not (mean.isfinite().all() and std.isfinite().all() and (std > 0).all()):
            raise DataError(f"{path}: wanted finite means and deviations above 0")
        self.scale = SCALED
        return mean, std

    def read(self, index: int) -> tuple[Any, Any]:
        number, row = self._find(index)
        file = self._open[number]
        names = ["latents", "latents_flip"] if self.flipped else ["latents"]
        latents = torch.stack([file.get_slice(name)[row].float() for name in names])
        return (latents - self._mean) / self._std, file.get_slice("labels")[row].reshape(-1).numpy()


class ArrayFiles(SeveralPerFile):
    """Arrays ``moments`` or ``latents`` of ``.npz`` files."""

    def __init__(self, files: list[Path]) -> None:
        names = [array_names(file) for file in files]
        self.moments = "moments" in names[0]
        self.scale = STABLE_DIFFUSION if self.moments else None
        key = "moments" if self.moments else "latents"
        self._arrays, self._labels = [], []
        for file, there in zip(files, names, strict=True):
            label_key = choose_key(there)
            if key not in there or label_key is None:
                raise DataError(f"{file} has no {key} with labels, only {', '.join(there)}")
            self._arrays.append(read_array(file, key))
            self._labels.append(read_array(file, label_key))
            if len(self._arrays[-1]) != len(self._labels[-1]):
                raise DataError(f"{file} has {len(self._arrays[-1])} {key} and {len(self._labels[-1])} labels")
        super().__init__(files, map(len, self._arrays))

    def read(self, index: int) -> tuple[Any, Any]:
        number, row = self._find(index)
        return np.array(self._arrays[number][row])[None], self._labels[number][row]


def open_latent_files(path: Path) -> LatentFiles:
    """Recognise and open the latents of another program.

    Raises:
        FileNotFoundError: there is nothing at the path.
        DataError: what is there is none of the known forms, or damaged.
    """
    if path.is_file() and path.suffix == ".npz":
        return ArrayFiles([path])
    if not path.is_dir():
        raise FileNotFoundError(f"no latents at {path}")
    for root in (path, path / REPA_FOLDER):
        if names := sorted(file.relative_to(root).as_posix() for file in root.glob(REPA_LATENTS)):
            return MeanStdFiles(root, names)
    for features in sorted(path.glob("*features*")):
        labels = features.with_name(features.name.replace("features", "labels"))
        if features.is_dir() and labels.is_dir():
            return DitFiles(_numbered(features), labels)
    if files := sorted(path.glob("*.safetensors")):
        return ShardFiles(files)
    if files := sorted(path.glob("*.npz")):
        return ArrayFiles(files)
    if files := _numbered(path):
        return PairFiles(files)
    raise DataError(
        f"{path} holds no latents: wanted numbered .npy files, folders of features and labels, img-mean-std-*.npy, "
        f".safetensors or .npz"
    )


def _numbered(folder: Path) -> list[Path]:
    """List the ``.npy`` files in the order of their numbers."""
    files = [path for path in folder.glob("*.npy") if path.stem.isdecimal()]
    return sorted(files, key=lambda path: (len(path.stem), path.stem))


class Importer(LatentWriter):
    """Converts latents of another program, a shard at a time; resumes as :class:`~dimr.data.encoding.Encoder` does.

    Args:
        scale: factor from the stored latents to the model's; None for that of the program.

    Raises:
        DataError: the files do not tell the factor; or as for ``Encoder``.
    """

    def __init__(
        self, files: LatentFiles, folder: Path, settings: EncodingSettings, image_size: int, scale: float | None = None
    ) -> None:
        if len(files) == 0:
            raise DataError("there are no samples in it")
        known = files.scale if scale is None else LatentScale(scale)
        if known is None:
            raise DataError(
                f"{files.file(0).parent}: give the factor that the latents are to be scaled by (--latent-scale)"
            )
        self.files = files
        first, _ = self._read(0)
        _, M, h, w = first.shape
        if files.moments and M % 2:
            raise DataError(f"{files.file(0)}: moments are twice as many channels as latents, found {M}")
        digest = hashlib.sha256()
        for i in range(len(files)):
            digest.update(files.file(i).name.encode() + b"\n")
        values = {
            **dataclasses.asdict(dataclasses.replace(settings, flipped=files.flipped)),
            "image_size": image_size,
            "source": {"samples": len(files), "sha256": digest.hexdigest()},
            "autoencoder": {"kind": type(files).__name__, "scale": known._asdict()},
        }
        shards = -(-len(files) // settings.shard_size)
        index = LatentIndex(folder, values, 1, None, (M // 2 if files.moments else M, h, w), shards)
        self._shape = first.shape
        super().__init__(index, settings.shard_size, len(files), lambda i: file_stamp(files.file(i)))
        self._dtype = DTYPES[settings.dtype]

    def run(self, batch_size: int = 16, num_workers: int = 0) -> Iterator[int]:
        """Make the remaining shards; yield the number of samples of each batch after it is read.

        Raises:
            DataError: a file cannot be read or written. Finished shards are kept.
        """
        with ThreadPoolExecutor(READERS) as readers:
            for shard in self.remaining():
                done: list[tuple[Tensor, int]] = []
                for part in parts(self.samples_of(shard), batch_size):
                    done += readers.map(self._read_checked, part)
                    yield len(part)
                moments = torch.stack([one for one, _ in done])
                self._write(shard, moments, torch.tensor([label for _, label in done]), [])

    def _read_checked(self, index: int) -> tuple[Tensor, int]:
        moments, label = self._read(index)
        if moments.shape != self._shape:
            found = f"found {list(moments.shape[1:])}, the first sample has {list(self._shape[1:])}"
            raise DataError(f"{self.files.file(index)}: latents of one shape are wanted, {found}")
        stored = moments.to(self._dtype)
        if not stored.isfinite().all():
            raise DataError(f"{self.files.file(index)}: the latent is not finite")
        return stored, label

    def _read(self, index: int) -> tuple[Tensor, int]:
        """Read a sample, ``[1 or 2, M, h, w]``, and its label."""
        path = self.files.file(index)
        try:
            values, label = self.files.read(index)
            moments = torch.as_tensor(values)
        except (SampleError, DataError):
            raise
        except Exception as error:  # NumPy, safetensors and the unpickler raise many types over damage
            reason = getattr(error, "strerror", None) or first_line(error) or type(error).__name__
            raise DataError(f"{path} cannot be read: {reason}") from error
        if moments.dim() != 4 or not moments.is_floating_point():
            found = f"{moments.dtype} {list(moments.shape[1:])}"
            raise DataError(f"{path}: wanted floating-point latents [channels, height, width], found {found}")
        return moments, int(as_labels([label], lambda i: f"{path}: the label").ids[0])


# Restricted unpickling of NumPy's arrays and numbers


def _read_npy(path: Path, pickled: bool = False) -> np.ndarray:
    with path.open("rb") as file:
        if not pickled:
            return np.lib.format.read_array(file, allow_pickle=False)
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        _, _, dtype = read(file)
        if not dtype.hasobject:
            raise ValueError(f"wanted a pair of moments and label, found an array of {dtype}")
        return np.asarray(_ArrayUnpickler(file).load())


def _plain_scalar(dtype: Any, data: Any) -> Any:
    if dtype.hasobject:
        raise pickle.UnpicklingError("it holds Python objects")
    return np.frombuffer(data if isinstance(data, bytes) else data.encode("latin1"), dtype, 1)[0]


def _empty_array(kind: Any, shape: Any, typecode: Any) -> np.ndarray:
    """Make the empty array that the pickle's state then fills."""
    if kind is not np.ndarray:
        raise pickle.UnpicklingError("it holds a subclass of ndarray")
    return np.ndarray((0,), np.int8)


class _ArrayUnpickler(pickle.Unpickler):
    """Reads pickled arrays of arrays and numbers, and nothing else that a pickle may ask for."""

    def find_class(self, module: str, name: str) -> Any:
        known = {"_reconstruct": _empty_array, "scalar": _plain_scalar}
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name in known:
            return known[name]
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        if (module, name) == ("_codecs", "encode"):  # bytes, in the pickles of protocol 2
            return lambda text, encoding: text.encode("latin1")
        raise pickle.UnpicklingError(f"it holds {module}.{name}")
