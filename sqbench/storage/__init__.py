"""Files: written whole or not at all, checked when read, and claimed by one process at a time."""
