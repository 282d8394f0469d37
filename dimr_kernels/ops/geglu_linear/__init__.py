"""A linear layer with GeGLU: ``geglu(x @ weight.T + bias)``, in one kernel or in two."""
