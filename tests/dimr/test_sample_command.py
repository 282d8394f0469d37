"""``dimr sample``: what it writes, and that it goes on where it stopped."""

from __future__ import annotations

import builtins
import json
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

import dimr
import dimr_kernels as dk
from dimr.cli import main
from dimr.sampling.class_names import ClassNameError, class_ids, find_class_names, save_classes
from dimr.sampling.files import SETTINGS
from dimr.sampling.plan import draw_batches, numbered_noise
from tests.support.small_models import perturbed_model
from tests.support.training_runs import finished, free_port, start_process

np = pytest.importorskip("numpy")
Image = pytest.importorskip("PIL.Image")
pytest.importorskip("safetensors")
pytest.importorskip("tqdm")

SMALL = dimr.DiMRConfig(in_channels=3, input_size=8, dims=(16, 8), layers=(1, 1), num_heads=2, num_classes=3)
NAMES = ["tench, Tinca tinca", "cat", "crane"]
# A batch of another size sums in another order: float32's rounding of values of about 1, over the steps.
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return dimr.save_model(perturbed_model(SMALL), tmp_path_factory.mktemp("model") / "checkpoint")


def command(checkpoint, output, *more, steps=2):
    options = ["--steps", steps, "--count", 10, "--batch-size", 3, "--device", "cpu"]
    return [str(a) for a in ("sample", checkpoint, "--output", output, *options, *more)]


def sample(checkpoint, output, *more) -> int:
    return main(command(checkpoint, output, *more))


def contents(path: Path) -> dict[str, bytes]:
    """Every file of a folder, or the file."""
    return {p.name: p.read_bytes() for p in path.iterdir()} if path.is_dir() else {"": path.read_bytes()}


def test_npz_as_adm_reads_it_and_folder_are_the_same_images(tmp_path, checkpoint):
    assert sample(checkpoint, tmp_path / "a.npz") == 0
    assert sample(checkpoint, tmp_path / "a") == 0
    arrays = np.load(tmp_path / "a.npz")
    assert arrays.files == ["arr_0", "arr_1"]
    assert (arrays["arr_0"].dtype, arrays["arr_0"].shape) == (np.uint8, (10, 8, 8, 3))
    assert arrays["arr_1"].tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]
    pictures = sorted((tmp_path / "a").glob("*.png"))
    assert [p.name for p in pictures] == [f"{i:06d}.png" for i in range(10)]
    assert np.array_equal(np.stack([np.array(Image.open(p)) for p in pictures]), arrays["arr_0"])
    assert len(np.unique(arrays["arr_0"], axis=0)) == 10
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "a.npz"]


@pytest.mark.parametrize("name", ["run-cfg-1.5-seed-0", "run.v2", "v0.9"])
def test_folders_with_a_dot(tmp_path, checkpoint, name):
    assert sample(checkpoint, tmp_path / name) == 0
    assert len(list((tmp_path / name).glob("*.png"))) == 10


@pytest.mark.parametrize("name", ["a.txt", "a.gif", "a.npy", "a.pth", "a.tar.gz", "a.zip"])
def test_other_kinds_of_files_are_refused(tmp_path, checkpoint, name, capsys):
    assert sample(checkpoint, tmp_path / name) == 2
    wanted = "a folder, or a name ending in .png, .jpg, .jpeg, .webp, .safetensors, .npz"
    assert f"--output: wanted {wanted}, got {tmp_path / name}" in capsys.readouterr().err


