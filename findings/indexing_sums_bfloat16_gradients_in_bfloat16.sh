#!/usr/bin/env bash
# Question:  do weight[rows], F.embedding, index_select and gather give a bfloat16 weight the same gradient?
# Expected:  yes; and index_add the same sum as scatter_add.
# Version:   torch 2.13.0, on a CPU
# Behaviour: indexing, embedding and index_add add row after row in bfloat16 and stop at 256; index_select, gather and
#            scatter_add give the exact sum.
# Seen:      one row taken 4,096 times: 256 by indexing and embedding, 4,096 by index_select and gather
. "$(dirname "$0")/environment.sh"
environment torch==2.13.0 numpy==2.4.6
python - <<'EOF'
import torch
from torch.nn import functional as F

rows = torch.zeros(4096, dtype=torch.int64)
ways = {
    "weight[rows]": (lambda weight: weight[rows], 256),
    "embedding": (lambda weight: F.embedding(rows, weight), 256),
    "index_select": (lambda weight: weight.index_select(0, rows), 4096),
    "gather": (lambda weight: weight.gather(0, rows[:, None].expand(-1, 8)), 4096),
}
for name, (take, expected) in ways.items():
    weight = torch.zeros(4, 8, dtype=torch.bfloat16, requires_grad=True)
    take(weight).sum().backward()
    print(f"gradient by {name}: {weight.grad[0, 0].item()}")
    assert (weight.grad[0] == expected).all()
zero, ones = torch.zeros(1, dtype=torch.bfloat16), torch.ones(4096, dtype=torch.bfloat16)
added, scattered = zero.index_add(0, rows, ones).item(), zero.scatter_add(0, rows, ones).item()
print(f"index_add {added}, scatter_add {scattered}")
assert (added, scattered) == (256, 4096)
EOF
