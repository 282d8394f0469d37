"""Helpers that several parts share: optional packages, errors, files, locks, a description of the machine."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import stat
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn


class UserError(Exception):
    """Base class of the errors that a user can put right. The command line shows their message without a traceback."""


class MissingPackageError(UserError, ImportError):
    """An optional package is not installed; the message says how to install it."""


class OutOfMemoryError(UserError, RuntimeError):
    """Out of memory; the message says what can be done about it."""


def require(module: str, extra: str | None, purpose: str) -> ModuleType:
    """Import and return ``module``.

    Raises:
        MissingPackageError: it is not installed. The message names the extra to install, or the package itself where
            ``extra`` is None.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if (error.name or "").partition(".")[0] != package:
            raise  # the package is installed, but not something that it needs itself
        message = f"{purpose} needs {package}, which is not installed: pip install 'dimr_kernels[{extra}]'"
        if extra is None:
            message = f"{purpose} needs {package}, which is not installed: pip install {package}"
        raise MissingPackageError(message, name=error.name) from error


def first_line(error: BaseException) -> str:
    """Return the first line of the error's message, and the second too if the first ends with a colon."""
    line, _, rest = str(error).strip().partition("\n")
    if not line.endswith(":"):
        return line
    announced = rest.strip().partition("\n")[0]
    return f"{line} {announced}".strip()


# torch raises plain RuntimeErrors when the host's memory runs out and when a size overflows; only their text tells.
_OUT_OF_HOST_MEMORY = ("can't allocate memory", "not enough memory", "storage size calculation overflowed")


def is_out_of_memory(error: BaseException) -> bool:
    """Return True if the error means that a GPU or the host ran out of memory."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in _OUT_OF_HOST_MEMORY)


# Memory

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
_MAPPED_SEPARATELY = 2**30  # bytes


def keep_freed_memory() -> bool:
    """Let this process keep the host memory that it frees, for its next tensors; False where that is not possible.

    glibc gives large blocks back to the system, which maps and clears new pages for the next tensor: a training step
    of the demo takes 5% longer for it, a tensor above 32 MB several times as long as a kernel needs to fill it.
    Blocks of 1 GiB and more are still given back.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _MAPPED_SEPARATELY)) and bool(mallopt(_M_TRIM_THRESHOLD, -1))


# Files


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Write a file atomically: the block writes to the yielded temporary path, which then replaces ``path``.

    Missing parent folders are created. If the block raises, ``path`` is left as it was. The file's mode is that of any
    new file, as the umask says: safetensors 0.8 makes files that only their owner can read.
    """
    final = Path(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays last, because savers choose the format by it.
    temporary = final.with_name(f".{final.stem}.{os.getpid()}.partial{final.suffix}")
    try:
        temporary.touch()
        mode = stat.S_IMODE(temporary.stat().st_mode)
        yield temporary
        if stat.S_IMODE(temporary.stat().st_mode) != mode:
            temporary.chmod(mode)
        os.replace(temporary, final)
    finally:
        temporary.unlink(missing_ok=True)


def set_default_mode(path: Path) -> None:
    """Give a file the mode of a new one, by the umask. safetensors 0.8 makes files that only their owner can read."""
    # A new file shows the mode. Reading the umask is possible only by changing it, for all threads.
    probe = path.with_name(f".{path.stem}.{os.getpid()}.partial-mode")
    try:
        probe.touch()
        mode = stat.S_IMODE(probe.stat().st_mode)
    finally:
        probe.unlink(missing_ok=True)
    if stat.S_IMODE(path.stat().st_mode) != mode:
        path.chmod(mode)


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file. Anything that is not JSON is a ValueError."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def write_json(path: str | os.PathLike[str], values: Any) -> None:
    """Write ``values`` as indented JSON. NaN and infinity, which JSON does not have, are errors."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2, allow_nan=False) + "\n", encoding="utf-8")


_BLOCK = 2**24  # bytes read at a time


def add_file(digest: Any, path: str | os.PathLike[str]) -> None:
    """Update one of hashlib's digests with the file's content."""
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)


def file_sha256(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of the file's content."""
    digest = hashlib.sha256()
    add_file(digest, path)
    return digest.hexdigest()


def weights_sha256(module: nn.Module) -> str:
    """Return the SHA-256 of the names, dtypes, shapes and bytes of all parameters and buffers."""
    state: dict[str, Any] = module.state_dict()
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        if isinstance(tensor, Tensor):
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


LOCK_FILE = ".lock"


class FolderLockedError(OSError):
    """Another process holds the folder's lock."""


@contextlib.contextmanager
def exclusive_lock(folder: Path) -> Iterator[None]:
    """Hold an exclusive lock on the folder, which is created if missing.

    The operating system releases the lock when the process ends, even if it is killed. Where the system or the file
    system has no locks, the block runs without one.

    Raises:
        FolderLockedError: another process holds the lock.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK_FILE).open("w") as file:
        try:
            _lock(file.fileno())
        except (BlockingIOError, PermissionError) as error:
            raise FolderLockedError(
                f"another process writes to {folder}: end it first "
                f"(where torchrun itself was killed, its workers may go on)"
            ) from error
        except OSError:
            pass  # no locks on this file system
        yield


def _lock(file: int) -> None:
    """Lock the open file with ``lockf``.

    The package filelock uses ``flock``, whose lock is inherited by forked processes: after a run is killed, the
    workers of its data loader would keep the folder locked. A lock of ``lockf`` belongs to the process that took it.
    """
    if importlib.util.find_spec("fcntl") is not None:  # missing on Windows
        fcntl = importlib.import_module("fcntl")
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


_REPORTED_PACKAGES = ("dimr_kernels", "torch", "triton", "numpy", "scikit-learn", "safetensors", "diffusers")


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Return the versions and the device that a result was computed with, as plain values."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in _REPORTED_PACKAGES},
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
