"""Training that is killed, told to stop, or finds the disk full loses nothing but the steps since its last save."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time

import pytest
import torch

from dimr import CheckpointError, DiMR, DiMRConfig
from dimr.distributed import Processes
from dimr.training.checkpoint import CheckpointFolder
from dimr.training.loop import Trainer, TrainingSettings
from tests.support.training_runs import finished, newest_state, start_run, write_recipe

pytest.importorskip("PIL")
pytest.importorskip("tqdm")

CONFIG = DiMRConfig(in_channels=1, input_size=8, dims=(16, 8), layers=(1, 1), num_heads=2, num_classes=3, kernel_size=3)
SETTINGS = TrainingSettings(steps=20, batch_size=2, learning_rate=1e-3, warmup_steps=2, ema_decay=0.5)


@pytest.fixture
def trainer():
    return Trainer(
        DiMR(CONFIG), lambda generator: (torch.zeros(2, 1, 8, 8), torch.zeros(2, dtype=torch.long)), SETTINGS
    )


@pytest.fixture
def folder(tmp_path, trainer):
    """With the states of steps 1 and 2."""
    folder = CheckpointFolder(tmp_path / "checkpoints", keep=3)
    for _ in range(2):
        trainer.train_step()
        folder.save(trainer)
    return folder


def names(folder: CheckpointFolder) -> list[str]:
    return sorted(path.name for path in folder.folder.iterdir())


class TestFolder:
    def test_keeps_the_newest(self, folder, trainer):
        for _ in range(2):
            trainer.train_step()
            folder.save(trainer)
        assert names(folder) == ["step-00000002.pt", "step-00000003.pt", "step-00000004.pt"]
        assert folder.load()["step"] == 4

    def test_order_is_that_of_steps(self, folder):
        folder.newest.rename(folder.folder / "step-100000000.pt")
        assert folder.newest.name == "step-100000000.pt"

    def test_what_an_interrupted_write_leaves_is_no_checkpoint(self, folder, trainer, monkeypatch):
        """The process dies between writing and renaming, so that nothing is cleaned up."""
        trainer.train_step()
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", dies)
            patch.setattr("pathlib.Path.unlink", lambda *arguments, **options: None)
            with pytest.raises(Died):
                folder.save(trainer)
        assert len(names(folder)) == 3  # a whole file, but under a temporary name
        assert folder.load()["step"] == 2
        folder.remove_partial_files()
        assert names(folder) == ["step-00000001.pt", "step-00000002.pt"]

    def test_a_damaged_file_falls_back_to_the_one_before(self, folder, caplog):
        newest = folder.newest
        newest.write_bytes(newest.read_bytes()[:-500])
        assert folder.load()["step"] == 1
        assert "step-00000002.pt" in caplog.text
        folder.paths()[0].write_bytes(b"")
        with pytest.raises(CheckpointError, match=r"step-00000002\.pt"):
            folder.load()

    def test_nothing_there(self, tmp_path):
        assert CheckpointFolder(tmp_path / "none").load() is None
        assert CheckpointFolder(tmp_path / "none").newest is None


class TestFullDisk:
    def test_is_named_and_costs_nothing(self, folder, trainer):
        before = folder.load()
        trainer.train_step()
        with (
            largest_file(20_000),
            pytest.raises(CheckpointError, match=r"step-00000003\.pt cannot be written: File too"),
        ):
            folder.save(trainer)
        assert names(folder) == ["step-00000001.pt", "step-00000002.pt"]
        assert torch.equal(folder.load()["losses"], before["losses"])
        folder.save(trainer)
        assert folder.load()["step"] == 3

    def test_with_keep_one_the_old_state_stays_until_the_new_one_is_whole(self, folder, trainer):
        folder.keep = 1
        trainer.train_step()
        with largest_file(20_000), pytest.raises(CheckpointError):
            folder.save(trainer)
        assert folder.load()["step"] == 2

    def test_ends_all_processes(self, monkeypatch):
        """A process that does not write learns that another could not."""
        monkeypatch.setattr(Processes, "broadcast", lambda self, value: "disk full")
        with pytest.raises(CheckpointError, match="disk full"):
            Processes(rank=1, world_size=2).run_on_main(lambda: None, CheckpointError)


class Died(BaseException):
    pass


def dies(*arguments):
    raise Died


@contextlib.contextmanager
def largest_file(size: int):
    """Inside the block no file grows beyond this: writes fail half-way, as on a full disk."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


STEPS = 100


def assert_same_run(first, second):
    one, two = newest_state(first), newest_state(second)
    assert one["step"] == two["step"] == STEPS
    assert torch.equal(one["losses"], two["losses"])
    for name, value in one["model"].items():
        assert torch.equal(value, two["model"][name]), name
    for name, value in one["ema"]["averages"].items():
        assert torch.equal(value, two["ema"]["averages"][name]), name
    assert one["data"] == two["data"]


def wait_for_step(output, step, processes, timeout=60):
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if any(int(path.stem[5:]) >= step for path in (output / "checkpoints").glob("step-*.pt")):
            return
        assert all(process.poll() is None for process in processes), processes[0].communicate()[0][-2000:]
        time.sleep(0.005)
    raise AssertionError(f"no checkpoint of step {step} in time")


def kill(processes):
    """As a machine that loses power: the first process at once, then those that wait for it."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert process.returncode != 0


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 2])
def test_killed_and_resumed_equals_uninterrupted(tmp_path, world_size):
    recipe = write_recipe(tmp_path, steps=STEPS, device_batch=4)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finished(start_run([recipe, "--output", whole], world_size))
    moments = random.Random(world_size)
    saved = 0
    for least in (1, 40)[: 3 - world_size]:
        processes = start_run([recipe, "--output", killed, "--resume"], world_size)
        wait_for_step(killed, least, processes)
        time.sleep(moments.uniform(0, 0.3))
        kill(processes)
        saved = newest_state(killed)["step"]
        assert least <= saved < STEPS
    out = finished(start_run([recipe, "--output", killed, "--resume"], world_size))
    assert f"going on from step {saved}" in out
    assert_same_run(whole, killed)


@pytest.mark.slow
def test_sigterm_saves_and_ends(tmp_path):
    """Sent to one of two processes, it stops both at the same step; one process alone can go on from there."""
    recipe = write_recipe(tmp_path, steps=STEPS, device_batch=4)
    output = tmp_path / "run"
    processes = start_run([recipe, "--output", output, "--set", "run.save_every=20"], 2)
    wait_for_step(output, 20, processes)
    processes[1].send_signal(signal.SIGTERM)
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [128 + signal.SIGTERM] * 2, outputs
    assert "--resume goes on" in outputs[0]
    stopped = newest_state(output)
    assert stopped["data"]["consumed"] == 8 * stopped["step"]
    finished(start_run([recipe, "--output", output, "--resume"]))
    losses = newest_state(output)["losses"]
    assert torch.equal(losses[: stopped["step"]], stopped["losses"])
    assert losses.isfinite().all()
