"""The lock that keeps a second run out of a folder."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys

import pytest

from dimr.cli import main
from dimr.utils import LOCK_FILE, FolderLockedError, exclusive_lock
from tests.support.training_runs import newest_state, write_recipe

pytest.importorskip("fcntl")
HOLDS = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); input()"


@contextlib.contextmanager
def another_process_in(folder):
    """Hold the lock in a process that is killed at the end of the block, as by ``kill -9``."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-c", HOLDS, str(folder / LOCK_FILE)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        try:
            yield
        finally:
            process.kill()


def test_a_folder_is_free_again_when_the_other_was_killed(tmp_path):
    folder, refused = tmp_path / "new" / "run", pytest.raises(FolderLockedError, match="another process writes to")
    with another_process_in(folder), refused, exclusive_lock(folder):
        pass
    with exclusive_lock(folder):
        pass


def test_a_second_run_is_refused_and_touches_nothing(tmp_path, capsys):
    pytest.importorskip("PIL")
    pytest.importorskip("tqdm")
    output = tmp_path / "run"
    command = ["train", str(write_recipe(tmp_path, steps=3)), "--output", str(output), "--device", "cpu"]
    leftover = output / "checkpoints" / ".step-00000003.1.partial.pt"
    leftover.parent.mkdir(parents=True)
    leftover.write_bytes(b"being written")
    with another_process_in(output):
        for more in ("--resume", "--overwrite"):
            assert main([*command, more]) == 2
            assert f"dimr train: error: another process writes to {output}" in capsys.readouterr().err
        assert leftover.exists()
    assert main([*command, "--resume"]) == 0
    assert newest_state(output)["step"] == 3
    assert not leftover.exists()


def test_a_forked_worker_does_not_keep_the_folder_locked(tmp_path):
    """The worker of a data loader may outlive the run that was killed. The package filelock would fail here."""
    fork = (
        "import os, sys, time; from pathlib import Path; from dimr.utils import exclusive_lock\n"
        "with exclusive_lock(Path(sys.argv[1])):\n"
        "    worker = os.fork()\n"
        "    if worker == 0: time.sleep(60)\n"
        "    print(worker, flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", fork, str(tmp_path)], stdout=subprocess.PIPE) as process:
        worker = int(process.stdout.readline())
        try:
            with pytest.raises(FolderLockedError), exclusive_lock(tmp_path):
                pass
            process.kill()
            process.wait()
            with exclusive_lock(tmp_path):
                pass
        finally:
            process.kill()
            os.kill(worker, signal.SIGKILL)
