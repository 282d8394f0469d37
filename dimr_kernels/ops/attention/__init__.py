"""Attention over ``[B, heads, L, head_dim]``: flash-attn, torch's SDPA with a chosen backend, or plain PyTorch."""
