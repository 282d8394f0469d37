#!/usr/bin/env bash
# Question:  do large values of a uint32 array survive a column of images in datasets?
# Expected:  yes, or an error: int32 cannot hold them, and no image format of Pillow's has uint32.
# Version:   datasets 5.2.0, numpy 2.4.6, pillow 13.0.0
# Behaviour: a warning about a downcast to int32, then values from 2^31 on wrap round.
# Seen:      3000000000 read back as -1294967296
. "$(dirname "$0")/environment.sh"
environment datasets==5.2.0 numpy==2.4.6 pillow==13.0.0
python -W ignore - <<'EOF'
import numpy as np
from datasets import Dataset, Features, Image

array = np.array([[7, 3_000_000_000]], dtype=np.uint32)
rows = Dataset.from_dict({"image": [array]}, features=Features({"image": Image()}))
found = np.asarray(rows[0]["image"])
print(f"{array[0, 1]} read back as {found[0, 1]}")
assert found.tolist() == [[7, 3_000_000_000 - 2**32]]
EOF
