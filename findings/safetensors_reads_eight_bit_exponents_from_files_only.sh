#!/usr/bin/env bash
# Question:  can safetensors.torch read from bytes whatever it can read from a file?
# Expected:  yes, one format.
# Version:   safetensors 0.8.0, torch 2.13.0
# Behaviour: float8_e8m0fnu and float4_e2m1fn_x2 (the scales and values of MX formats) are written by `save`, read by
#            `load_file`, and refused by `load` with a KeyError.
# Seen:      F8_E8M0: load_file True, load KeyError; F4: load_file True, load KeyError
. "$(dirname "$0")/environment.sh"
environment torch==2.13.0 numpy==2.4.6 safetensors==0.8.0
python - <<'EOF'
import torch
from safetensors.torch import load, load_file, save, save_file

for name, dtype in {"F8_E8M0": torch.float8_e8m0fnu, "F4": torch.float4_e2m1fn_x2}.items():
    tensor = torch.arange(8, dtype=torch.uint8).view(dtype)
    save_file({"x": tensor}, "x.safetensors")
    read = load_file("x.safetensors")["x"]
    same = read.dtype == dtype and torch.equal(read.view(torch.uint8), tensor.view(torch.uint8))
    try:
        load(save({"x": tensor}))
        raise SystemExit(f"{name}: load reads it now")
    except KeyError as error:
        assert error.args == (name,), error
    print(f"{name}: load_file {same}, load KeyError")
    assert same
EOF
