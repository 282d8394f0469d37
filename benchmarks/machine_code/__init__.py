"""Static analysis of kernels' machine code, compiled without a GPU."""
