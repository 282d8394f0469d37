"""The DiMR network: configuration, layers, branches, named variants and their counts."""
