"""Evaluation of samples against a reference: :func:`evaluate`, and the parts it is made of.

The metrics, on the Inception network of 2015-12-05 as torch-fidelity ports it, with its published weights:

- FID (Heusel et al. 2017, arXiv:1706.08500): Frechet distance of the 2048 pooled features.
- sFID (Nash et al. 2021, arXiv:2103.03841): the same on the first 7 channels of "mixed_6/conv", 17x17, as in the
  evaluation suite of ADM (Dhariwal and Nichol 2021).
- Inception Score (Salimans et al. 2016, arXiv:1606.03498): from the 1008 logits without their bias, 10 shuffled splits.
- Precision and recall (Kynkaanniemi et al. 2019, arXiv:1904.06991): k = 3, on the pooled features as in ADM's suite;
  the paper uses VGG16's features.

On any other network the same metrics are named after it, because their values are comparable only among themselves.

torch-fidelity and torchmetrics compute most of these numbers too, and the tests compare with them. The network is
torch-fidelity's; the metrics are not, because the libraries lack what an evaluation needs here:

- Statistics files. Published results are compared with ADM's .npz files, some of which hold no images. Neither library
  reads them; torch-fidelity (0.4) has a cache of its own.
- sFID, which neither has. torchmetrics (1.9) has no precision and recall either, torch-fidelity only since 0.4.
- One pass in bounded memory. torch-fidelity keeps every feature of every image, 10 GB for ImageNet's training set as
  the reference; torchmetrics' Inception Score keeps every logit.
- Accuracy. torchmetrics sums products of features that are not centred. torch-fidelity's distance of a set of few
  images to itself can be negative, and its precision and recall in float32 depend on an offset common to all features.
- Any network, with torch and NumPy alone. torch-fidelity imports torchvision.
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
