"""SHA-256 of files and of networks, by which it is known that they are the same."""

from __future__ import annotations

import hashlib
import os
from typing import Any

import torch
from torch import Tensor, nn

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
