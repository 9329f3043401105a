"""The shared quantizer: formats, the codec, range estimation, quantized modules. It needs only torch."""
