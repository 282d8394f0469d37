#!/usr/bin/env bash
# Question:  how does datasets store a float16 array in a column of images?
# Expected:  as float32, the next type that an image format has, as it stores float64.
# Version:   datasets 5.2.0, numpy 2.4.6, pillow 13.0.0
# Behaviour: looking for a smaller type it halves the size to 1 byte and fails in numpy, which has no such float.
# Seen:      float32 mode F, float64 mode F, float16 TypeError: data type '<f1' not understood
. "$(dirname "$0")/environment.sh"
environment datasets==5.2.0 numpy==2.4.6 pillow==13.0.0
python -W ignore - <<'EOF'
import numpy as np
from datasets import Dataset, Features, Image

features = Features({"image": Image()})
found = {}
for dtype in (np.float32, np.float64, np.float16):
    try:
        rows = Dataset.from_dict({"image": [np.linspace(0, 1, 64).reshape(8, 8).astype(dtype)]}, features=features)
        found[dtype.__name__] = f"mode {rows[0]['image'].mode}"
    except TypeError as error:
        found[dtype.__name__] = f"TypeError: {error}"
print(", ".join(f"{name} {value}" for name, value in found.items()))
assert found == {
    "float32": "mode F", "float64": "mode F", "float16": "TypeError: data type '<f1' not understood"
}
EOF
