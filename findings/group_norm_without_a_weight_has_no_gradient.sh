#!/usr/bin/env bash
# Question:  can a group norm without a weight be differentiated with respect to its bias?
# Expected:  yes, like layer norm.
# Version:   torch 2.13.0, on a CPU; 2.10.0 does the same, 2.14.1 gives the gradient
# Behaviour: F.group_norm takes a bias without a weight and computes with it, but its backward pass raises an error
#            about a tensor without a device. A weight without a bias, and neither of them, are differentiated.
# Seen:      RuntimeError: tensor does not have a device
. "$(dirname "$0")/environment.sh"
environment torch==2.13.0 numpy==2.4.6
python - <<'EOF'
import torch
from torch.nn import functional as F

x, bias = torch.randn(2, 8, 3, requires_grad=True), torch.randn(8, requires_grad=True)
y = F.group_norm(x, 2, None, bias)
torch.testing.assert_close(y, F.group_norm(x, 2) + bias[:, None])
try:
    y.sum().backward()
except RuntimeError as error:
    print(error)
else:
    raise SystemExit("it has a gradient")
F.group_norm(x, 2, bias, None).sum().backward()
F.group_norm(x, 2).sum().backward()
F.layer_norm(x.transpose(1, 2), (8,), None, bias).sum().backward()
EOF
