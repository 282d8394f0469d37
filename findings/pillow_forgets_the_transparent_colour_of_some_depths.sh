#!/usr/bin/env bash
# Question:  is the transparent colour of a PNG (its tRNS chunk) transparent in Pillow's convert("RGBA")?
# Expected:  yes, whatever the number of bits of a sample.
# Version:   Pillow 13.0.0
# Behaviour: with 1 and 8 bits. With 2, 4 and 16 bits Pillow scales the samples to 8 bits or keeps 16, but not the
#            transparent colour with them, and everything is opaque.
# Seen:      greyscale of 1 and 8 bits: alpha 0 and 255; of 2, 4 and 16 bits, and RGB of 16 bits: 255 and 255
. "$(dirname "$0")/environment.sh"
environment pillow==13.0.0
python - <<'EOF'
import io
import struct
import zlib

from PIL import Image

GREY, RGB = 0, 2


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(depth, colour, transparent, other):
    """One row of two pixels, the first of the transparent colour."""
    channels = 3 if colour == RGB else 1
    bits = "".join(format(value, f"0{depth}b") for value in (transparent, other) for _ in range(channels))
    row = int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big")
    chunks = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, depth, colour, 0, 0, 0))
    chunks += chunk(b"tRNS", struct.pack(f">{channels}H", *[transparent] * channels))
    chunks += chunk(b"IDAT", zlib.compress(b"\0" + row)) + chunk(b"IEND", b"")
    return io.BytesIO(b"\x89PNG\r\n\x1a\n" + chunks)


for depth, colour, transparent, other, seen in (
    (1, GREY, 1, 0, True), (2, GREY, 1, 2, False), (4, GREY, 5, 6, False), (8, GREY, 5, 6, True),
    (16, GREY, 1000, 1001, False), (8, RGB, 5, 6, True), (16, RGB, 1000, 40000, False),
):  # fmt: skip
    alpha = [pixel[-1] for pixel in Image.open(png(depth, colour, transparent, other)).convert("RGBA").get_flattened_data()]
    print(f"{'RGB' if colour else 'greyscale'} of {depth} bits: alpha {alpha}")
    assert alpha == ([0, 255] if seen else [255, 255])
EOF
