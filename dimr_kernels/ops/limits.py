"""What the kernels cannot do, told without importing Triton."""

WIDEST_IN_REGISTERS = 8192
"""Rows up to this width are held whole by one program of the norms' kernels."""
