"""The paper's analyses: time dependence of the norms (Figures 3 and 6) and distorted samples (Figure 5)."""
