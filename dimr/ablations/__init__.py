"""The paper's ablations (Tables 2 and 3): what its models are compared with."""
