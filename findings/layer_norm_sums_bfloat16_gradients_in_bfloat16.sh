#!/usr/bin/env bash
# Question:  are the gradients of a bfloat16 layer norm's weight and bias on a CPU as exact as those of other norms?
# Expected:  yes: sums over all rows in float32, rounded once.
# Version:   torch 2.13.0; 2.10.0 and 2.14.1 do the same
# Behaviour: each thread sums the rows in bfloat16, where 256 + 1 is 256. So the gradient of a bias over 8,192 rows of
#            ones is 256 for one thread and 512 for two; float16 stops at 2,048 a thread. Group norm, RMS norm and plain
#            addition give 8,192.
# Seen:      one thread: layer norm 256, group norm, RMS norm and addition 8,192; two threads: layer norm 512
. "$(dirname "$0")/environment.sh"
environment torch==2.13.0 numpy==2.4.6
python - <<'EOF'
import torch
from torch.nn import functional as F


def gradient(norm, dtype=torch.bfloat16):
    parameter = torch.zeros(8, dtype=dtype, requires_grad=True)
    norm(torch.ones(8192, 8, dtype=dtype), parameter).sum().backward()
    return parameter.grad[0].item()


def layer_norm(x, bias):
    return F.layer_norm(x, (8,), None, bias)


others = {
    "group norm": lambda x, bias: F.group_norm(x[..., None], 2, torch.ones_like(bias), bias),
    "RMS norm": lambda x, weight: F.rms_norm(x, (8,), weight),
    "addition": lambda x, bias: x + bias,
}
for threads, expected in ((1, 256), (2, 512)):
    torch.set_num_threads(threads)
    found = gradient(layer_norm)
    right = {name: gradient(norm) for name, norm in others.items()}
    print(f"threads {threads}: layer norm {found}, {right}")
    assert found == expected and set(right.values()) == {8192}
    assert gradient(layer_norm, torch.float16) == 2048 * threads and gradient(layer_norm, torch.float32) == 8192
EOF
