"""Labels as other programs write them."""

from __future__ import annotations

import json
import logging
import pickle
import zipfile

import pytest

pytest.importorskip("PIL")

import numpy as np

from dimr.data.errors import DataError
from dimr.data.opening import open_dataset
from dimr.data.sources.labels import as_labels, from_folders
from dimr.data.spec import DataSpec
from tests.support.pictures import class_folders, encoded, pixels, write_tar


def opened(path, **more):
    return open_dataset(DataSpec.from_dict({"path": str(path), "image_size": 8, **more}))


def loaded(dataset) -> np.ndarray:
    """uint8 ``[N, S, S, 3]``"""
    return np.stack([dataset.load(i).permute(1, 2, 0).numpy() for i in range(len(dataset))])


def fails(message, path, **more):
    with pytest.raises(DataError, match=message) as caught:
        opened(path, **more)
    assert "\n" not in str(caught.value)


def named_pictures(folder, names):
    for name, picture in zip(names, pixels(len(names)), strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encoded(picture))


@pytest.mark.parametrize(
    ("values", "ids", "names"),
    [
        ([2, 0, 1], [2, 0, 1], None),
        (np.array([2, 0, 1], np.uint8), [2, 0, 1], None),
        ([2.0, 0.0, 1.0], [2, 0, 1], None),
        ([[2], [0], [1]], [2, 0, 1], None),
        (np.array([[2], [0], [1]]), [2, 0, 1], None),
        ([[0, 0, 1], [1, 0, 0], [0, 1, 0]], [2, 0, 1], None),
        (np.eye(3, dtype=np.float32)[[2, 0, 1]], [2, 0, 1], None),
        (["cat", "ant", "cat"], [1, 0, 1], ("ant", "cat")),
        (np.array(["cat", "ant", "cat"]), [1, 0, 1], ("ant", "cat")),
        ([b"cat", b"ant", b"cat"], [1, 0, 1], ("ant", "cat")),
        (["10", "2", "0"], [10, 2, 0], None),
        ([["cat"], ["ant"], ["cat"]], [1, 0, 1], ("ant", "cat")),
    ],
)
def test_labels(values, ids, names):
    labels = as_labels(values, str)
    assert labels.ids.dtype == np.int64
    assert labels.ids.tolist() == ids
    assert labels.names == names


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1, None, 2], "^row 1 is None; wanted a class id"),
        ([1.0, 0.5], "^row 1 is 0.5; wanted a class id"),
        ([1.0, float("nan")], "^row 1 is nan; wanted a class id"),
        ([[1], [1, 2]], r"^row 1 is \[1, 2\]; wanted a class id"),
        ([[1, 1], [0, 1]], "^row 0 is a list of 2 values that is not one-hot"),
        (["ant", 3], "^row 1 is 3, where others are text"),
        (["ant", None], "^row 1 is None, where others are text"),
        ([1, {"a": 2}], r"^row 1 is {'a': 2}; wanted"),
        (["1.5", "2"], "^row 0 is '1.5'; wanted a class id"),
        (["ant", " "], "^row 1 is ' '; wanted a class id"),
        ([True, False], "^row 0 is True; wanted a class id"),
        ([[], []], r"^row 0 is \[\]; wanted a class id"),
        ([1, 2**64], "^row 1 is an integer of 65 bits; wanted"),
        ([[[1, 2], [3, 4]]], r"^row 0"),
    ],
)
def test_no_labels(values, message):
    with pytest.raises(DataError, match=message):
        as_labels(values, lambda i: f"row {i}")


def test_classes_of_folders():
    labels = from_folders(["./a/x/1.png", "./b/x/1.png", "./a/2.png"])
    assert (labels.ids.tolist(), labels.names) == ([0, 1, 0], ("a", "b"))
    labels = from_folders(["train/b/1.png", "train/a/1.png"])
    assert (labels.ids.tolist(), labels.names) == ([1, 0], ("a", "b"))
    for names in (["a/1.png", "a/2.png"], ["1.png", "a/1.png"], ["1.png"], []):
        assert from_folders(names) is None


