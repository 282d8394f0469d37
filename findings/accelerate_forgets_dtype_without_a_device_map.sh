#!/usr/bin/env bash
# Question:  does accelerate's load_checkpoint_in_model(model, file, dtype=torch.bfloat16) load bfloat16?
# Expected:  yes: the weights are documented to be converted to dtype when they are loaded.
# Version:   accelerate 1.15.0, torch 2.13.0
# Behaviour: only with a device_map; without one dtype does nothing, and nothing says so.
# Seen:      float32 without a device_map, bfloat16 with {"": "cpu"}; the same of load_checkpoint_and_dispatch
. "$(dirname "$0")/environment.sh"
environment torch==2.13.0 numpy==2.4.6 accelerate==1.15.0
python - <<'EOF'
import accelerate
import torch
from safetensors.torch import save_file

save_file(torch.nn.Linear(2, 2).state_dict(), "model.safetensors", metadata={"format": "pt"})
for load in (accelerate.load_checkpoint_in_model, accelerate.load_checkpoint_and_dispatch):
    for device_map, expected in ((None, torch.float32), ({"": "cpu"}, torch.bfloat16)):
        model = torch.nn.Linear(2, 2)
        load(model, "model.safetensors", device_map=device_map, dtype=torch.bfloat16)
        print(f"{load.__name__}, device_map {device_map}: {model.weight.dtype}")
        assert model.weight.dtype == expected
EOF
