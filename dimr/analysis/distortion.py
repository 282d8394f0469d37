"""Which samples a classifier does not take for what they are meant to show (the paper's Figure 5)."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checkpoints.weights import read_state_dict
from ..data.digits import load_digits
from ..data.errors import DataError, SampleError
from ..evaluation.digits import DigitClassifier
from ..evaluation.extractors import load_extractor
from ..evaluation.metrics import EvaluationError
from ..images import SHOWN_CHANNELS, side_by_side, tile, to_pixels
from ..utils import first_line, require

# Samples with the classes they are meant to show, from what ``dimr sample`` and other programs write.


@dataclasses.dataclass(frozen=True)
class Samples:
    """Images that are read when they are asked for, so that fifty thousand need not fit into memory.

    Attributes:
        labels: ``[count]`` int64, or None where nothing tells them.
        read: indices to ``[B, C, H, W]`` in [-1, 1] or nearly so, C 1 or 3; called through :meth:`images`.
        name: for messages.
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
        """float32 ``[B, C, H, W]`` in [-1, 1]; DataError where they cannot be read or shown."""
        images = self.read(indices).float()
        if images.dim() != 4 or images.shape[1] not in SHOWN_CHANNELS:
            raise DataError(f"{self.name}: wanted images [N, 1 or 3, H, W], found {list(images.shape)}")
        if not images.isfinite().all():
            raise DataError(f"{self.name}: its images hold values that are no finite numbers")
        return images.clamp(-1, 1)


def from_tensors(images: Tensor, labels: Tensor | None, name: str = "samples") -> Samples:
    """``images [N, C, H, W]`` in [-1, 1] and ``labels [N]``."""
    if images.dim() != 4 or images.is_complex():
        raise DataError(f"{name}: wanted images [N, 1 or 3, H, W], found {images.dtype} {list(images.shape)}")
    return Samples(len(images), None if labels is None else labels.long(), lambda i: images[list(i)], name)


