"""A recipe says how a model is quantized: transforms, ranges, rounding, corrections. Each part is a small class in its own room."""
