#!/usr/bin/env bash
# Question:  do diffusers' multistep solvers run with use_beta_sigmas at 50 steps?
# Expected:  yes, as they do at 20.
# Version:   diffusers 0.42.1, torch 2.13.0
# Behaviour: the noise levels lie so close at the noisy end that the first two round to one timestep. step() takes the
#            second of equal timesteps for the first one, so the run begins at the second level and there is none for
#            the last step: an IndexError, from UniPC an AssertionError. After set_begin_index(0) all of them run; Stable
#            Diffusion's image-to-image pipeline calls that, its text-to-image one does not.
# Seen:      timesteps 998, 998, ...: an error in the last of 50 steps, none after set_begin_index(0)
. "$(dirname "$0")/environment.sh"
environment torch==2.13.0 numpy==2.4.6 diffusers==0.42.1 scipy==1.17.1
python - <<'EOF'
import diffusers
import torch


def run(name, steps, begin):
    scheduler = getattr(diffusers, name)(
        use_beta_sigmas=True, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
    )
    scheduler.set_timesteps(steps)
    if begin:
        scheduler.set_begin_index(0)
    x, done = torch.ones(1, 4), 0
    try:
        for timestep in scheduler.timesteps:
            x = scheduler.step(0.5 * x, timestep, x).prev_sample
            done += 1
    except (IndexError, AssertionError) as error:
        return scheduler.timesteps[:2].tolist(), done, type(error).__name__
    assert x.isfinite().all()
    return scheduler.timesteps[:2].tolist(), done, None


for name in ("DPMSolverMultistepScheduler", "DEISMultistepScheduler", "UniPCMultistepScheduler"):
    few, many, begun = run(name, 20, False), run(name, 50, False), run(name, 50, True)
    print(f"{name}: {few}, {many}, with set_begin_index {begun}")
    assert few[2] is None and begun == ([998, 998], 50, None)
    assert many == ([998, 998], 49, "AssertionError" if name.startswith("UniPC") else "IndexError")
EOF
