"""``pytest benchmarks/ --benchmark-only``: every operator against eager PyTorch and torch.compile, on any machine."""
