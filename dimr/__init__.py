"""DiMR: Multi-Resolution Diffusion Models (NeurIPS 2024)."""

from .checkpoints import (
    CheckpointError,
    convert_to_folder,
    convert_to_published,
    load_model,
    load_official_checkpoint,
    save_model,
)
from .diffusion.loss import branch_losses, multi_scale_loss
from .diffusion.sample import Guidance, sample
from .diffusion.schedule import NoiseSchedule
from .inference import InferenceEngine, optimize_for_inference
from .model.config import DiMRConfig
from .model.counting import count_macs, count_parameters
from .model.network import DiMR
from .model.variants import create_model, list_ablations, list_models, model_config

__all__ = [
    "CheckpointError",
    "DiMR",
    "DiMRConfig",
    "Guidance",
    "InferenceEngine",
    "NoiseSchedule",
    "branch_losses",
    "convert_to_folder",
    "convert_to_published",
    "count_macs",
    "count_parameters",
    "create_model",
    "list_ablations",
    "list_models",
    "load_model",
    "load_official_checkpoint",
    "model_config",
    "multi_scale_loss",
    "optimize_for_inference",
    "sample",
    "save_model",
]
