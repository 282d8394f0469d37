"""From noise to data with few model calls. ``denoise(x, timestep)`` gives the (guided) noise prediction."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Denoise = Callable[[Tensor, float], Tensor]
