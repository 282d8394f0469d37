"""Settings of all tests: fused kernels run on the GPU if there is one, else in Triton's interpreter and in C++."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator

import pytest
import torch

from .support.torchvision_operators import declare_missing_operators

GPU = torch.cuda.is_available()
if not GPU:
    # Read when dimr_kernels and its kernels are first imported. tests/compiled runs in a process that sets it to 0.
    os.environ.setdefault("TRITON_INTERPRET", "1")
declare_missing_operators()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """Skip a test that needs Triton where it is not installed (it has wheels for Linux only)."""
    from dimr_kernels.dispatch import TRITON_INSTALLED, BackendError

    try:
        yield
    except BackendError as error:
        if TRITON_INSTALLED:
            raise
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda" if GPU else "cpu")


@pytest.fixture
def torch_attention_at_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let "auto" take torch's attention on a CPU also where it takes plain products."""
    monkeypatch.setattr("dimr_kernels.ops.attention.MOST_SCORES_ON_CPU", -1)


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Fill new memory with NaN, so that an output element that no kernel wrote is not taken for a correct one."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Use one thread: tiny tensors gain nothing from a second one, and on a busy machine wait for it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def fresh_launches() -> Iterator[None]:
    """Clear the cached launches, so that a test that changes launch configurations sees its own and leaves none."""
    from dimr_kernels.launch import forget_launches

    forget_launches()
    yield
    forget_launches()


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
