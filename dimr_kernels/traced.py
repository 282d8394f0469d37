"""What torch.compile is told about functions of this package, without Dynamo being imported for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

AnyFunction = TypeVar("AnyFunction", bound=Callable[..., object])


def constant_when_traced(function: AnyFunction) -> AnyFunction:
    """Traced code calls the function once and keeps what it gave, as with ``torch.compiler.assume_constant_result``.

    Torch's decorator sets this mark too, but imports Dynamo first, which takes about as long as torch itself.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function
