"""Packages that only some parts need."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn


class MissingPackageError(ImportError):
    """A package is missing that the part in use needs; the message says how to install it."""


def require(module: str, extra: str | None, purpose: str) -> ModuleType:
    """``importlib.import_module(module)``, or an error that names the extra that brings it, if one does."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if (error.name or "").partition(".")[0] != package:
            raise  # the package is there, something it needs itself is not
        message = f"{purpose} needs {package}, which is not installed: pip install 'dimr_kernels[{extra}]'"
        if extra is None:
            message = f"{purpose} needs {package}, which is not installed: pip install {package}"
        raise MissingPackageError(message, name=error.name) from error


# Words for errors.


def first_line(error: BaseException) -> str:
    """Of the error's message, for a message of one line; other libraries write pages.

    What only announces the next line takes it along.
    """
    line, _, rest = str(error).strip().partition("\n")
    if not line.endswith(":"):
        return line
    announced = rest.strip().partition("\n")[0]
    return f"{line} {announced}".strip()


# Running out of memory, on a GPU or on the host.


# How torch's allocator on a CPU and its size arithmetic say it, in errors of no type of their own.
HOST_WORDS = ("can't allocate memory", "not enough memory", "storage size calculation overflowed")


class OutOfMemoryError(RuntimeError):
    """Out of memory, with what can be done about it."""


def is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in HOST_WORDS)


# Files that are either whole or not there.


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary name beside ``path``, which takes ``path``'s place when the block ends without an error.

    Missing parent folders are made. After an error the old file, if any, is as it was.
    """
    final = Path(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays last: savers choose a format by it.
    temporary = final.with_name(f".{final.stem}.{os.getpid()}.partial{final.suffix}")
    try:
        yield temporary
        os.replace(temporary, final)
    finally:
        temporary.unlink(missing_ok=True)


def read_json(path: str | os.PathLike[str]) -> Any:
    """What the file says; whatever it is instead of JSON is a ValueError."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def write_json(path: str | os.PathLike[str], values: Any) -> None:
    """``values`` as indented JSON. NaN and infinity are errors: no other reader would take them."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2, allow_nan=False) + "\n", encoding="utf-8")


# SHA-256 of files and of networks, by which it is known that they are the same.


BLOCK = 2**24  # bytes read at a time


def add_file(digest: Any, path: str | os.PathLike[str]) -> None:
    """Feed the file's content to one of hashlib's digests."""
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)


def file_sha256(path: str | os.PathLike[str]) -> str:
    digest = hashlib.sha256()
    add_file(digest, path)
    return digest.hexdigest()


def weights_sha256(module: nn.Module) -> str:
    """Over names, dtypes, shapes and bytes of parameters and buffers; not over the code that uses them."""
    state: dict[str, Any] = module.state_dict()
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        if isinstance(tensor, Tensor):
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


# One process at a time writes to a folder.


NAME = ".lock"


class OccupiedError(OSError):
    """Another process writes to the folder."""


@contextlib.contextmanager
def occupied(folder: Path) -> Iterator[None]:
    """Inside the block no other process gets into a block of this folder. Missing folders are made.

    The system lets go of the folder when the process ends, however it does, and worker processes that it forked do not
    hold on to it. Where the system or the file system knows no locks there is none.

    Raises:
        OccupiedError: another process is inside.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / NAME).open("w") as file:
        try:
            _lock(file.fileno())
        except (BlockingIOError, PermissionError) as error:
            raise OccupiedError(
                f"another process writes to {folder}: end it first "
                f"(where torchrun itself was killed, its workers may go on)"
            ) from error
        except OSError:
            pass  # no locks on this file system
        yield


def _lock(file: int) -> None:
    if importlib.util.find_spec("fcntl") is not None:  # not on Windows
        fcntl = importlib.import_module("fcntl")
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


# What a result was made with.


PACKAGES = ("dimr_kernels", "torch", "triton", "numpy", "scikit-learn", "safetensors", "diffusers")


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Versions and the device, as plain values."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
