#!/usr/bin/env bash
# Question:  what does webdataset's decode("l") make of a 16-bit greyscale PNG, which its own writer stores?
# Expected:  values divided by 65,535, as those of 8 bits are divided by 255.
# Version:   webdataset 1.0.2, numpy 2.4.6, pillow 13.0.0
# Behaviour: values from 255 on are cut to 255 before they are divided by 255: all but the darkest is 1.
# Seen:      [0, 100, 4000, 60000] decoded as [0.0, 0.392, 1.0, 1.0]
. "$(dirname "$0")/environment.sh"
environment webdataset==1.0.2 numpy==2.4.6 pillow==13.0.0
python - <<'EOF'
import io

import numpy as np
import webdataset
from PIL import Image

values = np.array([[0, 100, 4000, 60000]], dtype=np.uint16)
with webdataset.TarWriter("x.tar") as writer:
    writer.write({"__key__": "0", "png": values})
raw = next(iter(webdataset.WebDataset("x.tar", shardshuffle=False)))["png"]
assert np.array_equal(np.asarray(Image.open(io.BytesIO(raw))), values)  # the file has them all
found = next(iter(webdataset.WebDataset("x.tar", shardshuffle=False).decode("l")))["png"]
print(f"{values[0].tolist()} decoded as {found[0].round(3).tolist()}")
assert np.allclose(found, [[0, 100 / 255, 1, 1]])
EOF
