"""Two runs in one folder."""

from __future__ import annotations

import contextlib
import subprocess
import sys

import pytest

from dimr.cli import main
from dimr.utils import NAME, OccupiedError, occupied
from tests.support.training_runs import newest_state, write_recipe

pytest.importorskip("fcntl")
HOLDS = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); input()"


@contextlib.contextmanager
def another_process_in(folder):
    """Killed at the end of the block, as by ``kill -9``."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-c", HOLDS, str(folder / NAME)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        try:
            yield
        finally:
            process.kill()


def test_a_folder_is_free_again_when_the_other_was_killed(tmp_path):
    folder, refused = tmp_path / "new" / "run", pytest.raises(OccupiedError, match="another process writes to")
    with another_process_in(folder), refused, occupied(folder):
        pass
    with occupied(folder):
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
