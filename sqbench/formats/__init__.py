"""Number formats: which numbers a tensor may hold, and the codec between numbers and codes."""
