"""Gated linear unit with GELU: ``gelu(gate) * value``."""
