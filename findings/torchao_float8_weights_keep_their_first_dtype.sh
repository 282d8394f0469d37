#!/usr/bin/env bash
# Question:  does model.to(torch.bfloat16) work after torchao's quantize_ to 8-bit weights?
# Expected:  yes: the quantised weights are left, what they are multiplied with changes.
# Version:   torchao 0.18.0, torch 2.13.0
# Behaviour: it does for int8 weights; float8 weights go on to give what they were quantised from, and the first layer
#            refuses its input.
# Seen:      Int8WeightOnlyConfig torch.bfloat16; Float8WeightOnlyConfig RuntimeError
. "$(dirname "$0")/environment.sh"
environment torch==2.13.0 numpy==2.4.6 torchao==0.18.0
python -W ignore - <<'EOF' 2>/dev/null
import torch
from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, quantize_

found = {}
for config in (Int8WeightOnlyConfig, Float8WeightOnlyConfig):
    model = torch.nn.Sequential(torch.nn.Linear(64, 64))
    quantize_(model, config())
    assert model(torch.randn(2, 64)).dtype == torch.float32
    model.to(torch.bfloat16)
    try:
        found[config.__name__] = str(model(torch.randn(2, 64).bfloat16()).dtype)
    except RuntimeError as error:
        assert "same dtype" in str(error)
        found[config.__name__] = "RuntimeError"
print("; ".join(f"{name} {value}" for name, value in found.items()))
assert found == {"Int8WeightOnlyConfig": "torch.bfloat16", "Float8WeightOnlyConfig": "RuntimeError"}
EOF
