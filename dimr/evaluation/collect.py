"""One pass of a network over images, which keeps only what the metrics need."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

from ..utils import require
from .extractors import FeatureExtractor, Features
from .images import Images, image_size
from .metrics import ClassifierScore, EvaluationError, FeatureStatistics, shuffled_splits


@dataclasses.dataclass
class Collected:
    """The result of a pass over ``count`` images."""

    count: int
    size: str  # width and height of the images
    statistics: FeatureStatistics
    spatial: FeatureStatistics | None
    score: ClassifierScore | None
    features: Tensor  # [M, D] float32, of images spread evenly over all of them
    dtype: torch.dtype  # of the network's features


@torch.inference_mode()
def collect(
    source: Images,
    extractor: FeatureExtractor,
    *,
    batch_size: int,
    splits: int,
    keep: int,
    progress: str | None = None,
) -> Collected:
    """Run ``extractor`` over all of ``source``.

    Args:
        batch_size: images per batch.
        splits: splits of the classifier score; fewer if there are fewer images.
        keep: largest number of images whose features are kept.
        progress: title of a progress bar on stderr; None shows none.
    """
    device = extractor.device
    splits = min(splits, source.count)
    split_of = shuffled_splits(source.count, splits)
    collected: Collected | None = None
    kept, done = [], 0
    with _evaluating(extractor), _bar(progress, source.count) as advance:
        for images in source.batches(batch_size):
            found = extractor(images.to(device))
            if collected is None:
                collected = _empty(source.count, image_size(images), found, splits)
            positions = torch.arange(done, done + len(images))
            _check_finite(found, source, done)
            _add(collected, found, split_of[positions])
            # floor(i * keep / N) increases at `keep` evenly spread images.
            chosen = (positions + 1) * keep // source.count > positions * keep // source.count
            kept.append(found.pooled[(chosen | (keep >= source.count)).to(device)].float())
            done += len(images)
            advance(len(images))
    if collected is None or done != source.count:
        raise EvaluationError(f"{source.description}: wanted {source.count} images, found {done}")
    collected.features = torch.cat(kept)
    return collected


def _empty(count: int, size: str, found: Features, splits: int) -> Collected:
    device = found.pooled.device
    return Collected(
        count,
        size,
        FeatureStatistics(found.pooled.shape[1], device),
        None if found.spatial is None else FeatureStatistics(found.spatial.shape[1], device),
        None if found.logits is None else ClassifierScore(splits, found.logits.shape[1], device),
        found.pooled[:0],
        found.pooled.dtype,
    )


def _add(collected: Collected, found: Features, split: Tensor) -> None:
    collected.statistics.update(found.pooled)
    if collected.spatial is not None and found.spatial is not None:
        collected.spatial.update(found.spatial)
    if collected.score is not None and found.logits is not None:
        collected.score.update(found.logits, split)


def _check_finite(found: Features, source: Images, start: int) -> None:
    for kind, values in found._asdict().items():
        if values is not None and not torch.isfinite(values).all():
            first = int((~torch.isfinite(values)).any(dim=1).nonzero()[0])
            raise EvaluationError(f"{source.name(start + first)}: its {kind} features are not finite")


@contextlib.contextmanager
def _evaluating(extractor: FeatureExtractor) -> Iterator[None]:
    """Put the network into evaluation mode, and convolutions into full float32, for the length of the block."""
    was_training = extractor.module.training
    extractor.module.eval()
    try:
        cudnn = torch.backends.cudnn
        with cudnn.flags(cudnn.enabled, deterministic=cudnn.deterministic, allow_tf32=False):
            yield
    finally:
        extractor.module.train(was_training)


@contextlib.contextmanager
def _bar(title: str | None, total: int):
    if title is None:
        yield lambda count: None
        return
    tqdm = require("tqdm", "evaluate", "the progress bar").tqdm
    with tqdm(total=total, desc=title, unit="image", dynamic_ncols=True) as bar:
        yield bar.update
