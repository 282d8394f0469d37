"""Two processes train as one does."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import pytest
import torch
import torch.multiprocessing as mp

from dimr.cli import main
from dimr.distributed import STRATEGIES, Processes, full_tensor, joined_processes
from dimr.training.loop import Trainer, TrainingSettings
from tests.support.processes import end_here
from tests.support.small_models import TINY, perturbed_model
from tests.support.training_runs import finished, free_port, newest_state, start_run, write_recipe

BATCH = 8
SETTINGS = TrainingSettings(steps=4, batch_size=BATCH, learning_rate=1e-3, warmup_steps=1, ema_decay=0.5)
# Only the order of sums differs: float32's rounding, some hundred times, of the largest gradient.
TOLERANCE = 1e-5


def source(processes: Processes, passes: int):
    """This process's parts of one batch after another, as the loader divides them."""
    images = torch.randn(BATCH * SETTINGS.steps, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    labels = torch.arange(len(images)) % TINY.num_classes
    each = BATCH // (processes.world_size * passes)
    calls = iter(range(10**6))

    def draw(generator):
        start = (next(calls) * processes.world_size + processes.rank) * each
        return images[start : start + each], labels[start : start + each]

    return draw


ALONE = Processes()


def new_trainer(processes: Processes = ALONE, strategy: str = "ddp", passes: int = 1, **changes) -> Trainer:
    settings = dataclasses.replace(SETTINGS, **changes)
    draw = source(processes, passes)
    return Trainer(perturbed_model(TINY), draw, settings, processes=processes, strategy=strategy, passes=passes)


def gradients(trainer: Trainer) -> dict[str, torch.Tensor]:
    trainer.backward()
    return {name: full_tensor(p.grad).clone() for name, p in trainer.model.named_parameters()}


def _work(rank, port, folder, strategy):
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    with joined_processes(torch.device("cpu")) as processes:
        for passes in (1, 2):
            found = gradients(new_trainer(processes, strategy, passes))
            if processes.is_main:
                torch.save(found, f"{folder}/gradients{passes}.pt")
        trainer = new_trainer(processes, strategy)
        steps = trainer.run()
        for _ in range(2):
            next(steps)
        state = trainer.state_dict()
        if processes.is_main:
            torch.save(state, f"{folder}/state.pt")
        for _ in steps:
            pass
        state = trainer.state_dict()
        if processes.is_main:
            torch.save(state, f"{folder}/end.pt")
        _resume(processes, strategy, folder)
    end_here()


def _resume(processes, strategy, folder):
    """A new trainer, from what was saved after two steps."""
    processes.barrier()  # the file is there
    trainer = new_trainer(processes, strategy)
    trainer.load_state_dict(torch.load(f"{folder}/state.pt", weights_only=True))
    for _ in range(2):
        trainer.batches(trainer.generator)  # the first two batches are behind us
    for _ in trainer.run():
        pass
    state = trainer.state_dict()
    if processes.is_main:
        torch.save(state, f"{folder}/resumed.pt")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_same_gradients_and_states_as_one_process(tmp_path, strategy):
    mp.spawn(_work, (free_port(), str(tmp_path), strategy), nprocs=2)
    alone = gradients(new_trainer())
    largest = max(gradient.abs().max() for gradient in alone.values())
    for passes in (1, 2):
        found = torch.load(tmp_path / f"gradients{passes}.pt", weights_only=True)
        assert found.keys() == alone.keys()
        for name, gradient in alone.items():
            assert (found[name] - gradient).abs().max() < TOLERANCE * largest, name
    trainer = new_trainer()
    for _ in trainer.run():
        pass
    end, resumed = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("end", "resumed"))
    torch.testing.assert_close(end["losses"], trainer.losses, rtol=1e-4, atol=1e-5)
    assert torch.equal(end["generator"], trainer.generator.get_state())
    assert torch.equal(end["losses"], resumed["losses"])
    own = trainer.state_dict()
    for part in ("model", "ema", "optimizer"):
        assert_same_shapes(end[part], own[part])
        assert_equal(end[part], resumed[part])
    lone = new_trainer()
    lone.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))  # one process goes on from two
    assert lone.step == 2


