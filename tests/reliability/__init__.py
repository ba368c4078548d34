"""Promises that a store survives what may happen to it; RELIABILITY.md lists them."""
