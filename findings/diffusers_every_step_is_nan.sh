#!/usr/bin/env bash
# Question:  do diffusers' multistep solvers take as many steps as a model was trained for?
# Expected:  yes, 1,000, as DDPM and DDIM do.
# Version:   diffusers 0.42.1, torch 2.13.0
# Behaviour: with the default spacing of timesteps, DPM-Solver, UniPC, DEIS and SASolver spread 1,001 numbers over
#            0 to 999, so that one timestep comes twice. The step between the two divides by zero, and the sample is NaN
#            from there on. 999 steps are all right.
# Seen:      1,000 steps: 999 different timesteps and NaN for those four; 999 steps finite; DDPM and DDIM finite
. "$(dirname "$0")/environment.sh"
environment torch==2.13.0 numpy==2.4.6 diffusers==0.42.1 scipy==1.17.1
python - <<'EOF'
import diffusers
import torch


def run(name, steps):
    scheduler = getattr(diffusers, name)()
    scheduler.set_timesteps(steps)
    x = torch.ones(1, 4)
    for timestep in scheduler.timesteps:
        x = scheduler.step(0.5 * x, timestep, x).prev_sample
    return len(set(scheduler.timesteps.tolist())), bool(x.isfinite().all())


solvers = ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler", "SASolverScheduler"]
for name in [*solvers, "DDIMScheduler", "DDPMScheduler"]:
    all_steps, one_less = run(name, 1000), run(name, 999)
    print(f"{name}: different timesteps and whether finite, of 1000 steps {all_steps}, of 999 {one_less}")
    assert all_steps == ((999, False) if name in solvers else (1000, True)) and one_less[1]
EOF
