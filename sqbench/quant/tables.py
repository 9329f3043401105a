"""Token embeddings and output matrices whose weight is stored in a format."""

from typing import Any

from torch import Tensor, nn

from sqbench.formats.codec import EncodedTensor, decode
from sqbench.quant.access import with_parameter
from sqbench.quant.layers import Encoded, StandIn


class EncodedTable(StandIn, Encoded):
    """A token embedding, or an output matrix tied to it, with the values of an encoded weight. It simulates: it computes in float.

    A tied matrix is one parameter of two modules. The table counts its bytes, and the other module shares the parameter.

    Attributes:
        layer: the float module with the dequantized weight.
    """

    def __init__(self, layer: nn.Module, encoded: EncodedTensor) -> None:
        """`encoded` is the weight [tokens, width]."""
        super().__init__()
        floats = layer.weight
        assert isinstance(floats, Tensor)
        self.hold(encoded)
        self.layer = with_parameter(layer, decode(encoded).to(floats.dtype))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.layer(*args, **kwargs)

    def stored_bytes(self) -> int:
        """Bytes of the weight in its format."""
        encoded = self.encoded
        rows, width = encoded.shape
        return encoded.format.stored_bytes(rows, width)

    def extra_repr(self) -> str:
        return f"weight {self.format}"
