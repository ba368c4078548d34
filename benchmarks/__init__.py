"""Measurements, run from a checkout: ``python -m benchmarks``. One file a subject."""
