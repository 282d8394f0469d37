from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from .remembered import RememberedLaunches


@pytest.fixture(scope="package", autouse=True)
def remembered_launches() -> Iterator[None]:
    if torch.cuda.is_available():
        yield
        return
    from dimr_kernels.launch import Launch

    remembered = RememberedLaunches()
    original = Launch.by_triton
    Launch.by_triton = lambda launch, pointers: remembered(launch, pointers)
    yield
    Launch.by_triton = original


@pytest.fixture(autouse=True)
def fused_attention(torch_attention_at_any_size: None) -> None:
    """Keep attention's fused form apart from the eager one, whose products few scores would take as well on a CPU."""


@pytest.fixture(autouse=True)
def form_that_runs(request: pytest.FixtureRequest) -> None:
    if "cell" in request.fixturenames:
        problem = request.getfixturevalue("cell").missing_reason()
        if problem is not None:
            pytest.skip(f"no fused form here: {problem}")
