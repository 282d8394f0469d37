#!/usr/bin/env bash
# Question:  does a step of DDIM end at the noise of the next timestep, also if the number of steps does not divide 1,000?
# Expected:  yes, as a step of DDPM and of DPM-Solver does.
# Version:   diffusers 0.42.1, torch 2.13.0
# Behaviour: each step goes 1000 // steps timesteps down, while the timesteps of "trailing" (and "linspace") spacing lie
#            1000 / steps apart. So the model is told of less noise than its input has: of 501 steps, each covers one
#            timestep of two, and the last inputs hold five times the noise of their timestep.
# Seen:      with the exact prediction for data that are all 0, the noise in the last input is, of what its timestep says,
#            1.00 with 50 and 500 steps, 1.08 with 60 and 5.22 with 501; of DPM-Solver always 1.00
. "$(dirname "$0")/environment.sh"
environment torch==2.13.0 numpy==2.4.6 diffusers==0.42.1 scipy==1.17.1
python - <<'EOF'
import diffusers
import torch


def last_noise(name, steps):
    """Run on data that are 0, of which the input is the noise: its size in the last step, by that of the timestep."""
    scheduler = getattr(diffusers, name)(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="trailing"
    )
    scheduler.register_to_config(clip_sample=False)
    scheduler.set_timesteps(steps)
    first = (1 - scheduler.alphas_cumprod[999]).sqrt()
    x = torch.full((1, 1), first.item(), dtype=torch.float64)
    for timestep in scheduler.timesteps:
        noise = x / (1 - scheduler.alphas_cumprod[timestep]).sqrt()
        x = scheduler.step(noise, timestep, x).prev_sample
    return noise.item()


for steps, seen in ((50, 1.0), (60, 1.08), (500, 1.0), (501, 5.22)):
    found, other = last_noise("DDIMScheduler", steps), last_noise("DPMSolverMultistepScheduler", steps)
    print(f"{steps} steps: DDIM {found:.2f}, DPM-Solver {other:.2f}")
    assert abs(found - seen) < 0.01 and abs(other - 1) < 0.01
EOF
