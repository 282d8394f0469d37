#!/usr/bin/env bash
# Question:  what is the least number of steps that set_timesteps of diffusers' schedulers takes?
# Expected:  1, or an error that says so.
# Version:   diffusers 0.42.1, torch 2.13.0
# Behaviour: UnCLIPScheduler divides by zero at 1; PNDMScheduler, whose Runge-Kutta start wants 4 steps, fails below
#            that with numpy's message about shapes. From 2 and 4 on both run.
# Seen:      UnCLIPScheduler 1: ZeroDivisionError; PNDMScheduler 1, 2, 3: ValueError
. "$(dirname "$0")/environment.sh"
environment torch==2.13.0 numpy==2.4.6 diffusers==0.42.1 scipy==1.17.1
python - <<'EOF'
import diffusers


def error_of(name, steps):
    try:
        getattr(diffusers, name)().set_timesteps(steps)
    except Exception as error:
        return type(error).__name__, str(error)
    return None


print("UnCLIPScheduler 1:", error_of("UnCLIPScheduler", 1))
assert error_of("UnCLIPScheduler", 1)[0] == "ZeroDivisionError" and error_of("UnCLIPScheduler", 2) is None
for steps in (1, 2, 3):
    print(f"PNDMScheduler {steps}:", error_of("PNDMScheduler", steps))
    kind, message = error_of("PNDMScheduler", steps)
    assert kind == "ValueError" and "broadcast" in message
assert error_of("PNDMScheduler", 4) is None
EOF
