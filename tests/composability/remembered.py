"""Cache of the launches that Triton's interpreter computed.

It takes a tenth of a second to some seconds for what a GPU does in microseconds, and here dozens of mechanisms call the
same operators with the same numbers. Everything else of a call, registration and launch included, runs as ever.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor

from dimr_kernels.launch import Launch


def _bytes(pointer: Tensor | None) -> bytes:
    if pointer is None:
        return b"none"
    form = f"{pointer.dtype} {tuple(pointer.shape)} {pointer.stride()} {pointer.data_ptr() % 16}".encode()
    if pointer.numel() == 0:
        return form
    # A copy, since numpy() fixes the size of the storage, which sharding resizes.
    values = pointer.detach().clone(memory_format=torch.contiguous_format)
    return form + values.view(-1).view(torch.uint8).numpy().tobytes()


class RememberedLaunches:
    """``Launch.by_triton`` with a cache keyed by the bytes of all arguments; a hit writes the recorded results."""

    def __init__(self) -> None:
        self._written: dict[bytes, dict[int, Tensor]] = {}
        self._interpret = Launch.by_triton

    def __call__(self, launch: Launch, pointers: tuple[Tensor | None, ...]) -> Any:
        described = f"{launch._kernel.__name__} {launch._grid} {launch._numbers} {sorted(launch._options.items())}"
        before = [_bytes(pointer) for pointer in pointers]
        key = hashlib.sha256(b"".join([described.encode(), *before])).digest()
        if key not in self._written:
            self._interpret(launch, pointers)
            self._written[key] = {
                i: pointer.detach().clone()
                for i, pointer in enumerate(pointers)
                if pointer is not None and _bytes(pointer) != before[i]
            }
            return
        for i, values in self._written[key].items():
            with torch.inference_mode(values.is_inference()):
                pointers[i].data.copy_(values)  # type: ignore[union-attr]  # as a kernel writes: unseen by autograd
