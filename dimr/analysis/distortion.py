"""Distorted samples: those that a classifier does not recognise as the class they were drawn for (Figure 5)."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checkpoints.weights import read_state_dict
from ..data.digits import load_digits
from ..data.errors import DataError, SampleError
from ..evaluation.digits import DigitClassifier
from ..evaluation.extractors import load_extractor
from ..evaluation.metrics import EvaluationError
from ..images import SHOWN_CHANNELS, side_by_side, tile, to_pixels
from ..utils import first_line, require

Classifier = Callable[[Tensor], Tensor]  # images [B, C, H, W] in [-1, 1] to logits [B, classes]

IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of torchvision's models
IMAGENET_SIZE = 224
COLUMNS = 4
SHOWN_SIZE = 64  # pixels across; smaller images are enlarged


# Samples with their classes, as written by ``dimr sample`` and other programs.


@dataclasses.dataclass(frozen=True)
class Samples:
    """Images that are read on demand, because fifty thousand may not fit into memory.

    Attributes:
        labels: ``[count]`` int64, or None if they are unknown.
        read: maps indices to ``[B, C, H, W]`` of about [-1, 1] with C 1 or 3; called through :meth:`images`.
        name: name for messages.
    """

    count: int
    labels: Tensor | None
    read: Callable[[Sequence[int]], Tensor]
    name: str = "samples"

    def __post_init__(self) -> None:
        if self.count == 0:
            raise DataError(f"{self.name}: no images in it")
        if self.labels is not None and (self.labels.shape != (self.count,) or self.labels.min() < 0):
            raise DataError(f"{self.name}: wanted a class of 0 or more for each of {self.count} images")

    def images(self, indices: Sequence[int]) -> Tensor:
        """Read images as float32 ``[B, C, H, W]`` in [-1, 1]; a DataError if they cannot be read or shown."""
        images = self.read(indices).float()
        if images.dim() != 4 or images.shape[1] not in SHOWN_CHANNELS:
            raise DataError(f"{self.name}: wanted images [N, 1 or 3, H, W], found {list(images.shape)}")
        if not images.isfinite().all():
            raise DataError(f"{self.name}: its images hold values that are no finite numbers")
        return images.clamp(-1, 1)


def from_tensors(images: Tensor, labels: Tensor | None, name: str = "samples") -> Samples:
    """Wrap ``images [N, C, H, W]`` in [-1, 1] and ``labels [N]``."""
    if images.dim() != 4 or images.is_complex():
        raise DataError(f"{name}: wanted images [N, 1 or 3, H, W], found {images.dtype} {list(images.shape)}")
    return Samples(len(images), None if labels is None else labels.long(), lambda i: images[list(i)], name)


def read_samples(path: str | os.PathLike[str]) -> Samples:
    """Open a ``.safetensors``, an ``.npz`` with ``samples`` or with pixels as in ADM's suite, or a folder of pictures.

    Raises:
        FileNotFoundError: the path does not exist.
        DataError: it holds something else, or is damaged.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no samples at {path}")
    suffix = path.suffix.lower()
    if path.is_dir():
        return _from_source(path)
    if suffix == ".safetensors":
        return _from_safetensors(path)
    if suffix == ".npz":
        return _from_npz(path)
    raise DataError(f"{path}: wanted a folder, .npz or .safetensors")


def _from_safetensors(path: Path) -> Samples:
    tensors = require("safetensors.torch", "demo", "reading .safetensors")
    try:
        found = tensors.load_file(path)
    except Exception as error:  # safetensors raises its own errors and others
        raise DataError(f"{path} cannot be read: {error}") from error
    if "samples" not in found:
        raise DataError(f"{path} has no tensor samples, only {', '.join(sorted(found))}")
    return from_tensors(found["samples"], found.get("labels"), str(path))


