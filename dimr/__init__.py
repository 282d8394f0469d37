"""DiMR: Multi-Resolution Diffusion Models (NeurIPS 2024)."""

from .ablations.table import list_ablations
from .checkpoints import (
    CheckpointError,
    convert_to_folder,
    convert_to_published,
    load_model,
    load_official_checkpoint,
    save_model,
)
from .config import DiMRConfig
from .counting import count_macs, count_parameters
from .guidance import Guidance
from .inference import InferenceEngine, optimize_for_inference
from .loss import branch_losses, multi_scale_loss
from .network import DiMR
from .sampling import sample
from .schedule import NoiseSchedule
from .variants import create_model, list_models, model_config

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
