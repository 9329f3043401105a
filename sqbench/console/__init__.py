"""The command line: its words, what it prints, and what it refuses."""
