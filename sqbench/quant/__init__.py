"""The shared quantizer: formats, the affine map, range estimation, quantized modules. It needs only torch."""
