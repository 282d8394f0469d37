"""DiMR: Multi-Resolution Diffusion Models (NeurIPS 2024)."""
