"""Diffusion: noise schedule, training loss, classifier-free guidance and samplers."""
