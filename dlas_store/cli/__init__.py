"""The command ``dlas-store``."""
