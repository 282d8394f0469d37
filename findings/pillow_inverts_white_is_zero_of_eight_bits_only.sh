#!/usr/bin/env bash
# Question:  are the values of a greyscale TIFF file in which 0 is white inverted when Pillow reads them?
# Expected:  yes, so that 0 is black as in any other picture, whatever the number of bits.
# Version:   Pillow 13.0.0, tifffile 2026.3.3
# Behaviour: those of 8 bits are; those of 16 bits come as they are in the file, a negative.
# Seen:      [0, 200] of 8 bits read as [255, 55], of 16 bits as [0, 200]
. "$(dirname "$0")/environment.sh"
environment pillow==13.0.0 tifffile==2026.3.3 numpy==2.4.6
python - <<'EOF'
import numpy as np
import tifffile
from PIL import Image

for dtype, expected in ((np.uint8, [255, 55]), (np.uint16, [0, 200])):
    tifffile.imwrite("x.tif", np.array([[0, 200]], dtype), photometric="miniswhite")
    found = np.asarray(Image.open("x.tif"))[0].tolist()
    print(f"[0, 200] of {np.dtype(dtype)} read as {found}")
    assert found == expected
EOF
