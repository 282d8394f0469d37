#!/usr/bin/env bash
# Question:  does torch.export inside a `with torch.autocast(...)` block give a program that computes in bfloat16?
# Expected:  yes, or float32 throughout: what the graph says is what runs.
# Version:   torch 2.13.0
# Behaviour: the graph's metadata says bfloat16, the program runs in float32. autocast inside the forward is kept.
# Seen:      around export: graph torch.bfloat16, result torch.float32; inside forward: result torch.bfloat16
. "$(dirname "$0")/environment.sh"
environment torch==2.13.0 numpy==2.4.6
python - <<'EOF'
import torch


class Inside(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return self.linear(x)


x = torch.ones(1, 4)
with torch.autocast("cpu", torch.bfloat16):
    program = torch.export.export(torch.nn.Linear(4, 4), (x,))
said = next(node.meta["val"].dtype for node in program.graph.nodes if node.name == "linear")
ran = program.module()(x).dtype
inside = torch.export.export(Inside(), (x,)).module()(x).dtype
print(f"around export: graph {said}, result {ran}; inside forward: result {inside}")
assert (said, ran, inside) == (torch.bfloat16, torch.float32, torch.bfloat16)
EOF
