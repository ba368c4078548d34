"""Reliability: stores survive crashes, faults, damage and hostile files. RELIABILITY.md lists the promises."""
