"""From a float model to a quantized one: the block engine, mixed precision, and the report on layers."""
