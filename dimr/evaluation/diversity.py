"""Simple figures that show memorised or collapsed samples. Each means something only beside the same of real images."""

from __future__ import annotations

import torch
from torch import Tensor

from ..data.digits import LabelledImages


def nearest_distances(images: Tensor, references: Tensor) -> Tensor:
    """Euclidean distance of each of ``images [N, C, H, W]`` to the nearest of ``references``: ``[N]``.

    Samples far nearer to the training images than held-out real images are: memorised. Far farther: not like them.
    """
    # The form through matrix products loses the digits of small distances.
    distances = torch.cdist(images.flatten(1), references.flatten(1), compute_mode="donot_use_mm_for_euclid_dist")
    return distances.min(dim=1).values


def within_class_deviation(data: LabelledImages) -> float:
    """The pixels' standard deviation among images of one class, averaged over pixels and classes.

    Far below that of real images, the samples of a class are all alike.
    """
    deviations = [data.images[data.labels == c].std(dim=0).mean() for c in data.labels.unique()]
    return torch.stack(deviations).mean().item()
