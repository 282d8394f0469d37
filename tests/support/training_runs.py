"""Runs of ``dimr train`` that take milliseconds a step, on a folder of random pictures."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

STEPS = 12
RECIPE = """
[model]
in_channels = 3
input_size = 8
dims = [16, 8]
layers = [1, 1]
num_heads = 2
num_classes = 3
kernel_size = 3

[data]
path = "{data}"
image_size = 8

[training]
steps = {steps}
batch_size = 8
learning_rate = 1e-3
warmup_steps = 2
ema_decay = 0.9

[run]
device_batch = {device_batch}
workers = 0
save_every = 3
tensorboard = false
"""


def write_pictures(folder: Path, per_class: int = 5) -> Path:
    from PIL import Image

    random = np.random.default_rng(0)
    for label in range(3):
        (folder / f"class{label}").mkdir(parents=True)
        for i in range(per_class):
            Image.fromarray(random.integers(256, size=(9, 8, 3), dtype=np.uint8)).save(
                folder / f"class{label}" / f"{i}.png"
            )
    return folder


def write_recipe(folder: Path, steps: int = STEPS, device_batch: int = 8) -> Path:
    """Write the recipe and its pictures into ``folder``."""
    data = folder / "pictures"
    if not data.exists():
        write_pictures(data)
    path = folder / "recipe.toml"
    path.write_text(RECIPE.format(data=data, steps=steps, device_batch=device_batch))
    return path


def newest_state(output: Path) -> dict:
    return torch.load(max((output / "checkpoints").glob("step-*.pt")), weights_only=True)


def start_process(arguments: list[object], rank: int = 0, world_size: int = 1, port: int = 0) -> subprocess.Popen[str]:
    """Start ``dimr`` with these arguments, as torchrun would."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DIMR_KERNELS_BACKEND": "eager"}
    if world_size > 1:
        environment |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip
    command = [sys.executable, "-m", "dimr", *map(str, arguments)]
    return subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )


def start_run(arguments: list[object], world_size: int = 1) -> list[subprocess.Popen[str]]:
    """Start ``dimr train``."""
    port, train = free_port(), ["train", *arguments, "--device", "cpu", "--threads", 1]
    return [start_process(train, rank, world_size, port) for rank in range(world_size)]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def finished(processes: list[subprocess.Popen[str]], timeout: float = 120) -> str:
    """Wait for the processes, all of which must succeed, and return their output."""
    outputs = [process.communicate(timeout=timeout)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), "\n".join(outputs)[-3000:]
    return "\n".join(outputs)
