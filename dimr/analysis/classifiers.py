"""Classifiers that score samples: images ``[B, C, H, W]`` in [-1, 1] to logits ``[B, classes]``."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checkpoints.reading import read_state_dict
from ..data.digits import load_digits
from ..evaluation.digit_classifier import DigitClassifier
from ..evaluation.errors import EvaluationError
from ..evaluation.extractors import load_extractor
from ..images import to_pixels
from ..messages import first_line
from ..optional import require

Classifier = Callable[[Tensor], Tensor]

# What torchvision's ImageNet models were trained on.
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIDE = 224


def digit_classifier(size: int) -> Classifier:
    """The demo's classifier, fitted on the real digits at this size.

    Its logits are the margins of a support vector machine: their softmax puts samples in order and is no probability.
    """
    return DigitClassifier(load_digits(size)).margins


def torchvision_classifier(name: str, weights: str | os.PathLike[str], device: torch.device) -> Classifier:
    """A torchvision model by name, with a state dict from a file; images are resized to 224 and normalised for it.

    Raises:
        FileNotFoundError, CheckpointError: no such weights, or no whole file of them.
        EvaluationError: no such model, or weights that do not fit it.
    """
    models = require("torchvision.models", "evaluate", "a classifier by torchvision's name")
    state = read_state_dict(weights)
    try:
        model = models.get_model(name, weights=None)
        model.load_state_dict(state)
    except (ValueError, RuntimeError, TypeError) as error:  # RuntimeError: with lists of keys
        raise EvaluationError(f"classifier {name}, weights {weights}: {first_line(error)}") from error
    return _on_imagenet_pixels(model.to(device).eval(), device)


def _on_imagenet_pixels(model: nn.Module, device: torch.device) -> Classifier:
    mean, deviation = (torch.tensor(v, device=device).view(3, 1, 1) for v in (MEAN, DEVIATION))

    def logits(images: Tensor) -> Tensor:
        images = images.to(device).expand(-1, 3, -1, -1)
        resized = F.interpolate(images, (SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)
        return model(((resized + 1) / 2 - mean) / deviation)

    return logits


def module_classifier(source: str, device: torch.device) -> Classifier:
    """What :func:`dimr.evaluation.load_extractor` takes: ``package.module:callable``, or a file of a network.

    It is given uint8 ``[B, 3, H, W]`` and returns logits, or a mapping with ``"logits"``.
    """
    extractor = load_extractor(source)
    extractor.module.to(device).eval()

    def logits(images: Tensor) -> Tensor:
        found = extractor(to_pixels(images).permute(0, 3, 1, 2).contiguous().to(device))
        return found.pooled if found.logits is None else found.logits

    return logits