def _from_npz(path: Path) -> Samples:
    numpy = require("numpy", "demo", "reading .npz")
    from ..data.sources.npz import array_names, read_array

    names = array_names(path)
    if "samples" not in names:
        return _from_source(path)
    arrays = {name: read_array(path, name) for name in ("samples", "labels") if name in names}
    for name, array in arrays.items():
        if array.dtype.kind not in "fiu":
            raise DataError(f"{path}: wanted numbers in {name}, found {array.dtype}")
    samples = torch.from_numpy(numpy.array(arrays["samples"], "float32"))
    labels = torch.from_numpy(numpy.array(arrays["labels"], "int64")) if "labels" in arrays else None
    return from_tensors(samples, labels, str(path))


def _from_source(path: Path) -> Samples:
    require("numpy", "demo", "reading pictures")
    from ..data.sources.folder import FolderSource
    from ..data.sources.npz import NpzSource

    source: Any = FolderSource(path) if path.is_dir() else NpzSource(path)
    labels = None if source.labels is None else torch.as_tensor(source.labels).long()

    def read(indices: Sequence[int]) -> Tensor:
        images = [_read(source, i) for i in indices]
        if len({image.shape for image in images}) > 1:
            raise DataError(f"{path}: its pictures differ in size")
        return torch.stack(images)

    return Samples(len(source), labels, read, str(path))


def _read(source: Any, index: int) -> Tensor:
    from ..data.pictures import as_tensor, to_model_range

    try:
        return to_model_range(as_tensor(source.picture(index)))
    except SampleError as error:
        raise DataError(str(error.skipped)) from error


# Classifiers.


def digit_classifier(size: int) -> Classifier:
    """Fit the demo's classifier on the real digits at this size.

    Its logits are margins of a support vector machine, whose softmax orders samples but is not a probability.
    """
    return DigitClassifier(load_digits(size)).margins


def torchvision_classifier(name: str, weights: str | os.PathLike[str], device: torch.device) -> Classifier:
    """Load a torchvision model by name with a state dict from a file. Images are resized to 224 and normalised for it.

    Raises:
        FileNotFoundError, CheckpointError: there are no such weights, or the file is damaged.
        EvaluationError: there is no such model, or the weights do not fit it.
    """
    models = require("torchvision.models", "evaluate", "a classifier by torchvision's name")
    state = read_state_dict(weights)
    try:
        model = models.get_model(name, weights=None)
        model.load_state_dict(state)
    except (ValueError, RuntimeError, TypeError) as error:  # RuntimeError lists the keys
        raise EvaluationError(f"classifier {name}, weights {weights}: {first_line(error)}") from error
    model.to(device).eval()
    mean, deviation = (torch.tensor(v, device=device).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_DEVIATION))

    def logits(images: Tensor) -> Tensor:
        images = images.to(device).expand(-1, 3, -1, -1)
        size = (IMAGENET_SIZE, IMAGENET_SIZE)
        resized = F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)
        return model(((resized + 1) / 2 - mean) / deviation)

    return logits


def module_classifier(source: str, device: torch.device) -> Classifier:
    """Load a network from ``package.module:callable`` or a file, see :func:`dimr.evaluation.load_extractor`.

    It takes uint8 ``[B, 3, H, W]`` and returns logits, or a mapping with ``"logits"``.
    """
    extractor = load_extractor(source)
    extractor.module.to(device).eval()

    def logits(images: Tensor) -> Tensor:
        found = extractor(to_pixels(images).permute(0, 3, 1, 2).contiguous().to(device))
        return found.pooled if found.logits is None else found.logits

    return logits


# Scores, and their presentation.


@dataclasses.dataclass(frozen=True)
class Scores:
    """The classifier's confidence in each sample's label, or in its prediction if there are no labels."""

    samples: Samples
    confidence: Tensor  # [N] float32
    predicted: Tensor  # [N]


@torch.inference_mode()
def score(samples: Samples, classifier: Classifier, batch_size: int = 64, progress: bool = False) -> Scores:
    """Run the classifier over all samples.

    Args:
        batch_size: images per batch.
        progress: show a progress bar (needs tqdm).

    Raises:
        DataError: the classifier does not know a label, or does not return finite logits ``[B, classes]``.
    """
    starts = range(0, samples.count, batch_size)
    bar: Any = contextlib.nullcontext(starts)
    if progress:
        bar = require("tqdm", "demo", "the progress bar").tqdm(starts, desc="scoring", unit="batch")
    with bar as steps:  # closing the bar ends its line before an error is printed
        parts = [_score_batch(samples, classifier, range(i, min(i + batch_size, samples.count))) for i in steps]
    confidence, predicted = (torch.cat(column) for column in zip(*parts, strict=True))
    return Scores(samples, confidence, predicted)


