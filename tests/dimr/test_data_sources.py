from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

pytest.importorskip("PIL")

import numpy as np

from dimr.data.errors import DataError, SampleError
from dimr.data.opening import open_dataset
from dimr.data.sources.tar import expand
from dimr.data.spec import DataSpec, guess_kind
from tests.support.pictures import CLASSES, class_folders, encoded, pixels, shards, write_tar

SHARED = Path(__file__).parents[3] / "shared" / "data"


def opened(path, **more):
    return open_dataset(DataSpec.from_dict({"path": str(path), "image_size": 8, **more}))


def loaded(dataset) -> np.ndarray:
    """uint8 ``[N, S, S, 3]``"""
    return np.stack([dataset.load(i).permute(1, 2, 0).numpy() for i in range(len(dataset))])


def fails(message, path, **more):
    with pytest.raises((DataError, FileNotFoundError), match=message):
        opened(path, **more)


def test_class_folders(tmp_path):
    pictures = pixels(7)
    class_folders(tmp_path, pictures)
    dataset = opened(tmp_path)
    assert dataset.class_names == CLASSES
    assert dataset.labels.tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert np.array_equal(loaded(dataset), pictures[[0, 3, 6, 1, 4, 2, 5]])


def test_class_folders_as_torchvision_sees_them(tmp_path):
    datasets = pytest.importorskip("torchvision.datasets")
    class_folders(tmp_path, pixels(7))
    (tmp_path / "ant" / "deeper").mkdir()
    shutil.copy(tmp_path / "ant" / "000.png", tmp_path / "ant" / "deeper" / "1.png")
    theirs, ours = datasets.ImageFolder(str(tmp_path)), opened(tmp_path)
    assert tuple(theirs.classes) == ours.class_names
    assert sorted(theirs.samples) == sorted((str(tmp_path / ours.source.name(i)), ours.labels[i]) for i in range(8))


def test_folder_without_classes(tmp_path):
    pictures = pixels(3)
    for i, picture in enumerate(pictures):
        (tmp_path / f"{i}.png").write_bytes(encoded(picture))
    (tmp_path / "notes.txt").write_text("not a picture")
    (tmp_path / "._0.png").write_text("left by another system")
    dataset = opened(tmp_path)
    assert (dataset.num_classes, dataset.class_names, dataset.labels.tolist()) == (1, None, [0, 0, 0])
    assert np.array_equal(loaded(dataset), pictures)


def test_unusable_folders(tmp_path):
    fails("no data at", tmp_path / "nowhere")
    fails("no samples", tmp_path)
    (tmp_path / "ant").mkdir()
    fails(r"ant holds no picture \(.jpg", tmp_path)
    class_folders(tmp_path, pixels(3))
    (tmp_path / "loose.png").write_bytes(b"")
    fails("pictures beside class folders, the first is loose.png", tmp_path)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("keys", [("images", "labels"), ("arr_0", "arr_1")])
def test_npz_of_pixels(tmp_path, save, keys):
    pictures, path = pixels(5), tmp_path / "a.npz"
    save(path, **{keys[0]: pictures, keys[1]: np.arange(5, dtype=np.int32)})
    dataset = opened(path)
    assert (dataset.num_classes, dataset.labels.tolist()) == (5, [0, 1, 2, 3, 4])
    assert np.array_equal(loaded(dataset), pictures)
    mapped = isinstance(dataset.source._images, np.memmap)
    assert mapped == (save is np.savez)  # what is not compressed is not loaded


def test_npz_of_picture_files(tmp_path):
    pictures, path = pixels(5), tmp_path / "a.npz"
    files = [encoded(picture) for picture in pictures]
    offsets = np.cumsum([0, *map(len, files)])
    jpeg = np.frombuffer(b"".join(files), np.uint8)
    np.savez(path, jpeg=jpeg, offsets=offsets, labels=[0, 1, 1, 0, 1], names=["ant", "bee"])
    dataset = opened(path)
    assert dataset.class_names == ("ant", "bee")
    assert np.array_equal(loaded(dataset), pictures)
    np.savez(path, jpeg=jpeg[:-9], offsets=offsets)
    fails("offsets must rise within jpeg", path)


def test_unusable_npz(tmp_path):
    path = tmp_path / "a.npz"
    fails("no file at", path)
    path.write_bytes(b"PK")
    fails("a.npz is not a whole .npz file", path)
    np.savez(path, x=pixels(2))
    fails("has no array images or arr_0 or jpeg or data, only x", path)
    assert len(opened(path, image_key="x")) == 2
    fails("has no array 'y', only x", path, image_key="y")
    np.savez(path, images=pixels(2).astype(np.float32))
    fails(r"images must be uint8 \[N, H, W, 3\].*; got float32 \[2, 8, 8, 3\]", path)
    np.savez(path, images=pixels(2), labels=[1, 2, 3])
    fails(r"labels must have one label for each of 2 pictures, got int64 \[3\]", path)
    np.savez(path, images=pixels(2), labels=[-1, 2])
    fails("a.npz: labels must be 0 or more, found -1", path)
    np.savez(path, images=pixels(2), labels=[0, 2], names=["ant", "bee"])
    fails("a.npz: there are 2 class names, found label 2", path)
    np.savez(path, images=np.array([{}], dtype=object))
    fails("'images' cannot be read: it holds Python objects", path)


