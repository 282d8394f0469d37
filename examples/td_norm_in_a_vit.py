"""TD-LN in a plain vision transformer that removes noise.

The network is torch's own modules and has no input for the time. Its layer norms become time-dependent in one line,
`adopt_time_norms`: at first it computes what it did, then training lets every norm follow the time. Two copies, with
and without, train on the same pictures of clouds. Their losses start alike and stay close: a picture this small shows
by itself how noisy it is. What moved is printed too.

    python examples/td_norm_in_a_vit.py --steps 400 --width 64
"""

from __future__ import annotations

import argparse
import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dimr_kernels as dk
from dimr_kernels.adoption import adopt_time_norms

SIZE, PATCH, BATCH = 16, 4, 32


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        x = x + self.attention(h, h, h, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """Network from a noisy image ``[B, 1, SIZE, SIZE]`` to its noise."""

    def __init__(self, width: int, depth: int = 3) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, PATCH, PATCH)
        self.position = nn.Parameter(0.02 * torch.randn((SIZE // PATCH) ** 2, width))
        self.blocks = nn.Sequential(*(Block(width) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, PATCH * PATCH)

    def forward(self, x: Tensor) -> Tensor:
        h = self.patches(x).flatten(2).mT + self.position  # [B, L, width]
        return F.fold(self.out(self.norm(self.blocks(h))).mT, SIZE, PATCH, stride=PATCH)


def loss_of(model: nn.Module, device: str) -> Tensor:
    clean = F.interpolate(torch.randn(BATCH, 1, 4, 4, device=device), SIZE, mode="bicubic")  # clouds
    t = torch.rand(BATCH, device=device)
    noise = torch.randn_like(clean)
    angle = (t * torch.pi / 2).view(-1, 1, 1, 1)
    with dk.time_conditioning(2 * t - 1):  # what every TDLayerNorm inside sees
        return F.mse_loss(model(angle.cos() * clean + angle.sin() * noise), noise)


def train(model: nn.Module, steps: int, device: str) -> tuple[float, float]:
    """Train; return the first loss and the mean of the last ten."""
    torch.manual_seed(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(steps):
        losses.append(loss_of(model, device))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    return losses[0].item(), torch.stack(losses[-10:]).mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    torch.manual_seed(0)
    plain = ViT(args.width).to(args.device)
    timed = copy.deepcopy(plain)
    print(adopt_time_norms(timed))
    for name, model in (("LayerNorm", plain), ("TDLayerNorm", timed)):
        first, last = train(model, args.steps, args.device)
        print(f"{name:12} loss at the first step {first:.4f}, at the end {last:.4f}")
    x = torch.randn(1, args.width, device=args.device)
    moved = timed.norm(x, 1.0) - timed.norm(x, -1.0)
    print(
        f"the last norm of one input, between the first and the last time: up to {moved.abs().max().item():.2g} apart"
    )


if __name__ == "__main__":
    main()
