"""The cascade's way up: ``y + TDLN(pixel_shuffle(x))`` over channels-last maps."""
