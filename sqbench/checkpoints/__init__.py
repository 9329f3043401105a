"""Checkpoints whose weights are quantized already, by us or by others, read as codes with their scales.

Read `folder.py` first. Each layout has a file of its own: `compressed.py`, `gptq.py`, `awq.py`.
"""
