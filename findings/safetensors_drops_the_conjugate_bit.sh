#!/usr/bin/env bash
# Question:  what does safetensors.torch.save write of a lazily conjugated or negated tensor?
# Expected:  the values that the tensor shows, or an error as for other views.
# Version:   safetensors 0.8.0, torch 2.13.0
# Behaviour: it writes the memory below the view: the conjugate comes back unconjugated, the negative unnegated,
#            without an error. torch.save keeps both.
# Seen:      conjugate (1-2j) read back as (1+2j); negative -1.0 read back as 1.0
. "$(dirname "$0")/environment.sh"
environment torch==2.13.0 numpy==2.4.6 safetensors==0.8.0
python - <<'EOF'
import io

import torch
from safetensors.torch import load, save

conjugate = torch.tensor([1 + 2j]).conj()
negative = torch._neg_view(torch.ones(1))
found = load(save({"conjugate": conjugate, "negative": negative}))
print(f"conjugate {conjugate.item()} read back as {found['conjugate'].item()};", end=" ")
print(f"negative {negative.item()} read back as {found['negative'].item()}")
assert conjugate.item() == 1 - 2j and found["conjugate"].item() == 1 + 2j
assert negative.item() == -1 and found["negative"].item() == 1

buffer = io.BytesIO()
torch.save(conjugate, buffer)
buffer.seek(0)
assert torch.load(buffer).item() == 1 - 2j
EOF
