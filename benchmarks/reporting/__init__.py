"""Reports of measurements, written to ``benchmarks/results``: see ``benchmarks.report``."""
