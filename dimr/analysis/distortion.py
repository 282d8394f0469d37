"""Which samples a classifier does not take for what they are meant to show (the paper's Figure 5)."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import torch
from torch import Tensor

from ..data.errors import DataError
from ..images import side_by_side, tile
from ..optional import require
from .classifiers import Classifier
from .samples import Samples

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


def as_json(scores: Scores, parts: Split, count: int) -> dict[str, Any]:
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
