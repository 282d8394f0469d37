#!/usr/bin/env bash
# Question:  what does LoRA make of a depthwise convolution (ConvNeXt's 7x7)?
# Expected:  fewer weights than the convolution has, grouped like it, for any rank; merged on request.
# Version:   peft 0.21.2, torch 2.13.0
# Behaviour: the rank must be a multiple of the number of channels, the first factor is a dense convolution, and the
#            adapter cannot be merged: it has as many weights as an ordinary convolution, C times the depthwise one's.
# Seen:      convolution 3136 weights; rank 16 ValueError; rank 64 200768 weights; merge NotImplementedError
. "$(dirname "$0")/environment.sh"
environment torch==2.13.0 numpy==2.4.6 peft==0.21.2
python - <<'EOF'
import torch
from peft import LoraConfig, get_peft_model


def adapted(rank):
    model = torch.nn.Sequential(torch.nn.Conv2d(64, 64, 7, padding=3, groups=64, bias=False))
    get_peft_model(model, LoraConfig(target_modules=["0"], r=rank))
    return model[0]


try:
    adapted(16)
    raise SystemExit("rank 16 is taken now")
except ValueError as error:
    assert "divisible by groups" in str(error), error
layer = adapted(64)
size = sum(p.numel() for name, p in layer.named_parameters() if "lora" in name)
try:
    layer.merge()
    raise SystemExit("it merges now")
except NotImplementedError:
    pass
base = layer.base_layer.weight.numel()
print(f"convolution {base} weights; rank 16 ValueError; rank 64 {size} weights; merge NotImplementedError")
assert (base, size) == (3136, 64 * 64 * 49 + 64)
EOF
