"""Every function that reads files, with a valid file of each kind and the errors that reading may raise."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import dimr
from dimr.analysis.distortion import read_samples
from dimr.checkpoints import CheckpointError, to_official_state_dict
from dimr.checkpoints.weights import model_of, write_about
from dimr.data.encoding import EncodingSettings
from dimr.data.errors import DataError, SampleError
from dimr.data.importing import Importer, open_latent_files
from dimr.data.opening import open_dataset
from dimr.data.pictures import decode_picture
from dimr.data.spec import DataSpec
from dimr.evaluation.extractors import load_extractor
from dimr.evaluation.images import open_images
from dimr.evaluation.metrics import EvaluationError
from dimr.evaluation.reference import open_reference
from dimr.sampling.autoencoder import load_autoencoder
from dimr.sampling.class_names import ClassNameError, find_class_names
from dimr.sampling.files import OneFile, PictureFolder, SampleFilesError, claim
from dimr.training.checkpoint import load_training_state, save_training_state
from dimr.training.history import read_history
from dimr.training.loop import Trainer, TrainingSettings
from dimr.training.recipe import RecipeError, load_recipe
from dimr.training.saved import read_weights
from tests.support.pictures import encoded, pixels, shards
from tests.support.small_models import perturbed_model
from tests.support.training_runs import RECIPE

CONFIG = dimr.DiMRConfig(
    in_channels=1, input_size=4, dims=(4, 2), layers=(1, 1), num_heads=2, num_classes=3, kernel_size=3
)
SETTINGS = TrainingSettings(steps=4, batch_size=2, learning_rate=1e-3, warmup_steps=1, ema_decay=0.5)
DRAWN = {"seed": 3, "classes": [0, 1]}


@dataclasses.dataclass(frozen=True)
class Reader:
    """A reader of files: ``write`` makes a valid file with everything that belongs to it; ``read`` reads all of it."""

    write: Callable[[Path], Path]
    read: Callable[[Path], Any]
    errors: tuple[type[Exception], ...]


def trainer() -> Trainer:
    batch = torch.zeros(2, 1, 4, 4), torch.zeros(2, dtype=torch.long)
    return Trainer(perturbed_model(CONFIG), lambda generator: batch, SETTINGS)


def _published(path: Path) -> Path:
    state = to_official_state_dict(perturbed_model(CONFIG))
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    return path


def _saved(folder: Path, name: str) -> Path:
    dimr.save_model(perturbed_model(CONFIG), folder)
    return folder / name


def _training_state(folder: Path) -> Path:
    run = trainer()
    run.train_step()
    save_training_state(folder / "step-00000001.pt", run)
    return folder / "step-00000001.pt"


def _weights(path: Path) -> None:
    saved = read_weights(path)
    assert saved.config is not None
    model_of(saved.tensors, saved.config, str(path))


def _shards(folder: Path) -> Path:
    tensors = perturbed_model(CONFIG).state_dict()
    dimr.save_model(perturbed_model(CONFIG), folder)
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    index = {"weight_map": {name: "model-00001-of-00001.safetensors" for name in tensors}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder / "model.safetensors.index.json"


def _about(folder: Path) -> Path:
    dimr.save_model(perturbed_model(CONFIG), folder)
    write_about(folder, "ema", 300, 0.5)
    return folder / "weights.json"


def _history(folder: Path) -> Path:
    recipe = {"training": SETTINGS.to_dict(), "model": CONFIG.to_dict()}
    (folder / "history.json").write_text(json.dumps([{"step": 0, "changed": {}, "recipe": recipe}]))
    return folder / "history.json"


def _mean_and_deviation(folder: Path, name: str) -> Path:
    (folder / "00000").mkdir()
    names = [f"00000/img-mean-std-0000000{i}.npy" for i in range(2)]
    for file in names:
        np.save(folder / file, np.ones((4, 2, 2), np.float32))
    (folder / "dataset.json").write_text(json.dumps({"labels": [[file, 1] for file in names]}))
    return folder / name


def _recipe(folder: Path) -> Path:
    (folder / "recipe.toml").write_text(RECIPE.format(data=folder, steps=4, device_batch=8))
    return folder / "recipe.toml"


def autoencoder(folder: Path) -> Path:
    import diffusers

    diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1),
    ).save_pretrained(folder)  # fmt: skip
    return folder


def _latents(folder: Path, name: str) -> Path:
    """Write three latents of 1 x 2 x 2 and their mirror images, as ``dimr encode`` does."""
    import hashlib

    file = folder / "latents-00000.safetensors"
    save_file({"moments": torch.randn(3, 2, 2, 2, 2), "labels": torch.arange(3)}, file)
    checksum = hashlib.sha256(file.read_bytes()).hexdigest()
    entry = {"number": 0, "file": file.name, "first": 0, "samples": 3, "bytes": file.stat().st_size, "skipped": []}
    settings = {"image_size": 4, "flipped": True, "autoencoder": {"scale": {"factor": 0.2, "shift": 0.0}}}
    index = {
        "format": "dimr-latents-1", "settings": settings, "num_classes": 3, "class_names": None,
        "latent_shape": [1, 2, 2], "num_shards": 1, "shards": [{**entry, "sha256": checksum}],
    }  # fmt: skip
    (folder / "index.json").write_text(json.dumps(index))
    return folder / name


def _data_set(path: Path, **more: Any) -> None:
    dataset = open_dataset(DataSpec.from_dict({"path": str(path), "image_size": 4, **more}))
    for i in range(len(dataset)):
        dataset.load(i)


def _pair(folder: Path) -> Path:
    pair = np.empty(2, object)
    pair[:] = [np.zeros((4, 2, 2), np.float32), np.int64(1)]
    np.save(folder / "0.npy", pair, allow_pickle=True)
    return folder / "0.npy"


def _imported(path: Path) -> None:
    with tempfile.TemporaryDirectory() as output:
        made = Importer(open_latent_files(path.parent), Path(output), EncodingSettings(), image_size=16, scale=1.0)
        for _ in made.run():
            pass


def _npz(folder: Path, **arrays: Any) -> Path:
    np.savez(folder / "arrays.npz", **arrays)
    return folder / "arrays.npz"


def _compressed_npz(folder: Path, **arrays: Any) -> Path:
    np.savez_compressed(folder / "arrays.npz", **arrays)
    return folder / "arrays.npz"


def _pictures_in_npz(folder: Path) -> Path:
    files = [encoded(picture) for picture in pixels(3)]
    jpeg = np.frombuffer(b"".join(files), np.uint8)
    return _npz(folder, jpeg=jpeg, offsets=np.cumsum([0, *map(len, files)]), labels=[0, 1, 1], names=["ant", "bee"])


def _zip(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "pictures.zip", "w") as archive:
        for i, picture in enumerate(pixels(3)):
            archive.writestr(f"{i}.png", encoded(picture))
        archive.writestr("dataset.json", json.dumps({"labels": [[f"{i}.png", i] for i in range(3)]}))
    return folder / "pictures.zip"


def _labelled(folder: Path, name: str, text: str) -> Path:
    for i, picture in enumerate(pixels(2)):
        (folder / f"{i}.png").write_bytes(encoded(picture))
    (folder / name).write_text(text)
    return folder / name


def _picture(folder: Path, kind: str) -> Path:
    Image.fromarray(pixels(1)[0]).save(folder / f"picture.{kind}")
    return folder / f"picture.{kind}"


def _evaluated(path: Path) -> None:
    for _ in open_images(path).batches(2):
        pass


def _samples(path: Path) -> None:
    samples = read_samples(path)
    samples.images(range(samples.count))


class Pooled(torch.nn.Module):
    """A feature extractor."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.float().mean((2, 3))


