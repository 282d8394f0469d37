"""GeGLU in a diffusers UNet (Stable Diffusion's architecture, small, with random weights).

`dk.adopt` finds the GEGLU layers, swaps those tested equal and reports the others. The output before and after is
compared, and on a GPU both are timed.

    python examples/geglu_in_diffusers.py --channels 320 640 --size 64 --device cuda
"""

from __future__ import annotations

import argparse

import torch
from diffusers import UNet2DConditionModel
from torch.utils.benchmark import Timer

import dimr_kernels as dk


def network(channels: list[int]) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        block_out_channels=channels,
        down_block_types=["CrossAttnDownBlock2D"] * len(channels),
        up_block_types=["CrossAttnUpBlock2D"] * len(channels),
        cross_attention_dim=64,
        attention_head_dim=8,
        norm_num_groups=8,
        layers_per_block=1,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--size", type=int, default=16, help="of the latent")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    torch.manual_seed(0)
    model = network(args.channels).to(device, dtype).eval()
    latent = torch.randn(args.batch, 4, args.size, args.size, device=device, dtype=dtype)
    text = torch.randn(args.batch, 77, 64, device=device, dtype=dtype)

    def run() -> torch.Tensor:
        with torch.inference_mode():
            return model(latent, 500, text).sample

    def milliseconds() -> float:
        return 1e3 * Timer("run()", globals={"run": run}).blocked_autorange(min_run_time=2).median

    before = run()
    time_before = milliseconds() if device.type == "cuda" else None
    report = dk.adopt(model)
    print(report)
    after = run()
    error = (after - before).abs().max() / before.abs().max()
    print(f"largest difference of the outputs, relative to the largest output: {error.item():.2e}")
    if error > 16 * torch.finfo(dtype).eps:
        raise SystemExit("the outputs differ by more than rounding")
    if time_before is None:
        print(f"not timed: on a {device.type} the operators run as plain PyTorch")
    else:
        print(f"diffusers' own {time_before:.3f} ms, adopted {milliseconds():.3f} ms")


if __name__ == "__main__":
    main()
