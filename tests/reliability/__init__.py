"""Tests that a store survives crashes, faults, damage and hostile files; RELIABILITY.md lists the promises."""
