"""The evaluation of samples against a reference, and its report."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import torch
from torch import Tensor, nn

from .collect import Collected, collect
from .extractors import FeatureExtractor, load_inception, wrap_module
from .images import Images, open_images
from .metrics import EvaluationError, Moments, frechet_distance, precision_and_recall
from .reference import Reference, open_reference, save_statistics, usable_moments

INCEPTION_NAMES = {
    "frechet": "FID",
    "spatial": "sFID",
    "score": "Inception Score",
    "precision": "precision",
    "recall": "recall",
}
OTHER_NAMES = {
    "frechet": "frechet distance on {}",
    "spatial": "spatial frechet distance on {}",
    "score": "classifier score on {}",
    "precision": "precision on {}",
    "recall": "recall on {}",
}
PAPERS = {
    "frechet": "Heusel et al. 2017, arXiv:1706.08500",
    "spatial": "Nash et al. 2021, arXiv:2103.03841; features as in ADM's evaluation suite",
    "score": "Salimans et al. 2016, arXiv:1606.03498",
    "precision": "Kynkaanniemi et al. 2019, arXiv:1904.06991",
    "recall": "Kynkaanniemi et al. 2019, arXiv:1904.06991",
}


Source = str | os.PathLike[str] | Tensor


@dataclasses.dataclass(frozen=True)
class EvaluationSettings:
    """Parameters of the metrics; the defaults are those of the papers and of ADM's evaluation suite.

    Args:
        batch_size: images per batch.
        crop: size to reduce and crop pictures in folders to, if they are not all of one size.
        exif_orientation: turn pictures as their EXIF data says; ADM's preprocessing of ImageNet does not.
        neighbours: k of precision and recall.
        splits: number of splits of the Inception Score.
        manifold_images: largest number of images of each set that precision and recall use.
    """

    batch_size: int = 64
    crop: int | None = None
    neighbours: int = 3
    splits: int = 10
    manifold_images: int = 50_000
    exif_orientation: bool = True

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None and not isinstance(value, bool) and value < 1:
                raise EvaluationError(f"{field.name}: wanted at least 1, got {value}")


@dataclasses.dataclass(frozen=True)
class Metric:
    """One metric: its value, or the reason why it could not be computed."""

    name: str
    value: float | None
    paper: str
    deviation: float | None = None
    reason: str | None = None


def metric_name(kind: str, extractor: FeatureExtractor) -> str:
    """Return the metric's name, which is the published one only on FID's own network."""
    return INCEPTION_NAMES[kind] if extractor.is_fid else OTHER_NAMES[kind].format(extractor.name)


@dataclasses.dataclass(frozen=True)
class EvaluationReport:
    """Metrics with a description of everything that they depend on, as plain values."""

    metrics: tuple[Metric, ...]
    samples: dict[str, Any]
    reference: dict[str, Any]
    features: dict[str, Any]
    settings: dict[str, Any]
    warnings: tuple[str, ...] = ()

    def value(self, name: str) -> float:
        """Return a metric's value by its name; a KeyError if there is none or it could not be computed."""
        values = {metric.name: metric.value for metric in self.metrics if metric.value is not None}
        return values[name]

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def table(self) -> str:
        """Format the report for people: what was compared, then one line per metric."""
        features = self.features
        lines = [
            f"samples    {_describe_source(self.samples)}",
            f"reference  {_describe_source(self.reference)}",
            f"features   {features['name']}, {features['dimension']} values in {features['dtype']}, "
            f"weights sha256 {features['sha256'][:12]}; images: {features['resize']}",
            "",
        ]
        width = max(len(metric.name) for metric in self.metrics)
        for metric in self.metrics:
            lines.append(f"{metric.name:{width}}  {_format_value(metric)}")
        return "\n".join(lines)


def _describe_source(source: dict[str, Any]) -> str:
    if source["statistics"] == "computed":
        return f"{source['path']}, {source['count']} images of {source['image_size']}"
    beside = f", beside {source['manifold_images']} images" if source["manifold_images"] else ""
    return f"{source['path']}, statistics of {source['count'] or 'an unknown number of'} images{beside}"


def _format_value(metric: Metric) -> str:
    if metric.value is None:
        return f"-  ({metric.reason})"
    deviation = "" if metric.deviation is None else f" +- {metric.deviation:.4f}"
    return f"{metric.value:.4f}{deviation}"


