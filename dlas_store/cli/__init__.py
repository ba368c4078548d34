"""The command ``dlas-store``: its arguments, and the text and pictures that it shows."""
