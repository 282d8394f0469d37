from __future__ import annotations

import itertools
import logging

import pytest
import torch

pytest.importorskip("PIL")

import numpy as np

from dimr.data.dataset import Dataset
from dimr.data.errors import DataError, SampleError
from dimr.data.loader import TrainingLoader
from dimr.data.opening import open_dataset
from dimr.data.spec import DataSpec
from tests.support.pictures import class_folders, pixels, shards

N = 7


class Numbers(Dataset):
    """Sample i is i, a coin and a random number; those in ``lost`` cannot be read."""

    class_names = None
    num_classes = N
    sample_shape = (3, 1, 1)

    def __init__(self, lost=(), max_skipped=0):
        self.labels = np.arange(N)
        self.lost = lost
        self.max_skipped = max_skipped

    def load(self, index, random=None):
        if index in self.lost:
            raise SampleError(f"number {index}", "lost")
        return torch.tensor([float(index), float(random.coin()), float(random.normal((1,)))]).reshape(3, 1, 1)


def take(loader, count):
    """The next ``count`` batches."""
    return list(itertools.islice(loader, count))


def numbers(loader, count) -> torch.Tensor:
    """The next batches, ``[count, B, 3]``."""
    batches = take(loader, count)
    for batch in batches:
        assert torch.equal(batch.labels, batch.samples[:, 0, 0, 0].long())
    return torch.stack([batch.samples.flatten(1) for batch in batches]) if batches else torch.empty(0)


def sequence(places, seed=0, **more) -> torch.Tensor:
    """``[places, 3]``, one sample at a time in one process."""
    return numbers(TrainingLoader(Numbers(**more), 1, seed=seed), places)[:, 0]


def interleaved(loaders, batches) -> torch.Tensor:
    """Samples that all processes read, in the order of the sequence: ``[places, 3]``."""
    return torch.stack([numbers(loader, batches) for loader in loaders], dim=1).flatten(0, 2)


def processes(world_size, batch_size, state=None, **more):
    loaders = [
        TrainingLoader(Numbers(), batch_size, rank=rank, world_size=world_size, **more) for rank in range(world_size)
    ]
    for loader in loaders:
        if state is not None:
            loader.load_state_dict(state)
    return loaders


def test_every_epoch_has_every_sample_once_in_its_own_order():
    epochs = sequence(4 * N)[:, 0].reshape(4, N).long()
    for epoch in epochs:
        assert epoch.sort().values.tolist() == list(range(N))
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == 4
    assert not torch.equal(sequence(N), sequence(N, seed=1))


def test_the_order_is_the_same_for_good():
    assert sequence(N, seed=5)[:, 0].tolist() == [2, 4, 3, 1, 5, 0, 6]


def test_chance_differs_from_epoch_to_epoch():
    many = sequence(40 * N).reshape(40, N, 3)
    coins = torch.stack([epoch[epoch[:, 0].argsort(), 1] for epoch in many])  # [epoch, sample]
    assert 0.4 < coins.mean() < 0.6
    assert (coins.mean(0) > 0.1).all()
    assert (coins.mean(0) < 0.9).all()
    assert len(many[:, :, 2].unique()) == 40 * N


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 10])
def test_processes_share_the_sequence(world_size, batch_size):
    got = interleaved(processes(world_size, batch_size), 5)
    assert torch.equal(got, sequence(5 * world_size * batch_size))


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_change_nothing(num_workers):
    alone = numbers(TrainingLoader(Numbers(), 3), 6)
    assert torch.equal(numbers(TrainingLoader(Numbers(), 3, num_workers=num_workers), 6), alone)


@pytest.mark.parametrize("done", range(9))
def test_resumed_anywhere(done):
    whole = numbers(TrainingLoader(Numbers(), 2), done + 4)
    first, second = TrainingLoader(Numbers(), 2), TrainingLoader(Numbers(), 2)
    numbers(first, done)
    second.load_state_dict(first.state_dict())
    assert torch.equal(numbers(second, 4), whole[done:])


