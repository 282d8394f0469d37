#!/usr/bin/env bash
# Question:  what is infinity, or 500, in torch.float8_e4m3fn, whose largest number is 448?
# Expected:  NaN, as ml_dtypes and torch 2.10.0 say, for the type has no infinity.
# Version:   torch 2.13.0 (and 2.14.1), on a CPU; ml_dtypes 0.6.0
# Behaviour: everything above is 448, infinity too, so a division by zero before the conversion leaves no trace after it.
#            float8_e5m2, which has an infinity, gives it for what is too large.
# Seen:      500, 1e9 and infinity: 448 in torch, NaN in ml_dtypes; NaN stays NaN
. "$(dirname "$0")/environment.sh"
environment torch==2.13.0 numpy==2.4.6 ml_dtypes==0.6.0
python - <<'EOF'
import ml_dtypes
import numpy as np
import torch

for value in (500.0, 1e9, float("inf")):
    for length in (1, 64):
        ours = torch.full((length,), value).to(torch.float8_e4m3fn).float()[0].item()
        theirs = float(np.full(length, value, np.float32).astype(ml_dtypes.float8_e4m3fn)[0])
        print(f"{value}: torch {ours}, ml_dtypes {theirs}")
        assert ours == 448 and theirs != theirs
assert torch.tensor(float("nan")).to(torch.float8_e4m3fn).isnan()
assert torch.tensor(1e9).to(torch.float8_e5m2).isinf()
EOF
