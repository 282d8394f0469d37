"""Pictures from a DiMR: create or load it, pack it for inference, sample, save a PNG.

Without a checkpoint the weights are random and the pictures are noise. `dimr demo --output demo` trains one on digits
within minutes of CPU time: `python examples/sample_dimr.py --checkpoint demo/checkpoint --labels 0 1 2 3 4 5 6 7 8 9`.

    python examples/sample_dimr.py --output samples.png
"""

from __future__ import annotations

import argparse
import time

import torch

import dimr
from dimr.images import save_image, tile


def randomized(model: dimr.DiMR) -> dimr.DiMR:
    """Randomize a new model, whose output is zero and could not be compared."""
    for parameter in model.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", help="folder of a saved model; its pictures must be pixels, not latents")
    parser.add_argument(
        "--model", default="dimr-tiny-3r", help="created with random weights where there is no checkpoint"
    )
    parser.add_argument("--labels", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--guidance", type=float, default=0.4)
    parser.add_argument("--output", default="samples.png")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    torch.manual_seed(0)
    model = dimr.load_model(args.checkpoint) if args.checkpoint else randomized(dimr.create_model(args.model))
    model = model.to(args.device).eval()
    print(f"{dimr.count_parameters(model) / 1e6:.2f} M parameters on {args.device}")
    fast = dimr.optimize_for_inference(model)  # bfloat16 copies of the weights; on a GPU a CUDA graph per batch size
    for name, backend in fast.report()["operators"].items():
        print(f"  {name}: {backend}")

    guidance = dimr.Guidance("constant", args.guidance)
    pictures = {}
    for name, sampler in (("as it is", model), ("for inference", fast)):
        start = time.perf_counter()
        generator = torch.Generator().manual_seed(0)  # on the CPU: the same noise on every machine
        labels = torch.tensor(args.labels, device=args.device)
        pictures[name] = dimr.sample(sampler, labels, steps=args.steps, guidance=guidance, generator=generator).cpu()
        seconds = time.perf_counter() - start
        print(f"{name}: {len(args.labels)} pictures in {seconds:.2f} s, first calls included")
    plain, packed = (picture.float() for picture in pictures.values())
    print(f"relative difference of the two: {((packed - plain).norm() / plain.norm()).item():.1e} (bfloat16)")
    save_image(args.output, tile(packed, columns=len(args.labels), zoom=max(1, 64 // packed.shape[-1])))
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
