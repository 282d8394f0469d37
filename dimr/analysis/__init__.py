"""The paper's analyses: how norms move with the time (Figures 3 and 6), which samples are distorted (Figure 5)."""
