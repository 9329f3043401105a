"""Tests of common statements: the measurements, whether they meet the statement, and the verdict."""
