#!/usr/bin/env bash
# Question:  do no_grad and detach in a model hold in its exported program?
# Expected:  yes, before and after run_decompositions().
# Version:   torch 2.13.0
# Behaviour: they do in the program as exported. run_decompositions() leaves of both nothing that stops a gradient:
#            a part that the model keeps frozen gets one.
# Seen:      gradient of the part under no_grad: None as exported, a tensor after run_decompositions; so for detach
. "$(dirname "$0")/environment.sh"
environment torch==2.13.0 numpy==2.4.6
python -W ignore - <<'EOF'
import torch
from torch import nn


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.frozen, self.head = nn.Linear(3, 3), nn.Linear(3, 3)


class UnderNoGrad(Base):
    def forward(self, x):
        with torch.no_grad():
            features = self.frozen(x)
        return self.head(features)


class Detached(Base):
    def forward(self, x):
        return self.head(self.frozen(x).detach())


def reaches_frozen(model):
    model(torch.ones(1, 3)).sum().backward()
    assert model.head.weight.grad is not None
    return model.frozen.weight.grad is not None


for kind in (UnderNoGrad, Detached):
    program = torch.export.export(kind(), (torch.ones(1, 3),))
    found = [reaches_frozen(m) for m in (kind(), program.module(), program.run_decompositions().module())]
    print(f"{kind.__name__}: the frozen part gets a gradient in the model, exported, decomposed: {found}")
    assert found == [False, False, True]
EOF
