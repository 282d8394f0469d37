"""How good samples are: :func:`evaluate`, and the parts it is made of."""

from .errors import EvaluationError
from .extractors import FeatureExtractor, load_extractor, wrap_module
from .frechet import frechet_distance
from .inception import load_inception
from .manifold import precision_and_recall
from .report import EvaluationReport, Metric
from .run import EvaluationSettings, evaluate
from .statistics import FeatureStatistics, Moments

__all__ = [
    "EvaluationError",
    "EvaluationReport",
    "EvaluationSettings",
    "FeatureExtractor",
    "FeatureStatistics",
    "Metric",
    "Moments",
    "evaluate",
    "frechet_distance",
    "load_extractor",
    "load_inception",
    "precision_and_recall",
    "wrap_module",
]