EDM = ["00000/img00000000.png", "00000/img00000001.png", "00001/img00001000.png"]


def test_dataset_json_in_a_folder(tmp_path):
    named_pictures(tmp_path, EDM)
    labels = [[EDM[2], 4], [EDM[0], 0], [EDM[1], 2]]
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels}))
    dataset = opened(tmp_path)
    assert (dataset.labels.tolist(), dataset.class_names, dataset.num_classes) == ([0, 2, 4], None, 5)
    assert np.array_equal(loaded(dataset), pixels(3))
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels[:2]}))
    fails(r"dataset.json has no label for 1 of 3 pictures, first 00000/img00000001.png", tmp_path)
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": [*labels, ["lost.png", 1]]}))
    fails(r"dataset.json lists 1 pictures that are not there, first lost.png", tmp_path)
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": [*labels[:2], [EDM[1], 0.5]]}))
    fails("dataset.json: the label of 00000/img00000001.png is 0.5; wanted a class id", tmp_path)
    for text in ("{", "[]", '{"labels": 3}'):
        (tmp_path / "dataset.json").write_text(text)
        fails("dataset.json cannot be read", tmp_path)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_zip_of_edm(tmp_path, compression):
    path = tmp_path / "edm.zip"
    files = {name: encoded(picture) for name, picture in zip(EDM, pixels(3), strict=True)}

    def write(**more):
        with zipfile.ZipFile(path, "w", compression) as archive:
            for name, data in {**files, **more}.items():
                archive.writestr(name, data)

    write(**{"dataset.json": json.dumps({"labels": [[name, 2 - i] for i, name in enumerate(EDM)]})})
    dataset = opened(path)
    assert (dataset.labels.tolist(), dataset.class_names) == ([2, 1, 0], None)
    assert np.array_equal(loaded(pickle.loads(pickle.dumps(dataset))), pixels(3))
    write(**{"dataset.json": json.dumps({"labels": None})})
    assert opened(path).labels.tolist() == [0, 0, 0]  # the folders are no classes
    write()
    assert (opened(path).labels.tolist(), opened(path).class_names) == ([0, 0, 1], ("00000", "00001"))
    path.write_bytes(path.read_bytes()[:-30])
    fails("edm.zip is not a whole .zip file", path)


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_metadata_of_image_folders(tmp_path, suffix, caplog):
    names = ["a/0.png", "a/1.png", "b/2.png"]
    named_pictures(tmp_path, names)
    rows = [(names[1], "ant", "x"), (names[0], "bee", "y"), (names[2], "ant", "z")]

    def write(key):
        if suffix == "csv":
            lines = [f"file_name,{key},caption", *(",".join(row) for row in rows)]
        else:
            lines = [json.dumps({"file_name": name, key: label, "caption": text}) for name, label, text in rows]
        (tmp_path / f"metadata.{suffix}").write_text("\n".join(lines))

    write("label")
    dataset = opened(tmp_path)
    assert (dataset.labels.tolist(), dataset.class_names) == ([1, 0, 0], ("ant", "bee"))
    assert np.array_equal(loaded(dataset), pixels(3))
    write("insect")
    assert not caplog.records
    assert opened(tmp_path).class_names == ("a", "b")  # those of the folders
    assert "has no column that is known to hold labels, only ['file_name', 'insect', 'caption']" in caplog.text
    assert opened(tmp_path, label_key="insect").labels.tolist() == [1, 0, 0]
    fails("it has no column 'x', only file_name, insect, caption", tmp_path, label_key="x")


@pytest.mark.parametrize("key", ["y", "classes", "label_arr", "class", "targets"])
def test_npz_keys(tmp_path, key):
    np.savez(tmp_path / "a.npz", images=pixels(3), **{key: np.array([[2], [0], [1]])})
    assert opened(tmp_path / "a.npz").labels.tolist() == [2, 0, 1]


