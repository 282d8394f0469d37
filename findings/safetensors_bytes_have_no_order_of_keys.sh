#!/usr/bin/env bash
# Question:  in which order does safetensors.torch.load (from bytes) return tensors?
# Expected:  that of the file, which is sorted by size of dtype and name, or that of the dict saved.
# Version:   safetensors 0.8.0, torch 2.13.0
# Behaviour: an order that changes from call to call in one process; load_file of the same bytes is in order. Code
#            that zips the values with a list (an optimizer's parameters, say) gets other pairs in every run.
# Seen:      20 calls of load: more than one order; load_file: a b c d e f g h, always
. "$(dirname "$0")/environment.sh"
environment torch==2.13.0 numpy==2.4.6 safetensors==0.8.0
python - <<'EOF'
import pathlib

import torch
from safetensors.torch import load, load_file, save

names = "abcdefgh"
data = save({name: torch.zeros(1) for name in names})
pathlib.Path("x.safetensors").write_bytes(data)
from_bytes = {"".join(load(data)) for _ in range(20)}
from_file = {"".join(load_file("x.safetensors")) for _ in range(20)}
print(f"{len(from_bytes)} orders from bytes, e.g. {sorted(from_bytes)[0]}; from a file {from_file}")
assert len(from_bytes) > 1
assert from_file == {names}
EOF
