"""Dispatch modes for tests: the operators that code calls, the memory it holds, and reads of values."""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _OperatorCounter(TorchDispatchMode):
    def __init__(self, qualified: bool) -> None:
        super().__init__()
        self.qualified = qualified
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, operator: Any, types: Any, arguments: Any = (), kwargs: Any = None) -> Any:
        self.calls[operator.name() if self.qualified else operator._opname] += 1
        return operator(*arguments, **(kwargs or {}))


@contextlib.contextmanager
def operators_called(qualified: bool = False) -> Iterator[Counter[str]]:
    """Count the calls of each operator inside the block, by name; a fused operator counts as one.

    ``qualified``: names such as ``aten::add.Tensor`` in place of ``add``.
    """
    counter = _OperatorCounter(qualified)
    with counter:
        yield counter.calls


class LiveMemory(TorchDispatchMode):
    """Context manager; :meth:`bytes` counts the storages that were allocated inside it and still live."""

    def __init__(self) -> None:
        super().__init__()
        self._storages: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, operator: Any, types: Any, arguments: Any = (), kwargs: Any = None) -> Any:
        result = operator(*arguments, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                reference = StorageWeakRef(storage)
                self._storages[reference.cdata] = reference, storage.nbytes()
        return result

    def bytes(self) -> int:
        return sum(size for reference, size in self._storages.values() if not reference.expired())


# Functions that read values on the CPU only, where that does not synchronise.
CHECKS_OF_VALUES = {"add_noise", "check_class_labels", "as_timestep", "as_timesteps"}


class NoWaiting(TorchDispatchMode):
    """Context manager that makes reading a tensor's value, which would wait for a GPU, an error."""

    def __torch_dispatch__(self, operator: Any, types: Any, arguments: Any = (), kwargs: Any = None) -> Any:
        if operator._opname in ("_local_scalar_dense", "nonzero", "equal") and not _in_a_check():
            raise AssertionError(f"{operator} would wait for the device")
        return operator(*arguments, **(kwargs or {}))


def _in_a_check() -> bool:
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code.co_name in CHECKS_OF_VALUES:
            return True
        frame = frame.f_back
    return False
