"""Quantized layers, and the searches for clipping ranges. It needs only torch."""