def test_npz_of_other_labels(tmp_path, caplog):
    path = tmp_path / "a.npz"
    np.savez(path, images=pixels(3), labels=["cat", "ant", "cat"])
    assert (opened(path).labels.tolist(), opened(path).class_names) == ([1, 0, 1], ("ant", "cat"))
    np.savez(path, images=pixels(3), labels=[0.0, 0.5, 1.0])
    fails(r"a.npz: labels\[1\] is 0.5; wanted a class id", path)
    assert not caplog.records
    np.savez(path, images=pixels(3), kinds=[0, 1, 2])
    assert opened(path).labels.tolist() == [0, 0, 0]
    assert "a.npz: no labels are read; it also has ['kinds'] (label_key names one)" in caplog.text


def test_batches_of_downsampled_imagenet(tmp_path, caplog):
    pictures = pixels(5)
    planes = pictures.transpose(0, 3, 1, 2).reshape(5, -1)  # as their page says: red, green, blue, row by row
    mean = np.zeros(planes.shape[1])
    np.savez(tmp_path / "train_data_batch_1.npz", data=planes[:2], labels=[1, 3], mean=mean)
    np.savez(tmp_path / "train_data_batch_2.npz", data=planes[2:], labels=[1000, 2, 2], mean=mean)
    dataset = opened(tmp_path)
    assert dataset.labels.tolist() == [0, 2, 999, 1, 1]
    assert dataset.num_classes == 1000
    assert np.array_equal(loaded(pickle.loads(pickle.dumps(dataset))), pictures)
    assert dataset.source.name(3) == "image 1"
    assert "labels from 1 up, as those of downsampled ImageNet, are made to count from 0" in caplog.text
    assert opened(tmp_path / "train_data_batch_1.npz").labels.tolist() == [0, 2]
    np.savez(tmp_path / "a.npz", data=planes[:, :-1])
    fails(r"a.npz: data must be uint8 \[N, 3 S S\], got uint8 \[5, 191\]", tmp_path / "a.npz")
    (tmp_path / "train_data_batch_1").write_bytes(pickle.dumps({"data": planes}))
    fails(r"holds pickles \(train_data_batch_1\), which may run code: take the same data as .npz files", tmp_path)


def test_tar_of_class_folders(tmp_path):
    files = [encoded(picture) for picture in pixels(3)]
    path = write_tar(
        tmp_path / "a.tar", dict(zip(("set/bee/0.png", "set/ant/0.png", "set/ant/1.png"), files, strict=True))
    )
    dataset = opened(path)
    assert (dataset.labels.tolist(), dataset.class_names) == ([1, 0, 0], ("ant", "bee"))


@pytest.mark.parametrize("folder", ["", "set/", "./"])
def test_a_label_file_in_a_tar_file(tmp_path, folder, caplog):
    """As an EDM data set in a tar file, whose folders 00000 and 00001 are no classes."""
    first, second, third = (encoded(picture) for picture in pixels(3))
    pictures = {f"{folder}00000/0.png": first, f"{folder}00000/1.png": second, f"{folder}00001/2.png": third}
    labels = [["00001/2.png", 5], ["00000/0.png", 2], ["00000/1.png", 0]]
    path = write_tar(tmp_path / "a.tar", {**pictures, f"{folder}dataset.json": json.dumps({"labels": labels}).encode()})
    dataset = opened(path)
    assert (dataset.labels.tolist(), dataset.class_names) == ([2, 0, 5], None)
    assert not caplog.records
    rows = b"file_name,label\n00001/2.png,bee\n00000/0.png,ant\n00000/1.png,bee\n"
    write_tar(path, {**pictures, f"{folder}metadata.csv": rows})
    assert (opened(path).labels.tolist(), opened(path).class_names) == ([0, 1, 1], ("ant", "bee"))
    write_tar(path, {**pictures, f"{folder}dataset.json": b'{"labels": null}'})
    assert (opened(path).labels.tolist(), opened(path).class_names) == ([0, 0, 1], ("00000", "00001"))
    write_tar(path, {**pictures, f"{folder}dataset.json": b"["})
    fails(r"a\.tar: .*dataset\.json cannot be read: JSONDecodeError", path)


