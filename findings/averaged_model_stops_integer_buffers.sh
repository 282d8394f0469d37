#!/usr/bin/env bash
# Question:  what does AveragedModel(use_buffers=True) with an exponential average do to BatchNorm's num_batches_tracked?
# Expected:  copy it, as it is an integer.
# Version:   torch 2.13.0
# Behaviour: it is averaged as well and rounded down: after the first copy, 1, no step of less than 1 changes it.
# Seen:      20 batches: model 20, average 1
. "$(dirname "$0")/environment.sh"
environment torch==2.13.0 numpy==2.4.6
python - <<'EOF'
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

norm = torch.nn.BatchNorm1d(3)
average = AveragedModel(norm, multi_avg_fn=get_ema_multi_avg_fn(0.99), use_buffers=True)
for _ in range(20):
    norm(torch.randn(8, 3))
    average.update_parameters(norm)
counts = int(norm.num_batches_tracked), int(average.module.num_batches_tracked), int(average.n_averaged)
print(f"{counts[2]} batches: model {counts[0]}, average {counts[1]}")
assert counts == (20, 1, 20)
assert not torch.equal(average.module.running_mean, norm.running_mean)  # floating buffers are averaged
EOF
