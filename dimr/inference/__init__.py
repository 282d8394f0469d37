"""Fast inference: packed weights, no copies between operators, one CUDA graph per batch size."""

from .engine import InferenceEngine, optimize_for_inference

__all__ = ["InferenceEngine", "optimize_for_inference"]
