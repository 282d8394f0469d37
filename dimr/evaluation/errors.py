"""What the caller of an evaluation can put right."""

from __future__ import annotations


class EvaluationError(ValueError):
    """Samples, a reference or a feature extractor that cannot be evaluated; the message names it."""
