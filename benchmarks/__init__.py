"""Benchmarks, run from a checkout as ``python -m benchmarks``. Each subject has one file."""
