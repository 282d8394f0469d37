"""Quality of generated digits: recognition by a classifier of real digits, memorisation and collapse."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from ..data.digits import LabelledImages
from ..utils import require


@dataclasses.dataclass(frozen=True)
class Recognition:
    """Shares of images in [0, 1] whose predicted class is their label."""

    accuracy: float
    per_class: tuple[float, ...]  # over the images with the label c


class DigitClassifier:
    """A support vector machine with a Gaussian kernel on the pixels, fitted on ``data``. Deterministic."""

    def __init__(self, data: LabelledImages) -> None:
        svm = require("sklearn.svm", "demo", "the digit classifier")
        self._machine = svm.SVC(C=10.0, gamma="scale").fit(_rows(data.images), data.labels.numpy())

    def predict(self, images: Tensor) -> Tensor:
        """Predict class ids ``[N]`` from images ``[N, 1, S, S]``."""
        return torch.from_numpy(self._machine.predict(_rows(images))).long()

    def margins(self, images: Tensor) -> Tensor:
        """Compute the margin of each class, ``[N, classes]`` float64, from ``[N, 1, S, S]``; not a probability."""
        return torch.from_numpy(self._machine.decision_function(_rows(images)))

    def recognition(self, data: LabelledImages) -> Recognition:
        """Compute how often the prediction is the label. Every class up to the largest label needs an image."""
        right = (self.predict(data.images) == data.labels).double()
        classes = range(int(data.labels.max()) + 1)
        return Recognition(right.mean().item(), tuple(right[data.labels == c].mean().item() for c in classes))


def _rows(images: Tensor):
    return images.flatten(1).numpy()


# Figures that show memorised or collapsed samples. Each is meaningful only beside that of real images.


def nearest_distances(images: Tensor, references: Tensor) -> Tensor:
    """Compute the Euclidean distance of each of ``images [N, C, H, W]`` to the nearest of ``references``, ``[N]``.

    Samples much nearer to the training images than held-out real images are memorised; samples much farther away do
    not resemble them.
    """
    # Computing distances through matrix products loses the accuracy of small ones.
    distances = torch.cdist(images.flatten(1), references.flatten(1), compute_mode="donot_use_mm_for_euclid_dist")
    return distances.min(dim=1).values


def within_class_deviation(data: LabelledImages) -> float:
    """Compute the pixels' standard deviation among images of one class, averaged over pixels and classes.

    If it is far below that of real images, the samples of a class are all alike.
    """
    deviations = [data.images[data.labels == c].std(dim=0).mean() for c in data.labels.unique()]
    return torch.stack(deviations).mean().item()
