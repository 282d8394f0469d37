"""The operators: ``NAME.py`` defines, checks and registers one, ``NAME_triton.py`` holds its kernels."""
