"""How good samples are: :func:`evaluate`, and the parts it is made of.

On the Inception network of 2015-12-05, as torch-fidelity ports it, with its published weights:

- FID (Heusel et al. 2017, arXiv:1706.08500): Frechet distance of the 2048 pooled features.
- sFID (Nash et al. 2021, arXiv:2103.03841): the same of the first 7 channels of "mixed_6/conv", 17x17, as in the
  evaluation suite of ADM (Dhariwal and Nichol 2021).
- Inception Score (Salimans et al. 2016, arXiv:1606.03498): of the 1008 logits without their bias, 10 shuffled splits.
- Precision and recall (Kynkaanniemi et al. 2019, arXiv:1904.06991): k = 3, on the pooled features as in ADM's suite;
  the paper's own are VGG16's.

On any other network the same numbers are named after it, because they are comparable only among themselves.
"""

from .evaluate import EvaluationReport, EvaluationSettings, Metric, evaluate
from .extractors import FeatureExtractor, load_extractor, load_inception, wrap_module
from .metrics import EvaluationError, FeatureStatistics, Moments, frechet_distance, precision_and_recall

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
