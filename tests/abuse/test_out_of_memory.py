"""Running out of memory raises a clear error, leaks nothing, and the process can continue."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

# With 3 GB left to the process, call each operator on more than that, then on a small input.
SCRIPT = """
    import gc, resource, sys
    import torch
    import dimr_kernels as dk
    from dimr_kernels import functional as F

    torch.set_num_threads(1)
    def address_space():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[0]) * resource.getpagesize()

    def expanded(*shape):
        return torch.ones(1, dtype=torch.bfloat16).expand(shape)

    gates = {name: torch.ones(8) for name in ("p1", "p2", "scale_gate_weight", "scale_gate_offset")}
    n = 2**30
    calls = {
        "geglu": lambda n: F.geglu(expanded(n, 16)),
        "td_rms_norm": lambda n: F.td_rms_norm(expanded(n, 8), 0.5, **gates),
        "depthwise_conv2d": lambda n: F.depthwise_conv2d(expanded(1, 2, n, 8), torch.ones(8, 1, 3, 3)),
        "pixel_shuffle_add": lambda n: F.pixel_shuffle_add(expanded(1, 2, n, 8), None, 2),
        "pixel_unshuffle": lambda n: F.pixel_unshuffle(expanded(1, 2, 2 * n, 8), 2),
    }
    small = {name: call(4) for name, call in calls.items()}
    before = address_space()
    resource.setrlimit(resource.RLIMIT_AS, (before + 3 * 2**30,) * 2)
    for name, call in calls.items():
        for _ in range(3):
            try:
                call(n)
            except RuntimeError as error:
                assert "memory" in str(error), error
            else:
                sys.exit(f"{name}: 2**30 rows fitted")
        gc.collect()
        assert torch.equal(call(4), small[name]), name
    grown = address_space() - before
    assert grown < 2**28, f"{grown} bytes were kept"
    print("usable")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit and /proc are Linux's")
def test_the_process_stays_usable():
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(SCRIPT)], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, "usable\n"), done.stderr[-2000:]
