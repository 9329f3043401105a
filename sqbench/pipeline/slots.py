"""The token embedding and the output matrix of a language model, in the formats of `bits.embedding` and `bits.head`.

In small models they hold most of the weights. They are rounded to nearest with min-max ranges, whatever the method does elsewhere.
Calibration and searches see them in float.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from sqbench.errors import UserError
from sqbench.formats.codec import EncodedTensor, encode
from sqbench.formats.format import Format
from sqbench.formats.scheme import Scheme
from sqbench.models.base import Model
from sqbench.models.folding import share
from sqbench.pipeline.finite import check_scales, check_weight
from sqbench.quant.layers import QuantLayer, sqnr_db
from sqbench.quant.tables import EncodedTable, TiedLayer

Slot = tuple[str, str, Format]  # what it is, the module's name, its format


def slots_of(model: Model, scheme: Scheme) -> list[Slot]:
    """The embedding and the head that a scheme quantizes. A tied matrix is one slot, under the name of the embedding.

    Raises:
        UserError: the model has no such module, or two formats are given for one tied matrix, or a group does not divide it.
    """
    tables, found = model.tables(), list[Slot]()
    wanted = {slot: fmt for slot, fmt in (("embedding", scheme.embedding), ("head", scheme.head)) if fmt is not None}
    for slot, fmt in wanted.items():
        if slot not in tables:
            raise UserError(f"bits.{slot}: {model.name} has no {WORDS[slot]} of its own; leave it null")
        name = tables[slot]
        weight = model.module.get_submodule(name).weight
        fmt.check_width(name, weight.shape[1], f"bits.{slot}")
        fmt.check_rows(name, weight.shape[0], f"bits.{slot}")
        found.append((slot, name, fmt))
    if wanted and _tied(model):
        if len(set(wanted.values())) > 1:
            raise UserError(
                f"bits.embedding and bits.head: must be equal, because {model.name} has one matrix for both; one is enough"
            )
        return [("embedding and head", tables["embedding"], found[0][2])]
    return found


WORDS = {"embedding": "token embedding", "head": "output matrix"}


def _tied(model: Model) -> bool:
    tables = model.tables()
    return len(tables) == 2 and len({model.module.get_submodule(name).weight.data_ptr() for name in tables.values()}) == 1


def with_slots(model: Model, scheme: Scheme) -> Model:
    """A quantized model whose embedding and head are in their formats too. Its report has an entry for each.

    Raises:
        UserError: see `slots_of`; or a weight or a scale is not finite.
    """
    slots = slots_of(model, scheme)
    if not slots:
        return model
    module, entries = share(model.module), list[dict[str, Any]]()
    for slot, name, fmt in slots:
        layer = module.get_submodule(name)
        weight = layer.weight
        assert isinstance(weight, Tensor)
        weight = weight.detach()
        check_weight(name, weight)
        encoded = encode(weight, fmt)
        check_scales(name, encoded)
        values = put_slot(module, model.tables(), slot, name, encoded)
        entries.append({"slot": slot, "module": name, "format": str(fmt), "weight_sqnr_db": round(sqnr_db(weight, values), 3)})
    return model.with_module(module, {**(model.report or {}), "slots": entries})


def put_slot(module: nn.Module, tables: Mapping[str, str], slot: str, name: str, encoded: EncodedTensor) -> Tensor:
    """Put an encoded embedding or head in its place. Return its dequantized values.

    Args:
        tables: as `Model.tables`. A tied head gets the codes and the values of the embedding.
        slot: what it is, as in `slots_of`.
    """
    layer = module.get_submodule(name)
    if slot == "head":
        stored = QuantLayer(layer, encoded, None)
        module.set_submodule(name, stored)
        values: Tensor = stored.simulated().weight  # type: ignore[assignment]
        return values
    table = EncodedTable(layer, encoded)
    module.set_submodule(name, table)
    if slot == "embedding and head":
        module.set_submodule(tables["head"], TiedLayer(module.get_submodule(tables["head"]), table))
    return table.layer.weight  # type: ignore[return-value]  # a module may have another attribute of this name