def _score_batch(samples: Samples, classifier: Classifier, indices: range) -> tuple[Tensor, Tensor]:
    logits = classifier(samples.images(indices)).float().cpu()
    if logits.dim() != 2 or len(logits) != len(indices) or not logits.isfinite().all():
        raise DataError(f"the classifier gave {list(logits.shape)} for a batch, wanted finite logits [B, classes]")
    shares = logits.softmax(dim=1)
    confidence, predicted = shares.max(dim=1)
    if samples.labels is not None:
        labels = samples.labels[indices.start : indices.stop]
        if labels.max() >= logits.shape[1]:
            raise DataError(f"label {int(labels.max())} is none of the classifier's {logits.shape[1]} classes")
        confidence = shares.gather(1, labels[:, None])[:, 0]
    return confidence, predicted


@dataclasses.dataclass(frozen=True)
class Split:
    """Indices of the samples below and above a threshold, in ascending order of confidence."""

    threshold: float
    low: Tensor
    accepted: Tensor


def split(scores: Scores, threshold: float) -> Split:
    """Split the samples by their confidence."""
    order = scores.confidence.argsort(stable=True)
    below = scores.confidence[order] < threshold
    return Split(threshold, order[below], order[~below])


def shown(parts: Split, count: int) -> tuple[list[int], list[int]]:
    """Choose the ``count`` samples of lowest confidence, and as many accepted ones, evenly spread."""
    places = torch.linspace(0, len(parts.accepted) - 1, min(count, len(parts.accepted))).round().long()
    return parts.low[:count].tolist(), parts.accepted[places].tolist()


def picture(scores: Scores, parts: Split, count: int) -> Tensor:
    """Draw low-confidence samples beside accepted ones: uint8 ``[height, width, 3]``."""
    N = len(scores.confidence)
    titles = (f"below {parts.threshold:g}: {len(parts.low)} of {N}", f"accepted: {len(parts.accepted)}")
    panels = [
        (title, _panel(scores.samples, indices, count))
        for title, indices in zip(titles, shown(parts, count), strict=True)
    ]
    return side_by_side(panels, [""])


def _panel(samples: Samples, indices: list[int], count: int) -> Tensor:
    """Tile ``count`` images; missing ones are white."""
    images = samples.images(indices or [0])
    chosen = torch.ones(count, *images.shape[1:])
    chosen[: len(indices)] = images[: len(indices)]
    return tile(chosen, min(COLUMNS, count), zoom=max(1, SHOWN_SIZE // images.shape[-1]))


def distortion_as_json(scores: Scores, parts: Split, count: int) -> dict[str, Any]:
    """Convert the scores to plain values for a report."""
    labels, N = scores.samples.labels, len(scores.confidence)

    def describe(index: int) -> dict[str, Any]:
        asked = None if labels is None else int(labels[index])
        confidence = scores.confidence[index].item()
        return {"index": index, "label": asked, "predicted": int(scores.predicted[index]), "confidence": confidence}

    low, accepted = shown(parts, count)
    return {
        "samples": N,
        "threshold": parts.threshold,
        "low": len(parts.low),
        "low_share": len(parts.low) / N,
        "mean_confidence": scores.confidence.double().mean().item(),
        "accuracy": None if labels is None else (scores.predicted == labels).double().mean().item(),
        "per_class": None if labels is None else _per_class(labels, parts),
        "shown": {"low": [describe(i) for i in low], "accepted": [describe(i) for i in accepted]},
        "confidence": [round(value, 6) for value in scores.confidence.tolist()],
    }


def _per_class(labels: Tensor, parts: Split) -> list[dict[str, int]]:
    counts = labels.bincount()
    low = labels[parts.low].bincount(minlength=len(counts))
    return [{"class": c, "samples": int(counts[c]), "low": int(low[c])} for c in range(len(counts)) if counts[c]]
