"""Checkpoints whose weights are quantized already, by us or by others, read as codes with their scales.

Read `folder.py` first. `compressed.py` has the layout of compressed-tensors, and `integers.py` those of GPTQ and AWQ.
`gguf.py` reads GGUF files.
"""
