"""CPU time of an eager call of every operator, without a GPU: ``python -m benchmarks.host_time``.

Kernels are replaced by nothing (``benchmarks.stubs`` says what exactly), tensors are small and on the CPU. Columns, all
in microseconds of this thread's CPU time, the least of several rounds:

* call: of the public function, no gradient recorded; gradient: the same with one
* checks: what of the call lies before the operator; host: the operator's own code; launches: what of that is ``Launch``
* dispatcher: the operator called through torch's dispatcher instead
* Triton: ``JITFunction.run``, Triton's usual way to launch the same kernels; direct: ``Launch``, with its arguments
  handed to the compiled form as far as Triton's launcher in C

An operator's call on a GPU costs about ``call - launches + direct`` and Triton's launcher in C.
"""

from __future__ import annotations

import os

os.environ.pop("TRITON_INTERPRET", None)  # before Triton is imported: kernels have to be the ones that are compiled

import sys
import time
import timeit
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dimr_kernels import functional as F
from dimr_kernels.launch import Launch
from dimr_kernels.registration import Operator

from .stubs import pretended_gpu, recorded_calls, stubbed_launches

COLUMNS = ("call", "gradient", "checks", "host", "launches", "dispatcher", "Triton", "direct")
# Short rounds: on a busy machine only some of them are left alone.
CALLS, ROUNDS = 50, 200


def microseconds(call: Callable[[], Any]) -> float:
    for _ in range(20):
        call()
    return min(timeit.repeat(call, number=CALLS, repeat=ROUNDS, timer=time.thread_time)) / CALLS * 1e6


def _parameter(*shape: int) -> Tensor:
    return torch.nn.Parameter(torch.randn(shape))


def calls() -> dict[str, Callable[[], Any]]:
    """Small inputs in bfloat16, parameters in float32, the model's layouts."""

    def random(*shape: int) -> Tensor:
        return torch.randn(shape).bfloat16().requires_grad_()

    scale = {name: _parameter(48) for name in ("p1", "p2", "scale_gate_weight", "scale_gate_offset")}
    shift = {name: _parameter(48) for name in ("p3", "p4", "shift_gate_weight", "shift_gate_offset")}
    x, residual, t, h = random(2, 8, 48), random(2, 8, 48), torch.randn(2), random(2, 8, 96)
    image, low, high = random(2, 6, 6, 48), random(2, 3, 3, 192), random(2, 6, 6, 48)
    plain = torch.randn(2, 8, 48).requires_grad_()
    taps, bias, weight = _parameter(48, 1, 7, 7), _parameter(48), _parameter(48)
    layer = {"t": t, **scale, **shift}
    return {
        "td_layer_norm": lambda: F.td_layer_norm(x, **layer),
        "td_layer_norm, residual": lambda: F.td_layer_norm(x, residual=residual, **layer),
        "td_rms_norm": lambda: F.td_rms_norm(x, t=t, **scale),
        "td_rms_norm, residual": lambda: F.td_rms_norm(x, t=t, residual=residual, **scale),
        "geglu": lambda: F.geglu(h),
        "depthwise_conv2d, residual": lambda: F.depthwise_conv2d(image, taps, bias, image),
        "pixel_shuffle_td_norm_add": lambda: F.pixel_shuffle_td_norm_add(low, high, upscale_factor=2, **layer),
        "torch's F.layer_norm, computed": lambda: torch.nn.functional.layer_norm(plain, (48,), weight, bias),
    }  # fmt: skip


def measure(call: Callable[[], Any]) -> dict[str, float]:
    found = {}
    with stubbed_launches():
        found["gradient"] = microseconds(call)
        with torch.no_grad():
            found["call"] = microseconds(call)
            with recorded_calls(Operator) as operators, recorded_calls(Launch) as launches:
                call()
            for operator, arguments in operators:
                found["host"] = microseconds(partial(operator, *arguments))
                found["dispatcher"] = microseconds(partial(operator.overload, *arguments))
                found["checks"] = found["call"] - found["host"]
            found["launches"] = _of_all(launches, lambda launch, pointers: launch(*pointers))
    with pretended_gpu(), torch.no_grad():
        with recorded_calls(Launch) as launches:
            call()
        found["Triton"] = _of_all(launches, Launch.by_triton)
        found["direct"] = _of_all(launches, lambda launch, pointers: launch(*pointers))
    return found


def _of_all(launches: list[Any], call: Callable[[Launch, Any], Any]) -> float:
    return sum(microseconds(partial(call, launch, pointers)) for launch, pointers in launches)


def main() -> None:
    import triton

    torch.set_num_threads(1)
    sys.stdout.write(f"torch {torch.__version__}, Triton {triton.__version__}, Python {sys.version.split()[0]}\n\n")
    sys.stdout.write(f"| operator | {' | '.join(COLUMNS)} |\n|---|{'---:|' * len(COLUMNS)}\n")
    for name, call in calls().items():
        found = measure(call)
        cells = (f" {found[column]:.1f} |" if found.get(column) else " |" for column in COLUMNS)
        sys.stdout.write(f"| {name} |" + "".join(cells) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
