"""Profiles of hypothesis: few cases, always the same, or many for a long run.

HYPOTHESIS_PROFILE=long pytest tests/abuse            (or --hypothesis-profile long)
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, Phase, settings

# Shrinking a failing case takes minutes, so only the long profile does it.
FOUND_AS_IS = (Phase.explicit, Phase.generate)
common = {"deadline": None, "suppress_health_check": list(HealthCheck), "print_blob": True}
settings.register_profile("quick", max_examples=16, derandomize=True, phases=FOUND_AS_IS, database=None, **common)
settings.register_profile("long", max_examples=250, derandomize=False, **common)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))