def read_samples(path: str | os.PathLike[str]) -> Samples:
    """From ``.safetensors`` or ``.npz`` (``samples``, or pixels as ADM's suite has them), or a folder of pictures.

    Raises:
        FileNotFoundError: there is nothing.
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
    except Exception as error:  # safetensors has errors of its own, and passes on others
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


# Classifiers that score samples: images ``[B, C, H, W]`` in [-1, 1] to logits ``[B, classes]``.


Classifier = Callable[[Tensor], Tensor]

# What torchvision's ImageNet models were trained on.
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIDE = 224


def digit_classifier(size: int) -> Classifier:
    """The demo's classifier, fitted on the real digits at this size.

    Its logits are the margins of a support vector machine: their softmax puts samples in order and is no probability.
    """
    return DigitClassifier(load_digits(size)).margins


def torchvision_classifier(name: str, weights: str | os.PathLike[str], device: torch.device) -> Classifier:
    """A torchvision model by name, with a state dict from a file; images are resized to 224 and normalised for it.

    Raises:
        FileNotFoundError, CheckpointError: no such weights, or no whole file of them.
        EvaluationError: no such model, or weights that do not fit it.
    """
    models = require("torchvision.models", "evaluate", "a classifier by torchvision's name")
    state = read_state_dict(weights)
    try:
        model = models.get_model(name, weights=None)
        model.load_state_dict(state)
    except (ValueError, RuntimeError, TypeError) as error:  # RuntimeError: with lists of keys
        raise EvaluationError(f"classifier {name}, weights {weights}: {first_line(error)}") from error
    return _on_imagenet_pixels(model.to(device).eval(), device)


def _on_imagenet_pixels(model: nn.Module, device: torch.device) -> Classifier:
    mean, deviation = (torch.tensor(v, device=device).view(3, 1, 1) for v in (MEAN, DEVIATION))

    def logits(images: Tensor) -> Tensor:
        images = images.to(device).expand(-1, 3, -1, -1)
        resized = F.interpolate(images, (SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)
        return model(((resized + 1) / 2 - mean) / deviation)

    return logits


def module_classifier(source: str, device: torch.device) -> Classifier:
    """What :func:`dimr.evaluation.load_extractor` takes: ``package.module:callable``, or a file of a network.

    It is given uint8 ``[B, 3, H, W]`` and returns logits, or a mapping with ``"logits"``.
    """
    extractor = load_extractor(source)
    extractor.module.to(device).eval()

    def logits(images: Tensor) -> Tensor:
        found = extractor(to_pixels(images).permute(0, 3, 1, 2).contiguous().to(device))
        return found.pooled if found.logits is None else found.logits

    return logits


COLUMNS = 4
SHOWN_SIZE = 64  # pixels across; smaller images are enlarged


@dataclasses.dataclass(frozen=True)
class Scores:
    """Of each sample: ``confidence [N]`` float32 in what it is meant to show, and ``predicted [N]``, the likeliest.

    Without labels the confidence is that in the likeliest class.
    """

    samples: Samples
    confidence: Tensor
    predicted: Tensor


@torch.inference_mode()
def score(samples: Samples, classifier: Classifier, batch_size: int = 64, progress: bool = False) -> Scores:
    """Run the classifier over all samples.

    Args:
        batch_size: images at a time.
        progress: show a bar (needs tqdm).

    Raises:
        DataError: a label is no class of the classifier's, or its answer is no finite ``[B, classes]``.
    """
    starts = range(0, samples.count, batch_size)
    bar: Any = contextlib.nullcontext(starts)
    if progress:
        bar = require("tqdm", "demo", "the progress bar").tqdm(starts, desc="scoring", unit="batch")
    with bar as steps:  # which ends the bar's line before an error's begins
        parts = [_score(samples, classifier, range(i, min(i + batch_size, samples.count))) for i in steps]
    confidence, predicted = (torch.cat(column) for column in zip(*parts, strict=True))
    return Scores(samples, confidence, predicted)


def _score(samples: Samples, classifier: Classifier, indices: range) -> tuple[Tensor, Tensor]:
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
    """Indices: ``low`` from the least confidence on, ``accepted`` likewise."""

    threshold: float
    low: Tensor
    accepted: Tensor


def split(scores: Scores, threshold: float) -> Split:
    order = scores.confidence.argsort(stable=True)
    below = scores.confidence[order] < threshold
    return Split(threshold, order[below], order[~below])


def shown(parts: Split, count: int) -> tuple[list[int], list[int]]:
    """The ``count`` samples of least confidence, and as many accepted ones, spread evenly over those."""
    places = torch.linspace(0, len(parts.accepted) - 1, min(count, len(parts.accepted))).round().long()
    return parts.low[:count].tolist(), parts.accepted[places].tolist()


def picture(scores: Scores, parts: Split, count: int) -> Tensor:
    """Low-confidence samples beside accepted ones: uint8 ``[height, width, 3]``."""
    N = len(scores.confidence)
    titles = (f"below {parts.threshold:g}: {len(parts.low)} of {N}", f"accepted: {len(parts.accepted)}")
    panels = [
        (title, _panel(scores.samples, indices, count))
        for title, indices in zip(titles, shown(parts, count), strict=True)
    ]
    return side_by_side(panels, [""])


def _panel(samples: Samples, indices: list[int], count: int) -> Tensor:
    """White where there are not enough."""
    images = samples.images(indices or [0])
    chosen = torch.ones(count, *images.shape[1:])
    chosen[: len(indices)] = images[: len(indices)]
    return tile(chosen, min(COLUMNS, count), zoom=max(1, SHOWN_SIZE // images.shape[-1]))


def distortion_as_json(scores: Scores, parts: Split, count: int) -> dict[str, Any]:
    labels, N = scores.samples.labels, len(scores.confidence)

    def described(index: int) -> dict[str, Any]:
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
        "shown": {"low": [described(i) for i in low], "accepted": [described(i) for i in accepted]},
        "confidence": [round(value, 6) for value in scores.confidence.tolist()],
    }


def _per_class(labels: Tensor, parts: Split) -> list[dict[str, int]]:
    counts = labels.bincount()
    low = labels[parts.low].bincount(minlength=len(counts))
    return [{"class": c, "samples": int(counts[c]), "low": int(low[c])} for c in range(len(counts)) if counts[c]]
