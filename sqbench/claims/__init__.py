"""Statements that people repeat, tested: what was measured, whether it is what the statement needs, and the verdict."""
