"""U-ViT as a configuration, against its description (Bao et al. 2023) written out."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

import dimr
from dimr.model.variants import uvit_config

D, DEPTH, HEADS, PATCH, C, SIZE = 8, 5, 2, 2, 3, 8
CONFIG = uvit_config(D, DEPTH, HEADS, PATCH, in_channels=C, input_size=SIZE, num_classes=4, unconditional_class=False)


def attention(p: dict, at: str, x: torch.Tensor) -> torch.Tensor:
    q, k, v = (x @ p[f"{at}.qkv.weight"].T).chunk(3, dim=-1)
    heads = []
    for h in range(HEADS):
        part = slice(h * D // HEADS, (h + 1) * D // HEADS)
        weights = (q[..., part] @ k[..., part].mT / math.sqrt(D // HEADS)).softmax(dim=-1)
        heads.append(weights @ v[..., part])
    return linear(p, f"{at}.out", torch.cat(heads, dim=-1))


def linear(p: dict, at: str, x: torch.Tensor) -> torch.Tensor:
    return x @ p[f"{at}.weight"].T + p[f"{at}.bias"]


def norm(p: dict, at: str, x: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(x, (D,), p[f"{at}.weight"], p[f"{at}.bias"])


def block(p: dict, at: str, x: torch.Tensor) -> torch.Tensor:
    x = x + attention(p, f"{at}.attn", norm(p, f"{at}.norm1", x))
    h = F.gelu(linear(p, f"{at}.mlp.proj", norm(p, f"{at}.norm2", x)))
    return x + linear(p, f"{at}.mlp.out", h)


def uvit(model: dimr.DiMR, x: torch.Tensor, timestep: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    p = {name.removeprefix("branches.0."): value for name, value in model.state_dict().items()}
    side = SIZE // PATCH
    patches = F.conv2d(x, p["embed.proj.weight"].view(D, C, PATCH, PATCH), p["embed.proj.bias"], stride=PATCH)
    tokens = patches.flatten(2).mT + p["embed.position"].flatten(0, 1)
    angles = timestep[:, None] * 10_000 ** (-torch.arange(D // 2, dtype=x.dtype) / (D // 2))
    time = torch.cat((angles.cos(), angles.sin()), dim=1) + p["time_token.position"]
    h = torch.cat((time[:, None], p["class_embedding.weight"][labels][:, None], tokens), dim=1)
    first = h = block(p, "blocks.0", h)
    second = h = block(p, "blocks.1", h)
    h = block(p, "blocks.2", h)
    h = block(p, "blocks.3", linear(p, "skips.0", torch.cat((h, second), dim=-1)))
    h = block(p, "blocks.4", linear(p, "skips.1", torch.cat((h, first), dim=-1)))
    pixels = linear(p, "head.proj", norm(p, "head.norm", h[:, 2:])).view(-1, side, side, C, PATCH, PATCH)
    image = pixels.permute(0, 3, 1, 4, 2, 5).reshape(-1, C, SIZE, SIZE)
    return F.conv2d(image, p["head.conv.weight"], p["head.conv.bias"], padding=1)


def test_as_written_out():
    model = dimr.DiMR(CONFIG)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
        model = model.double()
        x, labels = torch.randn(3, C, SIZE, SIZE, dtype=torch.float64), torch.tensor([0, 3, 1])
        timestep = torch.tensor([1.0, 40.0, 700.0])
        (found,) = model(x, timestep, labels)
        wanted = uvit(model, x, timestep.double(), labels)
    # The model's sinusoids are float32.
    torch.testing.assert_close(found, wanted, atol=2e-4, rtol=2e-4)
    assert wanted.std() > 0.1


def test_even_depths_get_one_more_block():
    assert len(dimr.DiMR(uvit_config(8, 4, 2, 2, input_size=8)).branches[0].blocks) == 5