def test_label_files_in_several_tar_files(tmp_path, caplog):
    """Each may list the pictures of all."""
    files = [encoded(picture) for picture in pixels(3)]
    labels = json.dumps({"labels": [["a/0.png", 1], ["a/1.png", 2], ["b/2.png", 3]]}).encode()
    write_tar(tmp_path / "0.tar", {"a/0.png": files[0], "a/1.png": files[1], "dataset.json": labels})
    write_tar(tmp_path / "1.tar", {"b/2.png": files[2], "dataset.json": labels})
    assert opened(tmp_path).labels.tolist() == [1, 2, 3]
    assert "0.tar: dataset.json lists 1 pictures that are not in this file, first b/2.png" in caplog.text
    write_tar(tmp_path / "1.tar", {"b/3.png": files[2], "dataset.json": labels})
    fails(r"1\.tar: b/3\.png has no label", tmp_path)


def test_labels_in_tar_files(tmp_path, caplog):
    picture = encoded(pixels(1)[0])
    path = write_tar(tmp_path / "a.tar", {"0.png": picture, "0.cls.txt": b"2\n", "1.png": picture, "1.cls.txt": b"0"})
    assert opened(path).labels.tolist() == [2, 0]
    text = {"0.png": picture, "0.json": b'{"label": "cat"}', "1.png": picture, "1.json": b'{"label": "ant"}'}
    write_tar(path, text)
    assert (opened(path).labels.tolist(), opened(path).class_names) == ([1, 0], ("ant", "cat"))
    write_tar(path, {**text, "0.cls": b"3", "1.cls": b"1"})
    assert (opened(path).labels.tolist(), opened(path).class_names) == ([3, 1], None)
    write_tar(path, {"0.png": picture, "0.json": b"[", "0.cls": b"3"})
    assert opened(path).labels.tolist() == [3]
    assert not caplog.records
    write_tar(path, {"0.png": picture, "0.cls": b"3", "._0.png": b"of macOS", "a/._1.png": b"", "0.txt": b"caption"})
    assert (len(opened(path)), opened(path).labels.tolist()) == (1, [3])
    assert "passed over files that are not read as pictures (1 .txt), first a.tar/0.txt" in caplog.text


def test_splits_are_no_classes(tmp_path, caplog):
    class_folders(tmp_path / "train", pixels(3))
    class_folders(tmp_path / "val", pixels(6))
    dataset = opened(tmp_path)
    assert (len(dataset), dataset.class_names) == (3, ("ant", "bee", "cat"))
    assert "holds the splits train, val: reading train (split names another)" in caplog.text
    assert len(opened(tmp_path, split="val")) == 6
    fails("split: wanted one of train, val in .*, got 'test'", tmp_path, split="test")
    (tmp_path / "train").rename(tmp_path / "test")
    fails("holds the splits test, val, which are no classes: give the path of one", tmp_path)
    (tmp_path / "test").rename(tmp_path / "boat")
    assert opened(tmp_path).class_names == ("boat", "val")


def test_other_files_are_counted(tmp_path, caplog):
    named_pictures(tmp_path, ["ant/0.png", "ant/1.jfif", "bee/0.TIFF", "bee/0.pgm", "bee/1.gif"])
    assert len(opened(tmp_path)) == 5
    assert not caplog.records
    for name in ("ant/2.heic", "ant/3.HEIC", "bee/notes"):
        (tmp_path / name).write_bytes(b"")
    assert len(opened(tmp_path)) == 5
    assert "not read as pictures (2 .heic, 1 no ending), first ant/2.heic" in caplog.text
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "0.heic").write_bytes(b"")
    fails(r"class folder .*cat holds no picture \(.jpg, .*\): found cat/0.heic", tmp_path)


