from __future__ import annotations

import ctypes
import json
import platform
import subprocess
import sys

import pytest

from dimr.utils import keep_freed_memory

CALLS = 4
# Pages mapped by each call, before and after; a page is 4 KiB or larger.
CODE = f"""
import json, resource
import torch
from dimr.utils import keep_freed_memory

def pages():
    def mapped():
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24)  # 64 MiB
    before = mapped()
    for _ in range({CALLS}):
        torch.ones(2**24)
    return (mapped() - before) / {CALLS}

before, kept = pages(), keep_freed_memory()
print(json.dumps([before, kept, pages()]))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_large_tensors_meet_memory_that_is_there():
    run = subprocess.run([sys.executable, "-c", CODE], check=True, capture_output=True, text=True)
    before, kept, after = json.loads(run.stdout)
    assert kept
    assert before > 20  # 64 MiB in pages of 2 MiB are 32
    assert after < 1


def test_other_systems_are_left_alone(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert keep_freed_memory() is False
