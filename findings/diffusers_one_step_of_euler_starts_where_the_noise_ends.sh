#!/usr/bin/env bash
# Question:  with set_timesteps(1), at which noise level does a scheduler call the model?
# Expected:  at the highest one: one step from pure noise.
# Version:   diffusers 0.42.1, torch 2.13.0
# Behaviour: Euler, ancestral Euler, Heun, LMS and KDPM2 space timesteps as linspace(0, 999, steps), whose only value
#            for one step is 0: the model is called at the lowest noise level, and init_noise_sigma is that level's too,
#            so that a sample of pure noise is scaled to almost nothing. Two steps start at 999, as DPM-Solver's one does.
# Seen:      one step at timestep 0 and sigma below 0.1 for five schedulers, 999 for DPMSolverMultistepScheduler
. "$(dirname "$0")/environment.sh"
environment torch==2.13.0 numpy==2.4.6 diffusers==0.42.1 scipy==1.17.1
python - <<'EOF'
import diffusers

at_the_end = [
    "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler", "LMSDiscreteScheduler",
    "KDPM2DiscreteScheduler",
]
for name in [*at_the_end, "DPMSolverMultistepScheduler"]:
    scheduler = getattr(diffusers, name)()
    scheduler.set_timesteps(1)
    first, sigma = float(scheduler.timesteps[0]), float(scheduler.sigmas[0])
    print(f"{name}: one step at timestep {first:.0f}, sigma {sigma:.3f}, noise scaled by {scheduler.init_noise_sigma:.3f}")
    assert (first == 0 and sigma < 0.1) if name in at_the_end else (first == 999 and sigma > 100)
    scheduler.set_timesteps(2)
    assert float(scheduler.timesteps[0]) == 999
EOF
