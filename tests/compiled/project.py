"""The door of these tests into the project: its operators on CPU tensors, launched as on a GPU."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

from dimr_kernels.launch import assume_architecture, forget_launches

from .ptx.triton_driver import Executor, compiled_kernels


@contextlib.contextmanager
def operators_on_compiled_kernels(architecture: int = 80, **settings: Any) -> Iterator[Executor]:
    """Inside the block Triton forms take CPU tensors, with the launch configurations of ``architecture``."""
    with (
        compiled_kernels(architecture, **settings) as executor,
        assume_architecture(architecture),
        mock.patch("dimr_kernels.dispatch.TRITON_INTERPRETS", True),
    ):
        yield executor
    forget_launches()
