"""Long runs leak nothing, and running out of memory costs one step, not the run."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

pytest.importorskip("PIL")
pytest.importorskip("tqdm")

import dimr
import dimr_kernels as dk
from dimr.cli import main
from dimr.data.errors import DataError
from dimr.data.loader import TrainingLoader
from dimr.data.opening import open_dataset
from dimr.data.spec import DataSpec
from dimr.training.checkpoint import CheckpointFolder
from dimr.training.loop import Trainer, TrainingSettings
from dimr.utils import OutOfMemoryError, is_out_of_memory
from dimr_kernels import launch
from dimr_kernels.launch import cached_by_shape, forget_launches
from tests.support.pictures import pixels, shards
from tests.support.small_models import perturbed_model
from tests.support.training_runs import newest_state, write_recipe

needs_proc = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
CONFIG = dimr.DiMRConfig(
    in_channels=1, input_size=8, dims=(16, 8), layers=(1, 1), num_heads=2, num_classes=3, kernel_size=3
)
MEBIBYTE = 2**20


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def held() -> dict[str, int]:
    gc.collect()
    return {
        "tensors": sum(issubclass(type(one), torch.Tensor) for one in gc.get_objects()),
        "files": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
    }


def grows(use: Callable[[int], object], times: int, warm_up: int, most: int = 8 * MEBIBYTE) -> None:
    """Check that ``times`` uses after ``warm_up`` leak no tensor, file or thread and hardly any memory."""
    for i in range(warm_up):
        use(i)
    before, memory = held(), resident()
    for i in range(times):
        use(i)
    after = held()
    assert after == before
    assert resident() - memory < most


def new_trainer(steps: int) -> Trainer:
    images, labels = torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 2, 0])
    settings = TrainingSettings(steps=steps, batch_size=4, learning_rate=1e-3, warmup_steps=2, ema_decay=0.9)
    return Trainer(perturbed_model(CONFIG), lambda generator: (images, labels), settings)


@pytest.fixture(autouse=True)
def plain_memory(poisoned_memory):
    """Leave new memory unfilled, as outside the tests."""
    torch.use_deterministic_algorithms(False)


@needs_proc
@pytest.mark.slow
def test_a_thousand_training_steps():
    trainer = new_trainer(1100)
    grows(lambda i: trainer.train_step(), times=1000, warm_up=100)
    trainer.check_finite()


@needs_proc
@pytest.mark.slow
def test_training_with_checkpoints_and_averages(tmp_path):
    trainer, folder = new_trainer(2000), CheckpointFolder(tmp_path, keep=2)

    def step(i: int) -> None:
        trainer.train_step()
        folder.save(trainer)
        with trainer.ema.applied():
            pass

    grows(step, times=60, warm_up=20)
    assert len(list(tmp_path.iterdir())) == 2


@needs_proc
@pytest.mark.slow
def test_ten_thousand_calls_of_operators():
    """Cycle through 75 shapes, forward and backward; oneDNN caches primitives for each."""
    shapes = [(B, H, W) for B in (1, 2, 3) for H in range(1, 6) for W in range(1, 6)]
    norm, geglu = dk.TDLayerNorm(16), dk.GEGLU(16, 16)
    conv, shuffle = dk.DepthwiseConv2d(16, kernel_size=3), dk.PixelShuffleUpsample(16, 8)

    def call(i: int) -> None:
        B, H, W = shapes[i % len(shapes)]
        x = torch.randn(B, H, W, 16)
        y = norm(conv(geglu(x)), torch.rand(B))
        z = shuffle(y, x.new_zeros(B, 2 * H, 2 * W, 8), torch.rand(B))
        z.square().mean().backward()
        for module in (norm, geglu, conv, shuffle):
            module.zero_grad()

    grows(call, times=2250, warm_up=4 * len(shapes))  # four operators a time


def test_what_is_kept_for_each_shape_is_bounded():
    """Call a kernel with ten thousand shapes."""
    try:

        @cached_by_shape
        def worked_out(shape: tuple[int, ...]) -> object:
            return object()

        for n in range(10_000):
            worked_out((n,))
        assert worked_out.cache_info().currsize < 2000
        assert all(cache.cache_info().maxsize for cache in launch._caches)
        forget_launches()
        assert worked_out.cache_info().currsize == 0
    finally:
        launch._caches.pop()


@needs_proc
@pytest.mark.slow
def test_fifty_runs_of_sampling(tmp_path):
    dimr.save_model(perturbed_model(CONFIG), tmp_path / "model")

    def run(i: int) -> None:
        arguments = ["--steps", "2", "--count", "4", "--device", "cpu", "--overwrite"]
        kinds = ([], ["--engine"], ["--method", "dpm-solver-fast", "--guidance", "0"])
        output = tmp_path / ("samples", "samples.npz")[i % 2]
        assert main(["sample", str(tmp_path / "model"), "--output", str(output), *arguments, *kinds[i % 3]]) == 0

    grows(run, times=50, warm_up=12)


@needs_proc
def test_reading_around_corrupt_files(tmp_path):
    (good,) = shards(tmp_path, pixels(6), 6)
    cut = good.with_name("cut.tar")
    cut.write_bytes(good.read_bytes()[:5000])
    bad = good.with_name("picture.tar")
    bad.write_bytes(good.read_bytes().replace(b"IDAT", b"IDOT", 2))

    def read(i: int) -> None:
        with pytest.raises(DataError, match=r"cut\.tar"):
            open_dataset(DataSpec(str(tmp_path), image_size=8))
        loader = TrainingLoader(open_dataset(DataSpec(str(tmp_path), image_size=8, max_skipped=9)), 4)
        for _, batch in zip(range(3), loader, strict=False):
            assert len(batch.labels) == 4
        assert loader.skips.count

    grows(read, times=30, warm_up=5)


@needs_proc
def test_refused_files_hold_nothing(tmp_path):
    """Check that partly read data is freed with the error whose traceback holds it."""
    dimr.save_model(perturbed_model(CONFIG), tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    torch.save({"weight": torch.zeros(MEBIBYTE)}, tmp_path / "foreign.pth")

    def load(i: int) -> None:
        with pytest.raises(dimr.CheckpointError):
            dimr.load_model(tmp_path)
        with pytest.raises(dimr.CheckpointError):
            dimr.load_official_checkpoint(tmp_path / "foreign.pth", CONFIG)

    grows(load, times=12, warm_up=3)


def out_of_memory_once(monkeypatch, at: int, error: BaseException) -> None:
    """Raise ``error`` in the ``at``-th loss, when half of the step is done."""
    losses, calls = Trainer._losses, []

    def scarce(self, *arguments):
        calls.append(None)
        if len(calls) == at:
            raise error
        return losses(self, *arguments)

    monkeypatch.setattr(Trainer, "_losses", scarce)


ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
    MemoryError(),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_out_of_memory_in_a_step_leaves_no_half_gradient(error, monkeypatch):
    """Fail in the second of two passes; the next step must not start from the first pass's gradient."""
    trainer = new_trainer(10)
    trainer.passes = 2
    trainer.train_step()
    before = [p.detach().clone() for p in trainer.model.parameters()]
    out_of_memory_once(monkeypatch, 2, error)
    with pytest.raises(type(error)) as caught:
        trainer.train_step()
    assert is_out_of_memory(caught.value)
    assert trainer.step == 1
    assert all(p.grad is None for p in trainer.model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))
    trainer.train_step()
    trainer.check_finite()


