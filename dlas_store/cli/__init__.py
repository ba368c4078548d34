"""The command ``dlas-store``: arguments, printed text, and pictures."""
