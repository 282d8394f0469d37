from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from dimr.sampling.autoencoder import decode_latents, latent_scale


class Doubling:
    """A decoder that shows the mean of the channels twice as large, and remembers its batches."""

    config = SimpleNamespace(latent_channels=4, scaling_factor=0.5)
    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self):
        self.batches = []

    def decode(self, z):
        self.batches.append(len(z))
        image = z.mean(1, keepdim=True).expand(-1, 3, -1, -1)
        return SimpleNamespace(sample=torch.nn.functional.interpolate(image, scale_factor=2.0))


@pytest.mark.parametrize(("batch_size", "batches"), [(2, [2, 2, 1]), (8, [5])])
def test_latents_are_decoded_in_batches(batch_size, batches):
    decoder, latents = Doubling(), 0.1 * torch.randn(5, 4, 3, 3)
    images = decode_latents(decoder, latents, batch_size)
    assert decoder.batches == batches
    assert images.shape == (5, 3, 6, 6)
    torch.testing.assert_close(images[:, 0, ::2, ::2], latents.mean(1) / 0.5)
    assert decode_latents(decoder, 100 * latents).abs().max() == 1
    images.requires_grad_()  # an ordinary tensor


def test_latents_are_scaled_and_shifted_back():
    decoder, latents = Doubling(), 0.1 * torch.randn(2, 4, 3, 3)
    decoder.config = SimpleNamespace(latent_channels=4, scaling_factor=0.5, shift_factor=0.25)
    images = decode_latents(decoder, latent_scale(decoder).apply(latents))
    torch.testing.assert_close(images[:, 0, ::2, ::2], latents.mean(1))


@pytest.mark.parametrize(
    ("latents", "batch_size", "message"),
    [
        (torch.zeros(2, 3, 4, 4), 4, r"latents must have shape \[B, 4, h, w\], got \[2, 3, 4, 4\]"),
        (torch.zeros(2, 4, 4, 4), 0, "batch_size must be an integer of at least 1, got 0"),
    ],
)
def test_bad_input_is_named(latents, batch_size, message):
    with pytest.raises(ValueError, match=message):
        decode_latents(Doubling(), latents, batch_size)
