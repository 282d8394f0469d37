#!/usr/bin/env bash
# Question:  how much noise does add_noise add at timestep 0 and 999, in a scheduler as it was made, as in training?
# Expected:  almost none and almost nothing else, in every scheduler.
# Version:   diffusers 0.42.1, torch 2.13.0
# Behaviour: DPM-Solver (multistep and singlestep), UniPC and DEIS do the reverse until set_timesteps is called: their
#            noise levels rise then, their timesteps fall. Timestep 0 is pure noise, 999 is the data. Nothing warns.
#            DDPM, DDIM and SASolver are right.
# Seen:      factor of the data at 0 and 999: 0.006 and 1.000 for those four, after set_timesteps(1000) 1.000 and 0.006
. "$(dirname "$0")/environment.sh"
environment torch==2.13.0 numpy==2.4.6 diffusers==0.42.1 scipy==1.17.1
python - <<'EOF'
import diffusers
import torch

reversed_ = [
    "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler",
]
data, none, ends = torch.ones(2), torch.zeros(2), torch.tensor([0, 999])
for name in [*reversed_, "SASolverScheduler", "DDPMScheduler", "DDIMScheduler"]:
    scheduler = getattr(diffusers, name)()
    made = scheduler.add_noise(data, none, ends)
    scheduler.set_timesteps(1000)
    later = scheduler.add_noise(data, none, ends)
    print(f"{name}: factor of the data {made.tolist()}, after set_timesteps {later.tolist()}")
    assert later[0] > 0.999 and later[1] < 0.01
    torch.testing.assert_close(made, later.flip(0) if name in reversed_ else later, rtol=1e-3, atol=1e-4)
EOF
