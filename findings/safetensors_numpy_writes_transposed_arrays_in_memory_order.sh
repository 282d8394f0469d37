#!/usr/bin/env bash
# Question:  does safetensors.numpy.save keep the values of a transposed or Fortran-ordered array?
# Expected:  yes, or an error, as safetensors.torch raises for the same tensor.
# Version:   safetensors 0.8.0, numpy 2.4.6
# Behaviour: the bytes are written as they lie in memory under the array's shape: the elements come back in other
#            places, without an error.
# Seen:      [[0, 3], [1, 4], [2, 5]] read back as [[0, 1], [2, 3], [4, 5]]
. "$(dirname "$0")/environment.sh"
environment numpy==2.4.6 safetensors==0.8.0
python - <<'EOF'
import numpy as np
from safetensors.numpy import load, save

transposed = np.arange(6).reshape(2, 3).T
found = load(save({"x": transposed}))["x"]
print(f"{transposed.tolist()} read back as {found.tolist()}")
assert found.shape == transposed.shape and found.tolist() == [[0, 1], [2, 3], [4, 5]]
fortran = load(save({"x": np.asfortranarray(np.arange(6).reshape(2, 3))}))["x"]
assert fortran.tolist() == [[0, 3, 1], [4, 2, 5]]
assert (load(save({"x": np.ascontiguousarray(transposed)}))["x"] == transposed).all()  # the way round it
EOF
