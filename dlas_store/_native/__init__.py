"""Extensions in C; each is optional, and the one module that imports it does the same in Python without it, slower."""
