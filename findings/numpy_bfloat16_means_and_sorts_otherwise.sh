#!/usr/bin/env bash
# Question:  are NumPy's mean and sort of bfloat16 arrays (ml_dtypes), as safetensors.numpy returns them, like float16's?
# Expected:  yes: a mean is computed in float32, NaNs are sorted to the end.
# Version:   ml_dtypes 0.6.0, numpy 2.4.6
# Behaviour: the mean is summed in bfloat16, one number after the other, and stops at 256: 1,000 ones have the mean 0.256.
#            A NaN stays where it was and nothing is sorted across it; np.unique leaves equal numbers twice.
# Seen:      mean 0.256 (float16: 1), sort of [3, NaN, 1] unchanged (float16: [1, 3, NaN])
. "$(dirname "$0")/environment.sh"
environment numpy==2.4.6 ml_dtypes==0.6.0
python - <<'EOF'
import ml_dtypes
import numpy as np

found = {}
for dtype in (np.float16, ml_dtypes.bfloat16):
    mean = float(np.ones(1000, dtype).mean())
    ordered = np.sort(np.array([3, np.nan, 1], dtype)).astype(float).tolist()
    unique = len(np.unique(np.array([3, np.nan, 1, np.nan, 3], dtype)))
    print(f"{np.dtype(dtype)}: mean {mean}, sorted {ordered}, different {unique}")
    found[dtype] = mean, ordered, unique
assert found[np.float16][0] == 1 and found[np.float16][1][:2] == [1, 3] and found[np.float16][2] == 3
mean, ordered, unique = found[ml_dtypes.bfloat16]
assert abs(mean - 0.256) < 0.001 and ordered[0] == 3 and ordered[2] == 1 and unique == 5
EOF
