"""Another library's layer beside ours."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from .swap import Adopted, adopted_class


def why_not_equal(cls: type[nn.Module], forward: type[Adopted], make: Callable[[], nn.Module]) -> str | None:
    """The installed library's forward against ours, by trial on a small layer of its class in float64."""
    try:
        with torch.random.fork_rng(devices=()), torch.device("cpu"), torch.no_grad():
            layer, x = make().double().eval(), torch.randn(3, 4, dtype=torch.float64)
            expected = cls.forward(layer, x)
            layer.__class__ = adopted_class(forward, cls)
            same = torch.allclose(layer(x), expected, rtol=1e-12, atol=1e-12)
    except Exception as error:
        return f"this version of its library is not known: {type(error).__name__}: {error}"
    return None if same else "this version of its library computes something else"