def test_an_image_depends_on_its_number_alone(tmp_path, checkpoint):
    """Neither on how many are drawn nor on the batch, up to rounding."""
    load = pytest.importorskip("safetensors.torch").load_file
    drawn = []
    for name, more in (("a", ()), ("b", ("--batch-size", 4)), ("c", ("--count", 5, "--batch-size", 1))):
        path = tmp_path / f"{name}.safetensors"
        assert sample(checkpoint, path, *more) == 0
        drawn.append(load(path)["samples"])
    whole, other, fewer = drawn
    torch.testing.assert_close(other, whole, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(fewer, whole[:5], rtol=0, atol=TOLERANCE)
    assert (whole[0] - whole[3]).abs().max() > 100 * TOLERANCE  # of the same class


def test_noise_of_numbers():
    together = numbered_noise((3, 4, 4), 7, range(5))
    assert torch.equal(numbered_noise((3, 4, 4), 7, [4, 2]), together[[4, 2]])
    for seed in (8, 7 + 2**32):  # torch's generator would take the second for 7
        assert not torch.equal(numbered_noise((3, 4, 4), seed, range(5)), together)
    many = numbered_noise((16,), 0, range(2000))
    assert len(many.unique(dim=0)) == 2000
    assert abs(many.mean()) < 0.03
    assert abs(many.std() - 1) < 0.03


def test_batches_come_in_order_and_none_is_lost():
    model = perturbed_model(SMALL).eval()
    noise, labels = torch.randn(5, 3, 8, 8), torch.arange(5) % 3
    drawn = list(draw_batches(model, zip(labels.split(2), noise.split(2), strict=True), steps=1))
    assert [len(part) for part in drawn] == [2, 2, 1]
    torch.testing.assert_close(torch.cat(drawn), dimr.sample(model, labels, noise, steps=1), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("damage", ["missing", "cut", "empty"])
def test_a_folder_goes_on_with_what_is_missing_or_damaged(tmp_path, checkpoint, damage, capsys):
    folder = tmp_path / "a"
    assert sample(checkpoint, folder) == 0
    wanted = contents(folder)
    victim, kept = folder / "000004.png", folder / "000000.png"
    before = kept.stat().st_mtime_ns
    (folder / ".000004.123.partial.png").write_bytes(b"left by a process that was killed")
    if damage == "missing":
        victim.unlink()
    else:
        victim.write_bytes(wanted[victim.name][: 60 if damage == "cut" else 0])
    capsys.readouterr()
    assert sample(checkpoint, folder) == 0
    assert "7 of them from before" in capsys.readouterr().out
    assert contents(folder) == wanted
    assert kept.stat().st_mtime_ns == before


def test_other_settings_are_refused(tmp_path, checkpoint, capsys):
    folder = tmp_path / "a"
    assert sample(checkpoint, folder) == 0
    before = contents(folder)
    assert sample(checkpoint, folder, "--seed", 1, "--guidance", 2) == 2
    error = capsys.readouterr().err
    assert "seed 0 there, 1 here" in error
    assert "guidance" in error
    assert "--overwrite" in error
    assert contents(folder) == before
    assert sample(checkpoint, folder, "--seed", 1, "--overwrite", "--count", 4) == 0
    assert len(contents(folder)) == 4 + 1
    other = dimr.save_model(dimr.DiMR(SMALL), tmp_path / "other")
    assert sample(other, folder, "--seed", 1, "--count", 4) == 2  # the same path would not make it the same model
    assert "model " in capsys.readouterr().err
    (folder / SETTINGS).unlink()
    assert sample(checkpoint, folder, "--overwrite") == 2  # never delete what may be someone else's
    assert "holds something else" in capsys.readouterr().err
    assert (folder / "000000.png").is_file()


def test_parts_of_other_settings_are_refused(tmp_path, checkpoint, capsys):
    parts = tmp_path / "a.npz.parts"
    parts.mkdir()
    (parts / SETTINGS).write_text(json.dumps({"seed": 5}))
    assert sample(checkpoint, tmp_path / "a.npz") == 2
    assert "seed 5 there, 0 here" in capsys.readouterr().err
    (parts / SETTINGS).write_text("{")
    assert sample(checkpoint, tmp_path / "a.npz") == 2
    assert f"{SETTINGS} cannot be read" in capsys.readouterr().err
    assert sample(checkpoint, tmp_path / "a.npz", "--overwrite") == 0
    assert not parts.exists()


def test_a_finished_file_is_not_drawn_again_unasked(tmp_path, checkpoint, capsys):
    assert sample(checkpoint, tmp_path / "a.npz") == 0
    before = contents(tmp_path)
    for more in ((), ("--seed", 1)):
        assert sample(checkpoint, tmp_path / "a.npz", *more) == 2
        assert "a.npz is there already: give another name, or --overwrite" in capsys.readouterr().err
    assert contents(tmp_path) == before
    assert sample(checkpoint, tmp_path / "a.npz", "--seed", 1, "--overwrite") == 0
    assert contents(tmp_path) != before


@pytest.mark.parametrize("name", ["a.npz", "a.safetensors", "a.png"])
def test_a_full_disk_is_said_in_one_line(tmp_path, checkpoint, name, capsys):
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # enough for the settings alone
    try:
        assert sample(checkpoint, tmp_path / name, "--batch-size", 10) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert re.search(f"{name} cannot be written: .*File too large", capsys.readouterr().err)
    assert sample(checkpoint, tmp_path / name, "--batch-size", 10) == 0


def test_classes_by_name(tmp_path, checkpoint, capsys):
    names = tmp_path / "names.txt"
    names.write_text("\n".join(NAMES))
    path = tmp_path / "a.npz"
    assert sample(checkpoint, path, "--class-names", names, "--classes", "Cat,2", "--classes", NAMES[0]) == 0
    assert np.load(path)["arr_1"].tolist()[:4] == [1, 2, 0, 1]
    assert sample(checkpoint, path, "--class-names", names, "--classes", "crate") == 2
    assert "no class is named 'crate'; similar: 'crane'" in capsys.readouterr().err
    assert sample(checkpoint, path, "--classes", "cat") == 2
    assert "--class-names FILE" in capsys.readouterr().err


def test_class_names_are_found(tmp_path):
    assert find_class_names(3, tmp_path) is None
    (tmp_path / "class_names.json").write_text(json.dumps(NAMES))
    assert find_class_names(3, tmp_path) == NAMES
    with pytest.raises(ClassNameError, match="wanted 5 class names, one for each class, found 3"):
        find_class_names(5, tmp_path)
    (tmp_path / "class_names.json").write_text('{"cat": 1}')
    with pytest.raises(ClassNameError, match="JSON list of names"):
        find_class_names(1, tmp_path)
    assert class_ids(["all"], 3, None) == [0, 1, 2]
    with pytest.raises(ClassNameError, match="several classes: 0, 2; give an id"):
        class_ids(["crane"], 3, ["crane", "cat", "crane"])
    with pytest.raises(ClassNameError, match="0 to 2, got -1"):
        class_ids(["-1"], 3, None)


def test_names_that_are_numbers():
    names = ["1", "10", "2"]  # class folders, sorted
    assert class_ids(["2,10", "1"], 3, names) == [2, 1, 0]
    assert class_ids(["id:2", "id:0"], 3, names) == [2, 0]
    with pytest.raises(ClassNameError, match=r"no class is named '0'.*; the class with that id is id:0"):
        class_ids(["0"], 3, names)
    assert class_ids(["2,0,1"], 3, ["0", "1", "2"]) == [2, 0, 1]
    assert class_ids(["2,0,1"], 3, ["ant", "bee", "cat"]) == [2, 0, 1]
    with pytest.raises(ClassNameError, match="0 to 2, got 3"):
        class_ids(["id:3"], 3, names)


def test_classes_that_were_trained(tmp_path, checkpoint, capsys, caplog):
    folder = tmp_path / "checkpoint"
    shutil.copytree(checkpoint, folder)
    save_classes(["ant"], [0, 2], 3, folder)
    assert find_class_names(3, folder) == ["ant", "untrained class 1", "untrained class 2"]
    for more in ((), ("--classes", "all")):
        assert sample(folder, tmp_path / "a.npz", "--overwrite", *more) == 0
        assert np.load(tmp_path / "a.npz")["arr_1"].tolist() == [0, 2] * 5
    assert not caplog.records
    assert sample(folder, tmp_path / "b.npz", "--classes", "ant,1") == 0
    assert "the model was not trained on class 1" in caplog.text
    (folder / "trained_classes.json").write_text("[0, 3]")
    assert sample(folder, tmp_path / "c.npz") == 2
    assert "trained_classes.json: wanted a list of class ids from 0 to 2" in capsys.readouterr().err
    save_classes(None, [0, 1, 2], 3, folder)
    assert sample(folder, tmp_path / "c.npz") == 0
    assert np.load(tmp_path / "c.npz")["arr_1"].tolist()[:3] == [0, 1, 2]


def test_unconditional_samples(tmp_path, checkpoint, capsys):
    load = pytest.importorskip("safetensors.torch").load_file
    assert sample(checkpoint, tmp_path / "a.safetensors", "--classes", "none") == 0
    drawn = load(tmp_path / "a.safetensors")
    assert drawn["labels"].tolist() == [3] * 10
    noise = numbered_noise((3, 8, 8), 0, range(3))
    wanted = dimr.sample(dimr.load_model(checkpoint), [3] * 3, noise, steps=2)
    torch.testing.assert_close(drawn["samples"][:3], wanted, rtol=0, atol=TOLERANCE)
    assert class_ids(["none"], 2, ["none", "some"], unconditional=True) == [0]
    unguided = dimr.DiMRConfig(**{**SMALL.to_dict(), "unconditional_class": False})
    folder = dimr.save_model(dimr.DiMR(unguided), tmp_path / "unguided")
    assert sample(folder, tmp_path / "b.npz", "--classes", "none") == 2
    assert "--classes: none: this model has no unconditional class" in capsys.readouterr().err


def test_imagenet_names(tmp_path):
    pytest.importorskip("torchvision")
    names = find_class_names(1000, tmp_path)
    assert class_ids(["goldfish"], 1000, names) == [1]


@pytest.mark.parametrize("error", [ImportError, RuntimeError])
def test_a_torchvision_that_cannot_be_imported_only_lacks_names(tmp_path, monkeypatch, error):
    def broken(name, *rest):
        if name.startswith("torchvision"):
            raise error("operator torchvision::nms does not exist")
        return imported(name, *rest)

    imported = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", broken)
    assert find_class_names(1000, tmp_path) is None


@pytest.mark.slow
@pytest.mark.parametrize("name", ["images", "images.npz"])
def test_two_processes_write_the_same_bytes(tmp_path, checkpoint, name):
    one, two = tmp_path / "one" / name, tmp_path / "two" / name
    with dk.use_backend("eager"):
        assert sample(checkpoint, one) == 0
    port = free_port()
    said = finished([start_process(command(checkpoint, two), rank, 2, port) for rank in range(2)])
    assert said.count("wrote 10 images") == 1
    assert contents(one) == contents(two)
    assert [p.name for p in two.parent.iterdir()] == [name]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["images", "images.npz"])
def test_killed_in_the_middle(tmp_path, checkpoint, name):
    """Then finished by two processes: still the same bytes."""
    whole, cut = tmp_path / "whole" / name, tmp_path / "cut" / name
    more = ("--count", 40, "--batch-size", 2)
    with dk.use_backend("eager"):
        assert main(command(checkpoint, whole, *more, steps=30)) == 0
    process = start_process(command(checkpoint, cut, *more, steps=30))
    place = cut if name == "images" else cut.with_name(f"{name}.parts")
    batches = 20 * (2 if name == "images" else 1)
    deadline = time.monotonic() + 60
    while len(list(place.glob("[0-9]*"))) < 5 and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert 5 <= len(list(place.glob("[0-9]*"))) < batches
    assert name == "images" or not cut.exists()
    port = free_port()
    said = finished([start_process(command(checkpoint, cut, *more, steps=30), rank, 2, port) for rank in range(2)])
    assert "of them from before" in said
    assert contents(whole) == contents(cut)