def test_what_workers_read_ahead_is_not_consumed():
    loader, resumed = TrainingLoader(Numbers(), 2, num_workers=2), TrainingLoader(Numbers(), 2)
    numbers(loader, 3)
    assert loader.state_dict()["consumed"] == 6
    resumed.load_state_dict(loader.state_dict())
    assert torch.equal(numbers(resumed, 2).flatten(0, 1), sequence(10)[6:])
    assert torch.equal(numbers(loader, 2).flatten(0, 1), sequence(10)[6:])  # the same loader, iterated again


@pytest.mark.parametrize("done", [1, 2, 3])
def test_resumed_by_another_number_of_processes(done):
    before = processes(2, 3)
    interleaved(before, done)
    states = [loader.state_dict() for loader in before]
    assert states[0] == states[1]
    after = interleaved(processes(3, 2, states[0]), 3)
    assert torch.equal(after, sequence(6 * done + 18)[6 * done :])


def test_global_random_state_is_left_alone():
    before = torch.get_rng_state()
    numbers(TrainingLoader(Numbers(), 2), 3)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_state_of_other_data_is_refused():
    state = TrainingLoader(Numbers(), 2).state_dict()
    with pytest.raises(DataError, match="the saved run's data has 9 samples, this data has 7"):
        TrainingLoader(Numbers(), 2).load_state_dict({**state, "samples": 9})
    with pytest.raises(DataError, match="the saved run's data is latents of A, this data is pictures"):
        TrainingLoader(Numbers(), 2).load_state_dict({**state, "kind": "latents of A"})
    other = Numbers()
    other.labels = 1 - other.labels
    with pytest.raises(DataError, match="the saved run's data has other labels"):
        TrainingLoader(other, 2).load_state_dict(state)
    del state["labels"], state["kind"]  # of an older version
    TrainingLoader(Numbers(), 2).load_state_dict(state)


