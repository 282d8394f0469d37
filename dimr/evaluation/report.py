"""What an evaluation found."""

from __future__ import annotations

import dataclasses
from typing import Any

from .extractors import FeatureExtractor

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


@dataclasses.dataclass(frozen=True)
class Metric:
    """A value, or why there is none."""

    name: str
    value: float | None
    paper: str
    deviation: float | None = None
    reason: str | None = None


def metric_name(kind: str, extractor: FeatureExtractor) -> str:
    """Only on FID's own network is a Frechet distance FID."""
    return INCEPTION_NAMES[kind] if extractor.is_fid else OTHER_NAMES[kind].format(extractor.name)


@dataclasses.dataclass(frozen=True)
class EvaluationReport:
    """Metrics, and everything needed to say what they are of. All of it is plain values."""

    metrics: tuple[Metric, ...]
    samples: dict[str, Any]
    reference: dict[str, Any]
    features: dict[str, Any]
    settings: dict[str, Any]
    warnings: tuple[str, ...] = ()

    def value(self, name: str) -> float:
        """Of the metric with this name; KeyError where there is none or it could not be computed."""
        values = {metric.name: metric.value for metric in self.metrics if metric.value is not None}
        return values[name]

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def table(self) -> str:
        """For people: what was compared, then a line to each metric."""
        features = self.features
        lines = [
            f"samples    {_described(self.samples)}",
            f"reference  {_described(self.reference)}",
            f"features   {features['name']}, {features['dimension']} values in {features['dtype']}, "
            f"weights sha256 {features['sha256'][:12]}; images: {features['resize']}",
            "",
        ]
        width = max(len(metric.name) for metric in self.metrics)
        for metric in self.metrics:
            lines.append(f"{metric.name:{width}}  {_shown(metric)}")
        return "\n".join(lines)


def _described(source: dict[str, Any]) -> str:
    if source["statistics"] == "computed":
        return f"{source['path']}, {source['count']} images of {source['image_size']}"
    beside = f", beside {source['manifold_images']} images" if source["manifold_images"] else ""
    return f"{source['path']}, statistics of {source['count'] or 'an unknown number of'} images{beside}"


def _shown(metric: Metric) -> str:
    if metric.value is None:
        return f"-  ({metric.reason})"
    deviation = "" if metric.deviation is None else f" +- {metric.deviation:.4f}"
    return f"{metric.value:.4f}{deviation}"