@functools.cache  # an export takes a second
def _program() -> bytes:
    file = io.BytesIO()
    torch.export.save(torch.export.export(Pooled(), (torch.zeros(2, 3, 4, 4, dtype=torch.uint8),)), file)
    return file.getvalue()


def _exported(folder: Path) -> Path:
    (folder / "net.pt2").write_bytes(_program())
    return folder / "net.pt2"


def _scripted(folder: Path) -> Path:
    torch.jit.script(Pooled()).save(folder / "net.pt")
    return folder / "net.pt"


def _part(folder: Path) -> Path:
    """Write the first batch of an unfinished file of samples."""
    files = OneFile(folder / "samples.npz", pixels=True, columns=2)
    claim(files.folder, DRAWN, overwrite=False)
    files.put(range(2), torch.zeros(2, 3, 4, 4))
    return files.folder / "000000.safetensors"


def _has_part(path: Path) -> bool:
    return OneFile(path.parent.with_suffix(""), pixels=True, columns=2).has(range(2))


def _drawn_picture(folder: Path) -> Path:
    files = PictureFolder(folder / "drawn")
    files.put(range(1), torch.zeros(1, 3, 4, 4))
    return files.path(0)


def _sampling(folder: Path) -> Path:
    claim(folder / "drawn", DRAWN, overwrite=False)
    return folder / "drawn" / "sampling.json"


