#!/usr/bin/env bash
# Question:  what does torch's distributed checkpoint write to a .safetensors file of a state dict with a number in it?
# Expected:  an error, or the tensors, with the number in the metadata.
# Version:   torch 2.13.0, safetensors 0.8.0
# Behaviour: saving succeeds, but the number's pickle is written in front of the safetensors data, in the same file, so
#            that neither safetensors nor the checkpoint's own reader can read it. The state dict of an optimizer has
#            such numbers.
# Seen:      the file starts with PK, as torch.save's do; "Error while deserializing header: header too large"
. "$(dirname "$0")/environment.sh"
environment torch==2.13.0 numpy==2.4.6 safetensors==0.8.0
python -W ignore - <<'EOF'
import logging

import safetensors.torch
import torch
from torch.distributed import checkpoint

logging.disable()
for name, state in {"tensors": {"a": torch.ones(2)}, "number": {"a": torch.ones(2), "step": 3}}.items():
    checkpoint.save(state, storage_writer=checkpoint.HuggingFaceStorageWriter(path=name))
assert safetensors.torch.load_file("tensors/model-00001-of-00001.safetensors")["a"].tolist() == [1, 1]
with open("number/model-00001-of-00001.safetensors", "rb") as file:
    written = file.read()
print(written[:4], "safetensors' header is at byte", written.index(b'{"__metadata__"') - 8)
assert written[:4] == b"PK\x03\x04"
try:
    safetensors.torch.load_file("number/model-00001-of-00001.safetensors")
except safetensors.SafetensorError as error:
    print(error)
else:
    raise SystemExit("it can be read")
try:
    checkpoint.load(state, storage_reader=checkpoint.HuggingFaceStorageReader(path="number"))
except checkpoint.CheckpointException:
    print("its own reader fails as well")
else:
    raise SystemExit("its own reader reads it")
EOF
