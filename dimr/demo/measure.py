"""Samples of all classes, and how good they are."""

from __future__ import annotations

from typing import Any

import torch

from ..batched_sampling import sample_in_batches
from ..data.digits import NUM_CLASSES, LabelledImages
from ..evaluation.digit_classifier import DigitClassifier
from ..evaluation.diversity import nearest_distances, within_class_deviation
from ..guidance import Guidance
from ..network import DiMR
from .settings import WANTED_ACCURACY, SamplingSettings

BATCH_SIZE = 200  # the activations of much larger ones leave a CPU's caches


def draw_samples(model: DiMR, settings: SamplingSettings, seed: int) -> LabelledImages:
    """``per_class`` samples of each class, class after class, clamped to [-1, 1], on the CPU."""
    labels = torch.arange(NUM_CLASSES).repeat_interleave(settings.per_class)
    guidance = Guidance("constant", settings.guidance)
    images = sample_in_batches(model, labels, seed, BATCH_SIZE, steps=settings.steps, guidance=guidance)
    return LabelledImages(images.clamp(-1, 1), labels)


def measure(samples: LabelledImages, trained_on: LabelledImages, held_out: LabelledImages) -> dict[str, Any]:
    """The figures of the report.

    The classifier is fitted on ``held_out``, which the generator has not seen; how well it knows real digits is
    measured on those that it has not seen itself.
    """
    classifier = DigitClassifier(held_out)
    recognised, real = classifier.recognition(samples), classifier.recognition(trained_on)
    return {
        "accuracy": recognised.accuracy,
        "wanted_accuracy": WANTED_ACCURACY,
        "passed": recognised.accuracy >= WANTED_ACCURACY,
        "accuracy_per_class": list(recognised.per_class),
        "classifier": {
            "kind": "support vector machine, Gaussian kernel, on pixels",
            "fitted_on_real_digits": len(held_out),
            "accuracy_on_unseen_real_digits": real.accuracy,
        },
        "diversity": {
            "nearest_training_image": {
                "samples": nearest_distances(samples.images, trained_on.images).mean().item(),
                "held_out_digits": nearest_distances(held_out.images, trained_on.images).mean().item(),
            },
            "pixel_deviation_within_class": {
                "samples": within_class_deviation(samples),
                "held_out_digits": within_class_deviation(held_out),
            },
        },
    }
