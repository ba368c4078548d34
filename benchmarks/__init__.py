"""Benchmarks, run in a checkout by ``python -m benchmarks SUBJECT``; each subject has a file of its own."""
