"""How a model starts when it is trained from scratch."""

from __future__ import annotations

from torch import nn

from .ablations.cascades import PatchHead
from .ablations.norms import Modulation
from .branches import NoiseHead, PatchEmbedding

STD = 0.02


def initialize(model: nn.Module) -> None:
    """Truncated normal weights and zero biases, as in vision transformers and ConvNeXt; the prediction starts at zero.

    The norms keep their own start. Depthwise convolutions keep torch's: with only ``K * K`` inputs to each output,
    weights of 0.02 would hardly mix neighbours.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=STD)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.trunc_normal_(module.weight, std=STD)
        elif isinstance(module, PatchEmbedding):
            nn.init.trunc_normal_(module.position, std=STD)
        elif isinstance(module, (NoiseHead, PatchHead)):
            for parameter in module.conv.parameters():
                nn.init.zeros_(parameter)
    for module in model.modules():
        if isinstance(module, Modulation):
            module.start_at_zero()  # after its linear layers' own start above
