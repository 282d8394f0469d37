"""Checkpoints: folders that hold a model, published checkpoint files, and conversion between them."""

from .official import (
    convert_to_folder,
    convert_to_published,
    load_official_checkpoint,
    to_official_state_dict,
)
from .weights import CheckpointError, load_model, save_model

__all__ = [
    "CheckpointError",
    "convert_to_folder",
    "convert_to_published",
    "load_model",
    "load_official_checkpoint",
    "save_model",
    "to_official_state_dict",
]
