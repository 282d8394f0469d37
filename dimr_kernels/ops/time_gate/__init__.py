"""Shared helper of the operators that mix two parameters by a gate of the timestep (DiMR eq. (5))."""