def evaluate(
    samples: Source,
    reference: Source,
    features: nn.Module | FeatureExtractor | None = None,
    settings: EvaluationSettings | None = None,
    *,
    save_reference: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> EvaluationReport:
    """Compute FID, sFID, Inception Score, precision and recall, or the same metrics on another network's features.

    Args:
        samples: a folder of pictures, an ``.npz`` with ``arr_0`` uint8 ``[N, H, W, 3]``, or uint8 ``[N, 3, H, W]``.
        reference: the same, or an ``.npz`` with statistics ``mu [D]``, ``sigma [D, D]`` and perhaps ``mu_s``,
            ``sigma_s`` of the spatial features. Images beside statistics are used for precision and recall.
        features: the network, on the device to use; see :class:`FeatureExtractor`. None is FID's Inception, whose
            weights must have been downloaded.
        settings: None is the defaults.
        save_reference: ``.npz`` file to write the reference's statistics to, for later evaluations.
        progress: show progress bars on stderr.

    Raises:
        EvaluationError: the samples, the reference or the network cannot be used; the message names it.
    """
    settings = settings or EvaluationSettings()
    extractor = _extractor(features)
    source = open_images(samples, settings.crop, settings.exif_orientation)
    known, warnings = usable_moments(open_reference(reference, settings.crop, settings.exif_orientation), extractor)
    _check_dimensions(known, extractor, source)
    found = _collect(source, extractor, settings, "samples" if progress else None)
    other = None
    if known.images is not None:
        other = _collect(known.images, extractor, settings, "reference" if progress else None)
    moments, spatial = _reference_moments(known, other)
    metrics = _metrics(found, other, moments, spatial, extractor, settings)
    count = int(known.origin["count"]) if "count" in known.origin else None
    if other is not None and known.moments is None:
        count = other.count
    if save_reference is not None:
        save_statistics(save_reference, extractor, count or 0, moments, spatial)
    warnings += _too_few("samples", found.count, found) + _too_few("reference", count, found)
    return EvaluationReport(
        tuple(metrics),
        {"path": source.description, "statistics": "computed", "count": found.count} | _images(found),
        {"path": known.description, "statistics": "computed" if known.moments is None else "read", "count": count}
        | _images(other),
        _extractor_as_json(extractor, found),
        dataclasses.asdict(settings) | {"statistics_dtype": "float64"},
        tuple(warnings),
    )


def _extractor(features: nn.Module | FeatureExtractor | None) -> FeatureExtractor:
    if features is None:
        return load_inception()
    return features if isinstance(features, FeatureExtractor) else wrap_module(features)


def _collect(source: Images, extractor: FeatureExtractor, settings: EvaluationSettings, title: str | None):
    return collect(
        source, extractor,
        batch_size=settings.batch_size, splits=settings.splits, keep=settings.manifold_images, progress=title,
    )  # fmt: skip


def _check_dimensions(reference: Reference, extractor: FeatureExtractor, samples: Images) -> None:
    """Check the reference's statistics against the features of one image, before the long run over all of them."""
    with torch.inference_mode():
        first = extractor(next(samples.batches(1)).to(extractor.device))
    for kind, moments, found in (
        ("features", reference.moments, first.pooled),
        ("spatial features", reference.spatial, first.spatial),
    ):
        if moments is not None and found is not None and len(moments.mean) != found.shape[1]:
            raise EvaluationError(
                f"{reference.description}: its statistics are of {len(moments.mean)} {kind}, "
                f"{extractor.name} makes {found.shape[1]}"
            )


def _reference_moments(reference: Reference, collected: Collected | None) -> tuple[Moments, Moments | None]:
    if reference.moments is not None:
        return reference.moments, reference.spatial
    assert collected is not None
    spatial = collected.spatial
    return collected.statistics.moments(), None if spatial is None else spatial.moments()


def _metrics(
    samples: Collected,
    reference: Collected | None,
    moments: Moments,
    spatial: Moments | None,
    extractor: FeatureExtractor,
    settings: EvaluationSettings,
) -> list[Metric]:
    def metric(kind: str, value: float | None, reason: str | None = None, deviation: float | None = None) -> Metric:
        return Metric(metric_name(kind, extractor), value, PAPERS[kind], deviation, reason)

    metrics = [metric("frechet", _frechet(samples.statistics.moments(), moments))]
    if samples.spatial is None or spatial is None:
        owner = "the network" if samples.spatial is None else "the reference"
        metrics.append(metric("spatial", None, f"{owner} has no spatial features"))
    else:
        metrics.append(metric("spatial", _frechet(samples.spatial.moments(), spatial)))
    if samples.score is None:
        metrics.append(metric("score", None, "the network has no logits"))
    else:
        mean, deviation = samples.score.value()
        metrics.append(metric("score", mean, deviation=deviation))
    shares, reason = _precision_and_recall(samples, reference, settings.neighbours)
    return metrics + [metric(kind, share, reason) for kind, share in zip(("precision", "recall"), shares, strict=True)]


def _frechet(first: Moments, second: Moments) -> float:
    return frechet_distance(first, Moments(*(part.to(first.mean) for part in second)))


def _precision_and_recall(
    samples: Collected, reference: Collected | None, neighbours: int
) -> tuple[tuple[float | None, float | None], str | None]:
    if reference is None:
        return (None, None), "the reference has statistics but no images"
    fewest = min(len(samples.features), len(reference.features))
    if fewest <= neighbours:
        return (None, None), f"{neighbours} neighbours need more images than {fewest}"
    return precision_and_recall(samples.features, reference.features, neighbours), None


def _too_few(name: str, count: int | None, found: Collected) -> list[str]:
    dimension = len(found.statistics.mean)
    if count is None or count > dimension:
        return []
    return [
        f"{name}: {count} images for {dimension} features: the covariance is singular, "
        "and the distance depends on the number of images more than on what they show"
    ]


def _images(found: Collected | None) -> dict[str, Any]:
    return {
        "image_size": None if found is None else found.size,
        "manifold_images": 0 if found is None else len(found.features),
    }


def _extractor_as_json(extractor: FeatureExtractor, found: Collected) -> dict[str, Any]:
    return {
        "name": extractor.name,
        "sha256": extractor.sha256,
        "dimension": len(found.statistics.mean),
        "spatial_dimension": None if found.spatial is None else len(found.spatial.mean),
        "dtype": str(found.dtype).removeprefix("torch."),
        "device": str(found.features.device),
        "resize": extractor.resize_method,
    }
