"""DiMR as a model and a pipeline of the ``diffusers`` library, which is optional."""

from ..utils import require

require("diffusers", "diffusers", "dimr.diffusers_pipeline")

from .conversion import convert_from_pipeline, convert_to_pipeline  # noqa: E402
from .pipeline import DiMRPipeline  # noqa: E402
from .scheduler import make_scheduler  # noqa: E402
from .transformer import DiMRTransformer2DModel, DiMRTransformer2DModelOutput  # noqa: E402

__all__ = [
    "DiMRPipeline",
    "DiMRTransformer2DModel",
    "DiMRTransformer2DModelOutput",
    "convert_from_pipeline",
    "convert_to_pipeline",
    "make_scheduler",
]
