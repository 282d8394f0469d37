"""Well-formed files with invalid values: NaN, sizes beyond memory, wrong shapes."""

from __future__ import annotations

import copy
import dataclasses
import json
from typing import Any

import pytest
import torch

pytest.importorskip("PIL")
pytest.importorskip("diffusers")

from PIL import Image

import dimr
from dimr.checkpoints import CheckpointError
from dimr.data.errors import DataError, SampleError
from dimr.data.opening import open_dataset
from dimr.data.sources.tar import expand
from dimr.data.spec import DataSpec
from dimr.training.checkpoint import load_training_state
from dimr.training.recipe import RecipeError, parse_recipe
from tests.abuse.readers import CONFIG, READERS, trainer
from tests.support.pictures import class_folders, encoded, pixels, write_tar

NAN, INF, HUGE = float("nan"), float("inf"), 10**30
NO_COUNT: list[Any] = [-1, 0, 2.5, NAN, INF, -INF, HUGE, 10**5000, "3", None, [], {}, True, [3]]


def number_text(value: Any) -> str:
    return "9" * 5000 if value == 10**5000 else json.dumps(value)


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(dimr.DiMRConfig)])
def test_values_of_a_configuration(field, tmp_path):
    path = READERS["folder's configuration"].write(tmp_path)
    fits = {"unconditional_class": [True], "branch_skips": [True], "mlp_ratio": [2.5]}.get(field, [])
    for value in [v for v in NO_COUNT if not any(v is one or v == one != 0 for one in fits)]:
        values = {**CONFIG.to_dict(), field: "VALUE"}
        path.write_text(json.dumps(values).replace('"VALUE"', number_text(value)))
        with pytest.raises(CheckpointError, match=r"config\.json|does not fit the model"):
            dimr.load_model(tmp_path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"layers": [2**20, 1]}, "layers must be at most"),
        ({"dims": [2**25, 2]}, r"dims\[0\] must be at most"),
        ({"dims": [2] * 100_000, "layers": [1] * 100_000}, "cannot be halved for 100000 branches"),
        ({"input_size": 2**24, "patch_size": 2**23, "in_channels": 2**24, "dims": [2**24, 2]}, "no memory can hold"),
    ],
)
def test_models_that_no_memory_can_hold(values, message, tmp_path):
    path = READERS["folder's configuration"].write(tmp_path)
    path.write_text(json.dumps({**CONFIG.to_dict(), **values}))
    with pytest.raises(CheckpointError, match=message):
        dimr.load_model(tmp_path)


def test_parts_of_a_training_state(tmp_path):
    path = READERS["training state"].write(tmp_path)
    whole = torch.load(path, weights_only=True)
    run = trainer()
    for key in whole:
        for value in (None, -1, {"a": 1}, torch.zeros(3)):
            if key in ("data", "format") and isinstance(value, dict):
                continue
            torch.save({**whole, key: value}, path)
            with pytest.raises(CheckpointError):
                run.load_state_dict(load_training_state(path))
        torch.save({k: v for k, v in whole.items() if k != key}, path)
        with pytest.raises(CheckpointError, match=path.name):
            load_training_state(path)
    run.load_state_dict(whole)


def test_tensors_of_a_training_state(tmp_path):
    path = READERS["training state"].write(tmp_path)
    for group, of in (("model", None), ("ema", "averages"), ("optimizer", "state")):
        for value in (torch.zeros(1), torch.zeros(2**10), "text", None):
            state = copy.deepcopy(torch.load(path, weights_only=True)) if of is None else torch.load(path)
            tensors = state[group] if of is None else state[group][of]
            key = next(iter(tensors))
            tensors[key] = {"step": torch.tensor(1.0), "exp_avg": value} if group == "optimizer" else value
            with pytest.raises(CheckpointError):
                trainer().load_state_dict(state)


RECIPE: dict[str, Any] = {
    "model": CONFIG.to_dict(),
    "data": {"path": "pictures", "image_size": 4},
    "training": trainer().settings.to_dict(),
    "run": {},
}


