"""Optional extensions in C. One module imports each extension; if it is missing, that module does the same in Python."""
