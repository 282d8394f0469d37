#!/usr/bin/env bash
# Question:  are weights that two layers share one parameter after torch.export.save and load?
# Expected:  one, as before saving; or two of their own.
# Version:   torch 2.13.0
# Behaviour: two parameters on one memory, both in parameters() and counted twice. Both layers compute with the second
#            one, which gets the whole gradient; the first gets none.
# Seen:      3 parameters before, 4 after on one memory; gradient of the first None, of the second that of both layers
. "$(dirname "$0")/environment.sh"
environment torch==2.13.0 numpy==2.4.6
python - <<'EOF'
import torch

model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
model[1].weight = model[0].weight
program = torch.export.export(model, (torch.ones(1, 2),))
before = len(list(program.module().parameters()))
torch.export.save(program, "x.pt2")
loaded = torch.export.load("x.pt2").module()
first, second = loaded.get_parameter("0.weight"), loaded.get_parameter("1.weight")
after = len(list(loaded.parameters()))
assert first is not second and first.data_ptr() == second.data_ptr()
for each in (model, loaded):
    each(torch.ones(1, 2)).sum().backward()
print(f"{before} parameters before, {after} after; gradient of the first {first.grad}")
assert (before, after) == (3, 4) and first.grad is None
torch.testing.assert_close(second.grad, model[0].weight.grad)
EOF
