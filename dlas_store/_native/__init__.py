"""Optional extensions in C. One module imports each extension, and does the same work in Python without it."""
