"""Time-dependent layer norm and RMS norm: scale and shift are mixed from two sets by a gate of the timestep."""
