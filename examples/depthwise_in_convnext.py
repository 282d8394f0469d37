"""Depthwise 7x7 convolutions in timm's ConvNeXt (random weights).

`dk.adopt` swaps the depthwise convolutions and runs the network in channels last, so that no layer converts the layout.
Outputs and gradients before and after are compared, on a GPU both are timed, and `undo` gives the model back.

    python examples/depthwise_in_convnext.py --model convnext_tiny --size 224 --batch 64 --device cuda
"""

from __future__ import annotations

import argparse

import timm
import torch
from torch.utils.benchmark import Timer

import dimr_kernels as dk


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="convnext_atto")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    device = torch.device(args.device)
    torch.manual_seed(0)
    model = timm.create_model(args.model).to(device).eval()
    for parameter in (p for name, p in model.named_parameters() if name.endswith("gamma")):
        torch.nn.init.ones_(parameter)  # new networks scale their blocks by 1e-6, which would hide any difference
    images = torch.randn(args.batch, 3, args.size, args.size, device=device)
    weight = next(p for name, p in model.named_parameters() if "conv_dw" in name)

    def step() -> tuple[torch.Tensor, torch.Tensor]:
        """Return the output, and the gradient of a depthwise convolution's weight."""
        output = model(images)
        return output.detach(), torch.autograd.grad(output.square().mean(), weight)[0]

    def milliseconds() -> float:
        return 1e3 * Timer("step()", globals={"step": step}).blocked_autorange(min_run_time=2).median

    before = step()
    time_before = milliseconds() if device.type == "cuda" else None
    report = dk.adopt(model)
    print(report)
    for name, wanted, found in zip(("output", "gradient"), before, step(), strict=True):
        error = ((found - wanted).norm() / wanted.norm()).item()
        print(f"{name}: relative difference {error:.2e}")
        if error > 1e-3:  # TF32, which convolutions use on a GPU, has ten bits
            raise SystemExit(f"the {name}s differ by more than rounding")
    if time_before is None:
        print(f"not timed: on a {device.type} the operators run as plain PyTorch")
    else:
        print(f"forward and backward: timm's own {time_before:.3f} ms, adopted {milliseconds():.3f} ms")
    report.undo()
    print(f"undone: the same output as before, {torch.equal(step()[0], before[0])}")


if __name__ == "__main__":
    main()
