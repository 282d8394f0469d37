#!/usr/bin/env bash
# Question:  how many timesteps does set_timesteps(61) make with timestep_spacing="trailing"?
# Expected:  61, from 999 to 0 or more.
# Version:   diffusers 0.42.1, numpy 2.4.6
# Behaviour: 62, the last of them -1, because numpy.arange of a step that is no binary fraction may pass its end by
#            rounding. 62 of the numbers from 1 to 1,000 do so, 61, 103 and 121 first. DDIM takes the noise of timestep
#            -1 from the end of its table, where the most noise is.
# Seen:      61 -> 62 timesteps, the last -1, for DDIM, DDPM, DPM-Solver, Euler, UniPC; 60 and 62 as asked
. "$(dirname "$0")/environment.sh"
environment torch==2.13.0 numpy==2.4.6 diffusers==0.42.1 scipy==1.17.1
python - <<'EOF'
import diffusers

for name in ("DDIM", "DDPM", "DPMSolverMultistep", "EulerDiscrete", "UniPCMultistep"):
    scheduler = getattr(diffusers, f"{name}Scheduler")(timestep_spacing="trailing")
    for steps in (60, 61, 62):
        scheduler.set_timesteps(steps)
        found = len(scheduler.timesteps), int(scheduler.timesteps[-1])
        print(f"{name}: {steps} steps make {found[0]} timesteps, the last is {found[1]}")
        assert found == (62, -1) if steps == 61 else found[0] == steps and found[1] > 0
odd = []
for steps in range(1, 1001):
    scheduler.set_timesteps(steps)
    if scheduler.timesteps[-1] < 0:
        odd.append(steps)
print(len(odd), odd)
assert len(odd) == 62 and odd[:3] == [61, 103, 121]
EOF