def test_tar_files(tmp_path):
    pictures = pixels(7)
    shards(tmp_path, pictures, per_shard=3)
    for path in (tmp_path, tmp_path / "train-*.tar", tmp_path / "train-{000..002}.tar"):
        dataset = opened(path)
        assert dataset.labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
        assert np.array_equal(loaded(dataset), pictures)


def test_tar_files_of_webdataset(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    pictures = pixels(5)
    with webdataset.ShardWriter(str(tmp_path / "part-%02d.tar"), maxcount=2, verbose=0) as writer:
        for i, picture in enumerate(pictures):
            writer.write({"__key__": f"folder.v1/{i:04}", "png": picture, "json": {"label": i}})
    dataset = opened(tmp_path)
    assert dataset.labels.tolist() == [0, 1, 2, 3, 4]
    assert np.array_equal(loaded(dataset), pictures)


def test_a_sample_goes_up_to_the_first_dot(tmp_path):
    picture = encoded(pixels(1)[0])
    write_tar(
        tmp_path / "a.tar", {"v1.0/7.image.png": picture, "v1.0/7.cls": b"1", "v1.0/8.cls": b"0", "v1.0/8.PNG": picture}
    )
    assert opened(tmp_path / "a.tar").labels.tolist() == [1, 0]


def test_ranges_of_names(tmp_path):
    names = [path.name for path in expand("a{08..10}-{0..1}.tar")]
    assert names == ["a08-0.tar", "a08-1.tar", "a09-0.tar", "a09-1.tar", "a10-0.tar", "a10-1.tar"]
    fails("no tar files at", tmp_path / "*.tar")


def test_unusable_tar_files(tmp_path):
    picture, path = encoded(pixels(1)[0]), tmp_path / "a.tar"
    fails("a.tar: No such file or directory", path)
    path.write_bytes(b"no tar file")
    fails("a.tar: not a whole, uncompressed tar file", path)
    write_tar(path, {"0.png": picture, "0.cls": b"1", "1.png": picture})
    fails("1.png has no label", path)
    write_tar(path, {"0.png": picture, "0.json": b"one"})
    fails("a.tar: 0.json is not JSON: b'one'", path)
    write_tar(path, {"0.png": picture, "0.json": b'{"label": 0.5}'})
    fails("the label of .*a.tar: 0.png is 0.5; wanted a class id .* or a class name", path)
    write_tar(path, {"0.png": picture, "0.cls": b"1", "1.cls": b"1"})
    fails("/1: a label without a picture", path)
    write_tar(path, {"0.png": picture, "0.jpg": picture})
    fails("0.jpg: a second picture of 0.png", path)


@pytest.mark.parametrize("prefix", ["", "./"])
def test_links_in_tar_files(tmp_path, prefix):
    """GNU tar stores a second name of the same file as a link without content."""
    picture = pixels(1)[0]
    write_tar(tmp_path / "a.tar", {f"{prefix}ant/0.png": encoded(picture)})
    with tarfile.open(tmp_path / "a.tar", "a") as archive:
        for name, kind, target in (
            ("ant/1.png", tarfile.LNKTYPE, f"{prefix}ant/0.png"),
            ("bee/2.png", tarfile.SYMTYPE, "../ant/0.png"),
            ("bee/3.png", tarfile.SYMTYPE, "2.png"),
        ):
            member = tarfile.TarInfo(f"{prefix}{name}")
            member.type, member.linkname = kind, target
            archive.addfile(member)
    dataset = opened(tmp_path / "a.tar")
    assert dataset.labels.tolist() == [0, 0, 1, 1]
    assert np.array_equal(loaded(dataset), np.stack([picture] * 4))


@pytest.mark.parametrize("target", ["../elsewhere.png", "0.png", "/0.png"])
def test_links_out_of_tar_files(tmp_path, target):
    picture, path = encoded(pixels(1)[0]), tmp_path / "a.tar"
    write_tar(path, {"1.png": picture})
    with tarfile.open(path, "a") as archive:
        member = tarfile.TarInfo("0.png")
        member.type, member.linkname = tarfile.SYMTYPE, target
        archive.addfile(member)
    fails(f"a.tar: 0.png: a link to {target}, which is not a file in it", path)


@pytest.mark.skipif(shutil.which("tar") is None, reason="needs tar")
def test_sparse_files_in_tar_files(tmp_path):
    (tmp_path / "0.bmp").write_bytes(encoded(np.zeros((1024, 1024, 3), np.uint8), "BMP"))
    os.truncate(tmp_path / "0.bmp", 2**22)  # pictures may have anything after their end
    packed = subprocess.run(["tar", "--sparse", "-cf", "a.tar", "0.bmp"], cwd=tmp_path, capture_output=True)
    if packed.returncode or (tmp_path / "a.tar").stat().st_size > 2**22:
        pytest.skip("this tar stores no sparse files")
    fails("a.tar: 0.bmp: stored without its zeros, .*tar's option --sparse", tmp_path / "a.tar")


def test_a_damaged_tar_file_loses_nothing_silently(tmp_path):
    (path,) = shards(tmp_path, pixels(4), per_shard=4)
    whole = path.read_bytes()
    last = whole.rindex(b"003.cls")  # where a header begins
    for data in (whole[:last], whole[: last + 600], whole[:-4096], whole[:last] + b"x" * 512 + whole[last + 512 :]):
        if len(data) < len(whole) or data != whole:
            path.write_bytes(data.rstrip(b"\0") if data == whole[:-4096] else data)
        fails("train-000.tar: not a whole, uncompressed tar file", path)


def test_hugging_face(tmp_path):
    datasets = pytest.importorskip("datasets")
    pictures = pixels(5)
    features = datasets.Features(
        {"img": datasets.Image(), "label": datasets.ClassLabel(names=["ant", "bee"]), "other": datasets.Value("int64")}
    )
    rows = {
        "img": [{"bytes": encoded(p), "path": None} for p in pictures],
        "label": [0, 1, 1, 0, 1],
        "other": list(range(5)),
    }
    data = datasets.Dataset.from_dict(rows, features=features)
    data.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": data, "test": data.select([0])}).save_to_disk(tmp_path / "splits")
    for dataset in (opened(tmp_path / "one"), opened(tmp_path / "splits", split="train")):
        assert dataset.class_names == ("ant", "bee")
        assert dataset.labels.tolist() == [0, 1, 1, 0, 1]
        assert np.array_equal(loaded(dataset), pictures)
    (tmp_path / "beside.png").write_bytes(encoded(pictures[2]))
    outside = datasets.Dataset.from_dict({"img": [str(tmp_path / "beside.png"), None]}).cast_column(
        "img", datasets.Image()
    )
    outside.save_to_disk(tmp_path / "outside")
    dataset = opened(tmp_path / "outside")
    assert np.array_equal(dataset.load(0).permute(1, 2, 0), pictures[2])
    with pytest.raises(SampleError) as caught:
        dataset.load(1)
    assert str(caught.value.skipped).endswith("outside: row 1: it holds no picture")
    fails("split: wanted one of train, test in .*, got None", tmp_path / "splits")
    fails("has no splits: leave out split = 'train'", tmp_path / "one", split="train")
    fails("has no column other of the type Image, only img", tmp_path / "one", image_key="other")
    fails("has no column 'x', only img, label, other", tmp_path / "one", label_key="x")
    assert opened(tmp_path / "one", label_key="other").num_classes == 5
    shutil.rmtree(tmp_path / "one")
    (tmp_path / "one").mkdir()
    fails("is not a data set saved by the datasets library", tmp_path / "one", kind="hugging_face")


def test_what_a_worker_process_gets_is_small(tmp_path):
    pictures = pixels(64, 64)
    np.savez(tmp_path / "a.npz", images=pictures)
    dataset = opened(tmp_path / "a.npz", image_size=64)
    copied = pickle.dumps(dataset)
    assert len(copied) < 2000
    assert np.array_equal(loaded(pickle.loads(copied)), pictures)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "the key 'path' is missing"),
        ({"path": "a", "imagesize": 8}, "unknown key 'imagesize'; known are path, kind, image_size"),
        (
            {"path": "a", "kind": "rar"},
            "kind must be one of auto, folder, hugging_face, parquet, npz, tar, zip, latents; got 'rar'",
        ),
        ({"path": "a", "image_size": "8"}, "image_size must be an integer, got '8'"),
        ({"path": "a", "flip": 1}, "flip must be true or false, got 1"),
        ({"path": "a", "image_size": 0}, "image_size must be at least 1, got 0"),
        ({"path": "a", "max_skipped": -1}, "max_skipped must be at least 0, got -1"),
        ({"path": "a.npz"}, "image_size is missing"),
        (
            {"path": "a.npz", "image_size": 8, "split": "train"},
            "split is for hugging_face, parquet, folder; a.npz is of the kind npz",
        ),
    ],
)
def test_bad_descriptions(values, message):
    with pytest.raises(DataError, match=message):
        DataSpec.from_dict(values).resolved()


def test_descriptions_survive_a_file(tmp_path):
    spec = DataSpec("a.npz", image_size=8, flip=False)
    assert DataSpec.from_dict(spec.to_dict()) == spec
    assert None not in spec.to_dict().values()
    assert guess_kind("b-{0..3}.tar") == "tar"


@pytest.mark.skipif(not SHARED.is_dir(), reason="the photographs are not beside the checkout")
def test_real_photographs():
    dataset = opened(SHARED / "imagenette64_val.npz", image_size=64)
    assert (len(dataset), dataset.num_classes, dataset.class_names[0]) == (3925, 10, "tench")
    assert dataset.load(3924).float().std() > 10
    assert len(opened(SHARED / "photos256", image_size=32)) == 29