def test_out_of_memory_keeps_the_last_checkpoint(tmp_path, monkeypatch, capsys):
    recipe = write_recipe(tmp_path)
    train = ["train", str(recipe), "--output", str(tmp_path / "run"), "--device", "cpu"]
    with monkeypatch.context() as patch:
        out_of_memory_once(patch, 8, ERRORS[0])
        assert main(train) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert "out of memory at step 8: lower run.device_batch" in message
    assert "the last good checkpoint is" in message
    assert "step-00000006.pt" in message
    assert newest_state(tmp_path / "run")["step"] == 6
    assert main([*train, "--resume"]) == 0  # in the same process
    assert main([*train[:3], str(tmp_path / "whole"), *train[4:]]) == 0
    resumed, whole = newest_state(tmp_path / "run"), newest_state(tmp_path / "whole")
    assert torch.equal(resumed["losses"], whole["losses"])


LIMITED = """
import resource, sys
from dimr.cli import main
import dimr.training.loop as loop, torch
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
losses, calls = loop.Trainer._losses, []
def hungry(self, *arguments):
    calls.append(None)
    if len(calls) == 5:
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, resource.RLIM_INFINITY))
        self.kept = torch.ones(2**32)
    return losses(self, *arguments)
loop.Trainer._losses = hungry
code = main(sys.argv[1:])
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
loop.Trainer._losses = losses
sys.exit(code + 10 * main([*sys.argv[1:], "--resume"]))
"""


@needs_proc
@pytest.mark.slow
def test_a_process_that_really_has_no_more(tmp_path):
    recipe = write_recipe(tmp_path)
    arguments = ["train", str(recipe), "--output", str(tmp_path / "run"), "--device", "cpu", "--threads", "1"]
    done = subprocess.run([sys.executable, "-c", LIMITED, *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr[-2000:]
    assert "out of memory at step 5" in done.stderr
    assert "Traceback" not in done.stderr
    assert newest_state(tmp_path / "run")["step"] == 12


def test_out_of_memory_is_told_from_other_errors():
    assert not is_out_of_memory(RuntimeError("shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("not enough memory of the last war"))
    assert issubclass(OutOfMemoryError, RuntimeError)