@pytest.mark.parametrize("table", ["training", "run"])
def test_values_of_a_recipe(table):
    recipe = {**RECIPE, "training": {k: v for k, v in RECIPE["training"].items() if v is not None}}
    kinds = parse_recipe(recipe).training if table == "training" else parse_recipe(recipe).run
    numbers = [
        field.name for field in dataclasses.fields(kinds) if isinstance(getattr(kinds, field.name), (int, float))
    ]
    for key in numbers:
        for value in (-1, NAN, INF, "x", [], {}):
            with pytest.raises(RecipeError, match=f"{table}.*{key}"):
                parse_recipe({**recipe, table: {**recipe[table], key: value}})
    for key in ("batch_size", "steps", "seed", "warmup_steps") if table == "training" else ():
        with pytest.raises(RecipeError, match=key):
            parse_recipe({**recipe, table: {**recipe[table], key: HUGE}})
    if table == "training":
        for betas in ([NAN, 0.9], [0.9, 1.0], [-1.0, 0.9], [0.9], ["a", "b"]):
            with pytest.raises(RecipeError, match="betas"):
                parse_recipe({**recipe, table: {**recipe[table], "betas": betas}})


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("latent_shape",), [1, 2]), (("latent_shape",), [1, 2, 3]), (("latent_shape",), [-1, 2, 2]),
        (("latent_shape",), ["a", 2, 2]), (("num_shards",), -1), (("num_shards",), "1"), (("num_classes",), None),
        (("class_names",), "ant"), (("class_names",), [1, 2, 3]), (("shards", 0, "samples"), 2**62),
        (("shards", 0, "samples"), -3), (("shards", 0, "samples"), 2), (("shards", 0, "bytes"), NAN),
        (("shards", 0, "file"), "../secret"), (("shards", 0, "file"), 3), (("shards", 0), None),
        (("shards",), {"a": 1}),
        (("settings",), None), (("settings", "flipped"), "yes"), (("settings", "image_size"), [4]),
        (("settings", "autoencoder"), []), (("settings", "autoencoder", "scale", "factor"), 0),
        (("settings", "autoencoder", "scale", "factor"), NAN), (("settings", "autoencoder", "scale", "shift"), "x"),
    ],
)  # fmt: skip
def test_values_of_latents_index(place, value, tmp_path):
    path = READERS["latents' index"].write(tmp_path)
    index = json.loads(path.read_text())
    inside = index
    for key in place[:-1]:
        inside = inside[key]
    inside[place[-1]] = value
    path.write_text(json.dumps(index))
    with pytest.raises(DataError, match=r"index\.json|latents-00000"):
        READERS["latents' index"].read(path)


@pytest.mark.parametrize("label", [b"1" + b"0" * 30, b"-1", b"1.5", b"NaN", b"", b"\xff", b"9" * 5000])
def test_labels_of_tar_files(label, tmp_path):
    path = write_tar(tmp_path / "a.tar", {"0.png": encoded(pixels(1)[0]), "0.cls": label})
    with pytest.raises(DataError, match=r"a\.tar"):
        READERS["data .tar"].read(path)
    for text in (b'{"label": %s}' % (label or b"[]"), b'{"label": true}', b'{"label": 1.5}', b"[" * 100_000):
        write_tar(path, {"0.png": encoded(pixels(1)[0]), "0.json": text})
        with pytest.raises(DataError, match=r"a\.tar"):
            READERS["data .tar"].read(path)


def test_ranges_of_too_many_files():
    with pytest.raises(DataError, match="more than 1000000 files"):
        expand("a-{0..999999999}.tar")


def test_a_picture_much_too_long(tmp_path):
    Image.new("RGB", (60_000, 1)).save(tmp_path / "long.png")
    dataset = open_dataset(DataSpec(str(tmp_path), image_size=256))
    with pytest.raises(SampleError, match=r"long\.png.*60000x1 pixels are too elongated"):
        dataset.load(0)


def test_folders_that_hold_themselves(tmp_path):
    class_folders(tmp_path, pixels(6))
    (tmp_path / "ant" / "up").symlink_to(tmp_path)
    (tmp_path / "bee" / "here").symlink_to(tmp_path / "bee")
    dataset = open_dataset(DataSpec(str(tmp_path), image_size=8))
    assert len(dataset) == 2 + 6 - 2 + 4
