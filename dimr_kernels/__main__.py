"""``python -m dimr_kernels``: what is installed, what was built, and which implementation each operator takes."""

from .environment import report

print(report())