def _names(folder: Path, suffix: str, text: str) -> Path:
    (folder / f"class_names{suffix}").write_text(text)
    return folder / f"class_names{suffix}"


def _statistics(folder: Path) -> Path:
    return _npz(folder, mu=np.zeros(3), sigma=np.eye(3), features="pooled", sha256="0", resize="as it is", count="3")


MISSING = (FileNotFoundError,)
NAMES = (ClassNameError, OSError)
CHECKPOINT = (CheckpointError, *MISSING)
DATA = (DataError, SampleError, *MISSING)
EVALUATION = (EvaluationError, *MISSING)

READERS: dict[str, Reader] = {
    "published .pth": Reader(
        lambda folder: _published(folder / "model.pth"), lambda p: dimr.load_official_checkpoint(p, CONFIG), CHECKPOINT
    ),
    "published .safetensors": Reader(
        lambda folder: _published(folder / "model.safetensors"),
        lambda p: dimr.load_official_checkpoint(p, CONFIG),
        CHECKPOINT,
    ),
    "folder's weights": Reader(
        lambda folder: _saved(folder, "model.safetensors"), lambda p: dimr.load_model(p.parent), CHECKPOINT
    ),
    "folder's configuration": Reader(
        lambda folder: _saved(folder, "config.json"), lambda p: dimr.load_model(p.parent), CHECKPOINT
    ),
    "training state": Reader(_training_state, lambda p: trainer().load_state_dict(load_training_state(p)), CHECKPOINT),
    "weights in a training state": Reader(_training_state, _weights, CHECKPOINT),
    "index of shards": Reader(_shards, lambda p: dimr.load_model(p.parent), CHECKPOINT),
    "record of a run's weights": Reader(_about, lambda p: _weights(p.parent), CHECKPOINT),
    "history of a run": Reader(_history, lambda p: read_history(p, 5), (CheckpointError,)),
    "latents .npy of REPA": Reader(
        lambda folder: _mean_and_deviation(folder, "00000/img-mean-std-00000000.npy"),
        lambda p: _imported(p.parents[1] / "dataset.json"),
        DATA,
    ),
    "labels of REPA's latents": Reader(lambda folder: _mean_and_deviation(folder, "dataset.json"), _imported, DATA),
    "recipe": Reader(_recipe, load_recipe, (RecipeError, *MISSING)),
    "autoencoder's configuration": Reader(
        lambda folder: autoencoder(folder) / "config.json",
        lambda p: load_autoencoder(p.parent),
        CHECKPOINT,
    ),
    "autoencoder's weights": Reader(
        lambda folder: autoencoder(folder) / "diffusion_pytorch_model.safetensors",
        lambda p: load_autoencoder(p.parent),
        CHECKPOINT,
    ),
    "class names, JSON": Reader(
        lambda folder: _names(folder, ".json", '["ant", "bee"]'),
        lambda p: find_class_names(2, p.parent),
        NAMES,
    ),
    "class names, lines": Reader(
        lambda folder: _names(folder, ".txt", "ant\nbee\n"),
        lambda p: find_class_names(2, p.parent, p),
        NAMES,
    ),
    "latents' index": Reader(lambda folder: _latents(folder, "index.json"), lambda p: _data_set(p.parent), DATA),
    "latents' shard": Reader(
        lambda folder: _latents(folder, "latents-00000.safetensors"), lambda p: _data_set(p.parent), DATA
    ),
    "latents .npy of the published code": Reader(_pair, _imported, DATA),
    "latents .safetensors of LightningDiT": Reader(
        lambda folder: (
            save_file({"latents": torch.zeros(3, 2, 2, 2), "labels": torch.arange(3)}, folder / "a.safetensors")
            or folder / "a.safetensors"
        ),
        _imported,
        DATA,
    ),
    "data .npz": Reader(lambda folder: _npz(folder, images=pixels(3), labels=[0, 1, 2]), _data_set, DATA),
    "data .npz, compressed": Reader(
        lambda folder: _compressed_npz(folder, images=pixels(3), labels=[0, 1, 2]), _data_set, DATA
    ),
    "data .npz of picture files": Reader(_pictures_in_npz, _data_set, DATA),
    "data .zip": Reader(_zip, _data_set, DATA),
    "data dataset.json": Reader(
        lambda folder: _labelled(folder, "dataset.json", '{"labels": [["0.png", 0], ["1.png", 1]]}'),
        lambda p: _data_set(p.parent),
        DATA,
    ),
    "data metadata.jsonl": Reader(
        lambda folder: _labelled(
            folder, "metadata.jsonl", '{"file_name": "0.png", "label": "ant"}\n{"file_name": "1.png", "label": "bee"}'
        ),
        lambda p: _data_set(p.parent),
        DATA,
    ),
    "data metadata.csv": Reader(
        lambda folder: _labelled(folder, "metadata.csv", "file_name,label\n0.png,ant\n1.png,bee\n"),
        lambda p: _data_set(p.parent),
        DATA,
    ),
    "data .tar": Reader(lambda folder: shards(folder, pixels(3), 3)[0], _data_set, DATA),
    **{
        f".{kind}": Reader(lambda folder, k=kind: _picture(folder, k), lambda p: decode_picture(p, str(p)), DATA)
        for kind in ("png", "jpg", "webp", "bmp", "ppm", "gif", "tiff")
    },
    "evaluation's images": Reader(lambda folder: _npz(folder, arr_0=pixels(3)), _evaluated, EVALUATION),
    "evaluation's statistics": Reader(_statistics, open_reference, EVALUATION),
    "samples .npz": Reader(
        lambda folder: _npz(folder, samples=np.zeros((2, 3, 4, 4), np.float32), labels=[0, 1]), _samples, DATA
    ),
    "samples .safetensors": Reader(
        lambda folder: (
            save_file({"samples": torch.zeros(2, 3, 4, 4), "labels": torch.arange(2)}, folder / "a.safetensors")
            or folder / "a.safetensors"
        ),
        _samples,
        DATA,
    ),
    "exported network": Reader(_exported, lambda p: load_extractor(str(p)), EVALUATION),
    "TorchScript": Reader(_scripted, lambda p: load_extractor(str(p)), EVALUATION),
    "settings of samples": Reader(_sampling, lambda p: claim(p.parent, DRAWN, overwrite=False), (SampleFilesError,)),
    "part of samples": Reader(_part, _has_part, ()),
    "picture of samples": Reader(_drawn_picture, lambda p: PictureFolder(p.parent).has(range(1)), ()),
}


def refusal(name: str, path: Path) -> str:
    """Return the message of the error that refuses a file and names it."""
    with pytest.raises(READERS[name].errors) as caught:
        READERS[name].read(path)
    message = str(caught.value)
    assert path.name in message
    assert len(message) < 2000
    return message
