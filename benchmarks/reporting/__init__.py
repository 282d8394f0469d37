"""From measurements to the files under ``benchmarks/results``: see ``benchmarks.report``."""
