"""The contract Source, and the kinds of data that patches are read from."""
