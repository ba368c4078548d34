"""Order, shuffle and random numbers as functions of seed, epoch and position."""
