from __future__ import annotations

import ctypes
import json
import platform
import subprocess
import sys

import pytest

from dimr.utils import keep_freed_memory

# Pages that a call maps before and after, in the median: a block may first be cut for small ones, so that it no longer
# fits. A page is 4 KiB or larger.
CODE = """
import json, resource, statistics
import torch
from dimr.utils import keep_freed_memory

def pages():
    def mapped():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(2**24)  # 64 MiB
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    return statistics.median(mapped() for _ in range(15))

before, kept = pages(), keep_freed_memory()
print(json.dumps([before, kept, pages()]))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_large_tensors_meet_memory_that_is_there():
    run = subprocess.run([sys.executable, "-c", CODE], check=True, capture_output=True, text=True)
    before, kept, after = json.loads(run.stdout)
    assert kept
    assert before > 20  # 64 MiB in pages of 2 MiB are 32
    assert after == 0


def test_other_systems_are_left_alone(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert keep_freed_memory() is False
