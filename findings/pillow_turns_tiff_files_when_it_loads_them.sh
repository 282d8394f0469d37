#!/usr/bin/env bash
# Question:  does a picture's EXIF orientation, as Pillow's getexif() states it, tell how to turn its pixels?
# Expected:  yes, for every format.
# Version:   Pillow 13.0.0
# Behaviour: not for TIFF. Pillow turns its pixels while it reads them, and takes the tag away. Who reads the tag before
#            the pixels, as from a file just opened, turns the picture twice; and to leave the orientation alone is no
#            option. JPEG, PNG and WebP files keep pixels and tag.
# Seen:      orientation 6 of 4 x 2 pixels: TIFF 2 x 4 and no tag after loading, the others 4 x 2 and 6
. "$(dirname "$0")/environment.sh"
environment pillow==13.0.0
python - <<'EOF'
import io

from PIL import Image

ORIENTATION = 0x0112
for kind in ("tiff", "jpeg", "png", "webp"):
    picture, file = Image.new("RGB", (4, 2)), io.BytesIO()
    exif = picture.getexif()
    exif[ORIENTATION] = 6
    picture.save(file, kind, exif=exif)
    opened = Image.open(file)
    before = opened.getexif().get(ORIENTATION)
    opened.load()
    after = opened.getexif().get(ORIENTATION)
    print(f"{kind}: orientation {before}, after loading {after} and {opened.size}")
    assert before == 6 and (after, opened.size) == ((None, (2, 4)) if kind == "tiff" else (6, (4, 2)))
EOF
