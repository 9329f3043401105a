"""Codes that another tool chooses. It gets the float model, and `sqbench.running.foreign` reads the checkpoint that it saves."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from sqbench.errors import UserError, known
from sqbench.formats.codec import EncodedTensor
from sqbench.formats.format import Format
from sqbench.formats.params import Limits
from sqbench.formats.scheme import Scheme
from sqbench.peers import TOOLS
from sqbench.rounding.base import ROUNDINGS, Rounding
from sqbench.statistics.inputs import InputStatistics


@ROUNDINGS.register("peer")
@dataclass(frozen=True)
class Peer(Rounding):
    """A tool that quantizes the whole model: on our calibration windows, in the formats of `bits`, with its own defaults.

    Attributes:
        tool: its name.
        arguments: arguments of the tool, in place of its own defaults. None is none.
    """

    foreign: ClassVar[bool] = True

    tool: str = "llm-compressor"
    arguments: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        self.require("tool", self.tool in TOOLS, known(self.tool, TOOLS))

    @property
    def key(self) -> str:
        return f"method.tool={self.tool}"

    def about(self) -> Mapping[str, str]:
        """The tool and its installed version.

        Raises:
            UserError: it is not installed.
        """
        return {"name": self.tool, "version": TOOLS[self.tool].version}

    def refusal(self, scheme: Scheme) -> str | None:
        return TOOLS[self.tool].refusal(scheme, self.arguments or {})

    def encode(
        self, layer: str, weight: Tensor, stats: InputStatistics, fmt: Format, limits: Limits | None
    ) -> tuple[EncodedTensor, dict[str, Any]]:
        """Not layer by layer.

        Raises:
            UserError: always.
        """
        raise UserError(f"rounding={self.name}: another tool quantizes the whole model; use `python -m sqbench.run method=peer`")