def test_another_seed_goes_on_in_its_own_order():
    loader = TrainingLoader(Numbers(), 2)
    take(loader, 2)
    other = TrainingLoader(Numbers(), 2, seed=3)
    other.load_state_dict(loader.state_dict())
    assert torch.equal(numbers(other, 3), numbers(TrainingLoader(Numbers(), 2, seed=3), 5)[2:])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"batch_size": 1, "rank": 2, "world_size": 2}, "rank must be from 0 to world_size - 1 = 1, got 2"),
        ({"batch_size": 1, "seed": -1}, "seed must be from 0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        TrainingLoader(Numbers(), **arguments)


def test_lost_samples_are_replaced_counted_and_logged(caplog):
    whole, lost = sequence(3 * N), [2, 5]
    loader = TrainingLoader(Numbers(lost, max_skipped=2), 3)
    with caplog.at_level(logging.WARNING):
        got = numbers(loader, N).flatten(0, 1)  # three epochs
    changed = torch.isin(whole[:, 0], torch.tensor(lost).float())
    assert torch.equal(got[~changed], whole[~changed])
    assert not torch.isin(got[:, 0], torch.tensor(lost).float()).any()
    assert loader.skips.files == {"number 2": "lost", "number 5": "lost"}
    assert loader.skips.count >= 6  # in three epochs; a replacement may be lost too
    assert [r.getMessage() for r in caplog.records][-1].startswith("skipped (2 of at most 2) number")
    assert len(caplog.records) == 2
    others = [TrainingLoader(Numbers(lost, 2), 1, rank=r, world_size=3, num_workers=r) for r in range(3)]
    assert torch.equal(interleaved(others, N), got)


def test_counts_are_resumed():
    first, second = (TrainingLoader(Numbers([2, 5], 2), 3) for _ in range(2))
    numbers(first, N)
    second.load_state_dict(first.state_dict())
    assert (second.skips.files, second.skips.count) == (first.skips.files, first.skips.count)
    numbers(first, 2)
    numbers(second, 2)
    assert second.state_dict() == first.state_dict()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_more_lost_than_allowed_is_an_error(num_workers):
    with pytest.raises(DataError, match=r"^number 2: lost$"):
        numbers(TrainingLoader(Numbers([2]), 3, num_workers=num_workers), 4)
    with pytest.raises(DataError, match="more than max_skipped = 1 files are unreadable, the last is number"):
        numbers(TrainingLoader(Numbers([2, 5], 1), 3, num_workers=num_workers), 4)
    with pytest.raises(DataError, match="32 samples in a row are unreadable"):
        numbers(TrainingLoader(Numbers(range(N), 9), 3, num_workers=num_workers), 4)


def test_a_corrupt_picture(tmp_path):
    paths = class_folders(tmp_path, pixels(6, 32), "jpg")
    whole = paths[4].read_bytes()
    paths[4].write_bytes(whole[: len(whole) // 2])
    spec = {"path": str(tmp_path), "image_size": 8}
    strict = TrainingLoader(open_dataset(DataSpec.from_dict(spec)), 6)
    with pytest.raises(DataError, match=f"^{paths[4]}: Truncated File Read|: .*truncated"):
        next(iter(strict))
    loader = TrainingLoader(open_dataset(DataSpec.from_dict({**spec, "max_skipped": 1})), 6)
    images, labels = next(iter(loader)).to("cpu")
    assert images.shape == (6, 3, 8, 8)
    assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
    assert images.abs().max() <= 1
    assert list(loader.skips.files) == [str(paths[4])]
    paths[0].unlink()
    with pytest.raises(DataError, match=rf"max_skipped = 1 .* {paths[0]}: No such file or directory"):
        take(loader, 2)


def test_a_shard_that_is_missing_from_the_start(tmp_path):
    paths = shards(tmp_path, pixels(6), per_shard=2)
    paths[1].unlink()
    spec = {"path": str(tmp_path / "train-{000..002}.tar"), "image_size": 8}
    with pytest.raises(DataError, match=f"^{paths[1]}: No such file or directory"):
        open_dataset(DataSpec.from_dict(spec))
    dataset = open_dataset(DataSpec.from_dict({**spec, "max_skipped": 1}))
    loader = TrainingLoader(dataset, 2)
    assert len(dataset) == 4
    assert loader.skips.files == {str(paths[1]): "No such file or directory"}


@pytest.mark.parametrize("change", ["vanished", "shorter"])
def test_a_shard_that_is_lost_while_training(tmp_path, change):
    paths = shards(tmp_path, pixels(6), per_shard=2)
    dataset = open_dataset(DataSpec(str(tmp_path), image_size=8, max_skipped=1, flip=False))
    loader = TrainingLoader(dataset, 6)
    first = next(iter(loader))
    if change == "vanished":
        paths[1].unlink()
    else:
        paths[1].write_bytes(b"")
    second = next(iter(loader))
    reason = "No such file or directory" if change == "vanished" else "it has become shorter"
    assert loader.skips.files == {str(paths[1]): reason}  # one file, though two samples
    assert loader.skips.count >= 2
    assert len(first.labels) == len(second.labels) == 6


def test_mirroring(tmp_path):
    pictures = pixels(4)
    np.savez(tmp_path / "a.npz", images=pictures, labels=np.arange(4))
    spec = DataSpec(str(tmp_path / "a.npz"), image_size=8)
    mirrored = 0
    for batch in take(TrainingLoader(open_dataset(spec), 4), 20):
        for sample, label in zip(batch.samples, batch.labels, strict=True):
            original = torch.from_numpy(pictures[label]).permute(2, 0, 1)
            assert torch.equal(sample, original) or torch.equal(sample, original.flip(-1))
            mirrored += not torch.equal(sample, original)
    assert 20 < mirrored < 60