def flat(tree):
    return torch.utils._pytree.tree_flatten_with_path(tree)[0]


def assert_same_shapes(first, second):
    assert [(str(p), getattr(v, "shape", None)) for p, v in flat(first)] == [
        (str(p), getattr(v, "shape", None)) for p, v in flat(second)
    ]


def assert_equal(first, second):
    for (path, one), (_, two) in zip(flat(first), flat(second), strict=True):
        assert torch.equal(one, two) if isinstance(one, torch.Tensor) else one == two, path


def test_passes_add_up_to_the_batch():
    alone, divided = gradients(new_trainer()), gradients(new_trainer(passes=4))
    largest = max(gradient.abs().max() for gradient in alone.values())
    for name, gradient in alone.items():
        assert (divided[name] - gradient).abs().max() < TOLERANCE * largest, name


def test_each_process_has_its_own_noise():
    """The parts of two processes make up the whole batch's timesteps and noise."""
    parts = []
    for rank in range(2):
        trainer = new_trainer()
        trainer.processes = Processes(rank, 2)
        seen = []
        trainer._losses = lambda images, labels, noise, seen=seen: seen.append(noise) or (_zero(),) * 3
        trainer.batches = source(trainer.processes, 1)
        trainer.backward()
        parts.append(seen[0])
    whole_batch = new_trainer()._draw_noise(torch.empty(1, 3, 8, 8), BATCH)
    for i, expected in enumerate(whole_batch):
        assert torch.equal(torch.cat([part[i] for part in parts]), expected)


def _zero():
    return torch.zeros(1, requires_grad=True)


@pytest.mark.slow
def test_under_torchrun(tmp_path):
    """The command over two processes, sharded, with samples on the way, which must leave the model as it was."""
    recipe = write_recipe(tmp_path, device_batch=2)
    two, one = tmp_path / "two", tmp_path / "one"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "dimr", "train", str(recipe), "--output", str(two), "--device", "cpu"]
    command += ["--set", "run.strategy=fsdp", "--set", "run.sample_every=5", "--set", "run.sample_steps=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DIMR_KERNELS_BACKEND": "eager"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("trained to step") == 1
    assert main(["train", str(recipe), "--output", str(one), "--device", "cpu"]) == 0
    first, second = newest_state(one), newest_state(two)
    torch.testing.assert_close(first["losses"], second["losses"], rtol=1e-4, atol=1e-4)
    assert torch.equal(first["generator"], second["generator"])
    assert first["data"] == second["data"]
    assert (two / "samples" / "step-00000010.png").is_file()
    # One process extends the run of two, and the run of one likewise.
    more = ["--device", "cpu", "--resume", "--set", "training.steps=14", "--set", "training.decaying=all but gates"]
    for output in (one, two):
        assert main(["train", str(recipe), "--output", str(output), *more]) == 0
    first, second = newest_state(one), newest_state(two)
    torch.testing.assert_close(first["losses"], second["losses"], rtol=1e-4, atol=1e-4)
    assert first["data"] == second["data"]


@pytest.mark.slow
def test_two_processes_start_from_the_same_weights_as_one(tmp_path):
    recipe, old = write_recipe(tmp_path, steps=4, device_batch=4), tmp_path / "old"
    assert main(["train", str(recipe), "--output", str(old), "--device", "cpu", "--set", "model.num_classes=6"]) == 0
    options = [str(recipe), "--init", str(old), "--set", "run.strategy=fsdp"]
    printed = finished(start_run([*options, "--output", tmp_path / "two"], world_size=2))
    assert printed.count("the class embedding is new for 3 classes (it had 6)") == 1
    assert main(["train", *options, "--output", str(tmp_path / "one"), "--device", "cpu"]) == 0
    first, second = newest_state(tmp_path / "one"), newest_state(tmp_path / "two")
    torch.testing.assert_close(first["losses"], second["losses"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(first["ema"], second["ema"], rtol=1e-3, atol=1e-4)
