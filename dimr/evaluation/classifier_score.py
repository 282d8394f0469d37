"""The Inception Score, for the logits of any classifier."""

from __future__ import annotations

import torch
from torch import Tensor

from ..optional import require
from .errors import EvaluationError

SHUFFLE_SEED = 2020  # with it the splits are torch-fidelity's


def shuffled_splits(count: int, splits: int) -> Tensor:
    """The split of each of ``count`` images: ``[count]``, shuffled because samples are often sorted by class."""
    order = require("numpy", "evaluate", "the Inception Score").random.RandomState(SHUFFLE_SEED).permutation(count)
    ends = torch.tensor([(i + 1) * count // splits for i in range(splits)])
    assigned = torch.empty(count, dtype=torch.int64)
    assigned[torch.from_numpy(order).long()] = torch.searchsorted(ends, torch.arange(count), right=True)
    return assigned


class ClassifierScore:
    """``exp(E_x KL(p(y|x) || p(y)))``, mean and deviation over splits (Salimans et al. 2016, section 4).

    Needs only sums over the images of each split, so memory does not grow with the images and parts can be merged.
    """

    def __init__(self, splits: int, classes: int, device: torch.device | str = "cpu") -> None:
        self.counts = torch.zeros(splits, dtype=torch.float64, device=device)
        self.probabilities = torch.zeros(splits, classes, dtype=torch.float64, device=device)  # sums of p
        self.negative_entropies = torch.zeros(splits, dtype=torch.float64, device=device)  # sums of p log p

    def update(self, logits: Tensor, split: Tensor) -> None:
        """Add ``logits [B, classes]`` of images in the splits ``[B]``."""
        if logits.dim() != 2 or logits.shape[1] != self.probabilities.shape[1]:
            raise EvaluationError(f"logits: wanted [B, {self.probabilities.shape[1]}], got {list(logits.shape)}")
        if not torch.isfinite(logits).all():
            raise EvaluationError("logits: found values that are not finite")
        log_p = logits.to(self.counts).log_softmax(dim=1)
        p = log_p.exp()
        split = split.to(p.device)
        self.counts += torch.bincount(split, minlength=len(self.counts))
        self.probabilities.index_add_(0, split, p)
        self.negative_entropies.index_add_(0, split, (p * log_p).sum(dim=1))

    def merge(self, other: ClassifierScore) -> None:
        """Add what ``other`` has seen."""
        self.counts += other.counts.to(self.counts)
        self.probabilities += other.probabilities.to(self.counts)
        self.negative_entropies += other.negative_entropies.to(self.counts)

    def value(self) -> tuple[float, float]:
        """Mean and deviation (divided by the number of splits) over the splits. Every split needs an image."""
        if (self.counts == 0).any():
            raise EvaluationError(f"{len(self.counts)} splits need as many images, got {int(self.counts.sum())}")
        marginal = self.probabilities / self.counts[:, None]
        divergence = self.negative_entropies / self.counts - torch.special.xlogy(marginal, marginal).sum(dim=1)
        scores = divergence.exp()
        return scores.mean().item(), scores.std(correction=0).item()
