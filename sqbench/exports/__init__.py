"""Quantized models as folders that other programs load.

Read `targets.py` first: it writes a folder in one of several formats. Each format has a file that names its `Target`.
"""
