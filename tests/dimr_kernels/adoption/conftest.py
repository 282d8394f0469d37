"""Adoption as on a CPU where torch's own linear layers are the fastest, whatever machine the tests run on."""

from __future__ import annotations

import pytest

from dimr_kernels.adoption import rules


@pytest.fixture(autouse=True)
def onednn_is_no_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "onednn_is_faster", lambda: False)
