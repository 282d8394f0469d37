"""Time-dependent group norm: the statistics of a group norm, the scale and shift of TD-LN."""
