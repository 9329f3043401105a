"""Token embeddings whose weight is stored in a format, and output matrices that are tied to them."""

from typing import Any

from torch import Tensor, nn

from sqbench.formats.codec import EncodedTensor, decode
from sqbench.quant.access import with_parameter
from sqbench.quant.layers import Encoded, QuantLayer, StandIn


class EncodedTable(StandIn, Encoded):
    """A token embedding with the values of an encoded weight. It simulates: it computes in float.

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


class TiedLayer(QuantLayer):
    """An output matrix that is the token embedding. It shares codes and the dequantized parameter. The table counts the bytes."""

    def __init__(self, layer: nn.Module, table: EncodedTable) -> None:
        """`layer` is the float layer whose weight is that of the table."""
        super().__init__(layer, table.encoded, None)
        self.layer = with_parameter(layer, table.weight)

    def stored_bytes(self) -> int:
        """None: see `EncodedTable`."""
        return 0
