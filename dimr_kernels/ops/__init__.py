"""One folder per operator: ``eager.py`` defines it, ``triton.py`` or ``cuda.py`` fuses it, ``op.py`` registers it."""
