#!/usr/bin/env bash
# Question:  is a model in eval mode still in eval mode after get_peft_model?
# Expected:  yes, all of it.
# Version:   peft 0.21.2, torch 2.13.0
# Behaviour: the base model's own layers stay in eval mode, the new adapters are in training mode: their dropout
#            is on, and two calls of a model "in eval" differ, until .eval() is called again.
# Seen:      base training False, adapter's dropout training True
. "$(dirname "$0")/environment.sh"
environment torch==2.13.0 numpy==2.4.6 peft==0.21.2
python - <<'EOF'
import torch
from peft import LoraConfig, get_peft_model

base = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Dropout(0.5)).eval()
model = get_peft_model(base, LoraConfig(target_modules=["0"], lora_dropout=0.5, init_lora_weights=False))
dropout = base[0].lora_dropout["default"]
print(f"base training {base.training}, its dropout {base[1].training}, adapter's dropout training {dropout.training}")
assert not base.training and not base[1].training and dropout.training
x = torch.randn(64, 8)
assert not torch.equal(base(x), base(x))
model.eval()
assert torch.equal(base(x), base(x))
EOF
