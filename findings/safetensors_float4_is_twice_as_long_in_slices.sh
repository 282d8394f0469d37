#!/usr/bin/env bash
# Question:  does safe_open(...).get_slice agree with get_tensor on the shape of packed 4-bit floats?
# Expected:  yes; one element of torch's float4_e2m1fn_x2 is a pair of numbers, in both.
# Version:   safetensors 0.8.0, torch 2.13.0
# Behaviour: get_tensor has torch's 8 pairs; get_slice says 16, and no part of it can be read.
# Seen:      tensor [8], slice [16], slice[2:4] RuntimeError
. "$(dirname "$0")/environment.sh"
environment torch==2.13.0 numpy==2.4.6 safetensors==0.8.0
python - <<'EOF'
import torch
from safetensors import safe_open
from safetensors.torch import save_file

save_file({"x": torch.arange(8, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)}, "x.safetensors")
with safe_open("x.safetensors", "pt") as file:
    whole, part = list(file.get_tensor("x").shape), list(file.get_slice("x").get_shape())
    try:
        file.get_slice("x")[2:4]
        raise SystemExit("a part can be read now")
    except RuntimeError as error:
        assert "invalid for input of size 8" in str(error), error
print(f"tensor {whole}, slice {part}, slice[2:4] RuntimeError")
assert (whole, part) == ([8], [16])
EOF
