"""Weights on disk: the published names and this package's, safetensors folders, conversion both ways."""

from .convert import convert_to_folder, convert_to_published
from .folder import load_model, save_model
from .official import load_official_checkpoint, to_official_state_dict
from .reading import CheckpointError

__all__ = [
    "CheckpointError",
    "convert_to_folder",
    "convert_to_published",
    "load_model",
    "load_official_checkpoint",
    "save_model",
    "to_official_state_dict",
]
