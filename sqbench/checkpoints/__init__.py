"""Checkpoints whose weights are quantized already, by us or by others, read as codes with their scales.

Read `folder.py` first. `compressed.py` has the layout of compressed-tensors, `integers.py` those of GPTQ,
AWQ and AutoRound, and `torchao.py` that of torchao. `gguf.py` reads GGUF files.
"""
