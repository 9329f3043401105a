"""The shared quantizer: formats, the affine map, range estimation, quantized modules. Needs torch and nothing else."""