def hub(rows, **features):
    datasets = pytest.importorskip("datasets")
    rows = {"image": [{"bytes": encoded(p), "path": None} for p in pixels(len(next(iter(rows.values()))))], **rows}
    types = datasets.Dataset.from_dict(rows).features
    types["image"] = datasets.Image()
    return datasets.Dataset.from_dict(rows, features=datasets.Features({**types, **features}))


@pytest.mark.parametrize(
    ("column", "labels", "names"),
    [
        ({"class": [1, 0, 1]}, [1, 0, 1], None),
        ({"label": ["bee", "ant", "bee"]}, [1, 0, 1], ("ant", "bee")),
        ({"label": [[1], [0], [1]]}, [1, 0, 1], None),
    ],
)
def test_hugging_face_labels(tmp_path, column, labels, names):
    hub(column).save_to_disk(tmp_path / "set")
    dataset = opened(tmp_path / "set")
    assert (dataset.labels.tolist(), dataset.class_names) == (labels, names)


def test_a_class_label_of_any_name(tmp_path, caplog):
    kind = pytest.importorskip("datasets").ClassLabel(names=["ant", "bee"])
    hub({"insect": [1, 0, 1], "number": [5, 6, 7]}, insect=kind).save_to_disk(tmp_path / "one")
    assert (opened(tmp_path / "one").labels.tolist(), opened(tmp_path / "one").class_names) == (
        [1, 0, 1],
        ("ant", "bee"),
    )
    hub({"class": [1, 0, 1]}, **{"class": kind}).save_to_disk(tmp_path / "two")
    assert opened(tmp_path / "two").class_names == ("ant", "bee")
    with caplog.at_level(logging.WARNING):
        hub({"insect": [1, 0, 1], "other": [1, 0, 1]}, insect=kind, other=kind).save_to_disk(tmp_path / "three")
        assert opened(tmp_path / "three").labels.tolist() == [0, 0, 0]
    assert "no labels are read; its columns are ['insect', 'other'] (label_key names one)" in caplog.text


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1, None, 0], "label of row 1 is None; wanted a class id"),
        (["ant", None, "bee"], "label of row 1 is None, where others are text"),
        ([1.0, 0.5, 0.0], "label of row 1 is 0.5; wanted a class id"),
        ([[1], [1, 0], [0]], r"label of row 1 is \[1, 0\]; wanted a class id"),
    ],
)
def test_unusable_hugging_face_labels(tmp_path, values, message):
    hub({"label": values}).save_to_disk(tmp_path / "set")
    fails(f"set: {message}", tmp_path / "set")


def test_folders_of_parquet_files(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    kind = datasets.ClassLabel(names=["ant", "bee"])
    folder = tmp_path / "set" / "data"
    folder.mkdir(parents=True)
    data = hub({"label": [1, 0, 1, 1]}, label=kind)
    for i in range(2):
        data.select([2 * i, 2 * i + 1]).to_parquet(folder / f"train-0000{i}-of-00002.parquet")
    data.select([3]).to_parquet(folder / "test-00000-of-00001.parquet")
    dataset = opened(tmp_path / "set")
    assert (dataset.labels.tolist(), dataset.class_names) == ([1, 0, 1, 1], ("ant", "bee"))
    assert np.array_equal(loaded(dataset), pixels(4))
    assert len(opened(tmp_path / "set", split="test")) == 1
    fails("split: wanted one of train, test in .*, got 'x'", tmp_path / "set", split="x")
    (folder / "train-00000-of-00002.parquet").write_bytes(b"PAR1")
    fails("set holds parquet files that cannot be read", tmp_path / "set")


def test_parquet_files_of_other_programs(tmp_path, monkeypatch):
    datasets, pq = pytest.importorskip("datasets"), pytest.importorskip("pyarrow.parquet")
    import pyarrow as pa

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    rows = [{"bytes": encoded(picture), "path": None} for picture in pixels(2)]
    pq.write_table(pa.table({"picture": rows, "label": [1, 0]}), tmp_path / "set" / "a.parquet")
    dataset = opened(tmp_path / "set")
    assert dataset.labels.tolist() == [1, 0]
    assert np.array_equal(loaded(dataset), pixels(2))
