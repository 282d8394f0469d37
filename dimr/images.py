"""Pictures from tensors: image grids, PNG files, loss curves."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor

from .utils import replacing, require

SHOWN_CHANNELS = (1, 3)  # grey and RGB; anything else is a latent
GAP = 2  # pixels between images
MARGIN = 12
FONT_SIZE = 16
BACKGROUND = (255, 255, 255)
INK = (40, 40, 40)


def to_pixels(images: Tensor) -> Tensor:
    """Convert images ``[N, C, H, W]`` in [-1, 1] (clamped) to uint8 ``[N, H, W, 3]``; C is 1 (grey) or 3."""
    if images.dim() != 4 or images.shape[1] not in SHOWN_CHANNELS:
        raise ValueError(f"images must have shape [N, 1 or 3, H, W], got {list(images.shape)}")
    pixels = ((images.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).expand(-1, -1, -1, 3)


def tile(images: Tensor, columns: int, zoom: int = 1) -> Tensor:
    """Arrange images ``[N, C, H, W]`` in rows on white, enlarged ``zoom`` times: uint8 ``[height, width, 3]``."""
    if columns < 1 or zoom < 1 or len(images) == 0:
        raise ValueError(f"wanted images, columns and zoom of at least 1, got {len(images)}, {columns} and {zoom}")
    pixels = to_pixels(images).repeat_interleave(zoom, dim=1).repeat_interleave(zoom, dim=2)
    N, H, W, _ = pixels.shape
    rows = -(-N // columns)
    canvas = torch.full((rows * (H + GAP) - GAP, columns * (W + GAP) - GAP, 3), 255, dtype=torch.uint8)
    for i, image in enumerate(pixels):
        top, left = (i // columns) * (H + GAP), (i % columns) * (W + GAP)
        canvas[top : top + H, left : left + W] = image
    return canvas


def save_image(path: str | os.PathLike[str], pixels: Tensor) -> None:
    """Write uint8 ``[height, width, 3]`` in the format of the file name's suffix."""
    image = require("PIL.Image", "demo", "writing pictures").fromarray(pixels.contiguous().numpy())
    with replacing(path) as temporary:
        image.save(temporary)


def side_by_side(panels: Sequence[tuple[str, Tensor]], row_labels: Sequence[str]) -> Tensor:
    """Draw panels of equal height (from :func:`tile`) side by side, with titles and one label per row."""
    Image, ImageDraw, ImageFont = (
        require(f"PIL.{name}", "demo", "drawing pictures") for name in ("Image", "ImageDraw", "ImageFont")
    )
    font = ImageFont.load_default(FONT_SIZE)
    top = MARGIN + 2 * FONT_SIZE
    left = MARGIN + FONT_SIZE * max(map(len, row_labels))
    height = panels[0][1].shape[0]
    width = left + sum(panel.shape[1] + 2 * MARGIN for _, panel in panels)
    picture = Image.new("RGB", (width, top + height + MARGIN), BACKGROUND)
    draw = ImageDraw.Draw(picture)
    for row, label in enumerate(row_labels):
        draw.text((MARGIN, top + height * (row + 0.5) / len(row_labels)), label, INK, font, anchor="lm")
    for title, panel in panels:
        draw.text((left, MARGIN), title, INK, font)
        picture.paste(Image.fromarray(panel.contiguous().numpy()), (left, top))
        left += panel.shape[1] + 2 * MARGIN
    return torch.from_numpy(require("numpy", "demo", "drawing pictures").array(picture))


def smooth(values: Tensor, window: int) -> Tensor:
    """Average each value with up to ``window - 1`` values before it: ``[N, K]`` -> ``[N, K]``."""
    sums = values.double().cumsum(dim=0)
    means = sums.clone()
    means[window:] -= sums[:-window]
    for i in range(len(means)):
        means[i] /= min(i + 1, window)
    return means


def save_loss_curves(path: str | os.PathLike[str], losses: Tensor, resolutions: Sequence[int]) -> None:
    """Plot ``losses [steps, branches]`` and their running means, one colour per branch."""
    figure_module = require("matplotlib.figure", "demo", "the loss curves")
    figure = figure_module.Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    losses = losses.cpu()
    running = smooth(losses, window=max(1, len(losses) // 40))
    steps = range(1, len(losses) + 1)
    for i, resolution in enumerate(resolutions):
        colour = f"C{i}"
        axes.plot(steps, losses[:, i], color=colour, alpha=0.2, linewidth=0.6)
        axes.plot(steps, running[:, i], color=colour, label=f"branch {i}: {resolution}x{resolution}")
    axes.set(xlabel="step", ylabel="mean squared error of the noise", yscale="log", title="Loss of each branch")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120)
