"""Data sets: text so far, local or downloaded."""

from sqbench.data.text import SOURCES, Text, Windows, cut, fetch

__all__ = ["SOURCES", "Text", "Windows", "cut", "fetch"]
