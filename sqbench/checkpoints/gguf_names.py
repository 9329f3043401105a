"""How transformers names the tensors of GGUF files, and what it changes in them. Its own tables say so."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

Array = Any


@dataclass(frozen=True)
class Names:
    """The tensors of one model.

    Attributes:
        in_model: name in a file -> name in the model.
        processor: changes of values that undo those of llama.cpp's converter.
    """

    in_model: Mapping[str, str]
    processor: Any

    @classmethod
    def of(cls, architecture: str, config: Mapping[str, Any]) -> "Names":
        """Names of a causal language model.

        Args:
            architecture: llama.cpp's name of it.
            config: that of transformers.

        Raises:
            ValueError, KeyError, RuntimeError: transformers does not know the model.
        """
        from transformers import AutoConfig, AutoModelForCausalLM
        from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

        processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=dict(config))
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
        return cls(get_gguf_hf_weights_map(model, processor, model_type=architecture), processor)

    def values(self, name: str, values: Array) -> Array | None:
        """Values of a tensor, by its name in the file, as the model has them. None if it is not one tensor there."""
        try:
            found = self.processor.process(weights=values, name=name)
        except (KeyError, TypeError, ValueError):
            return None
        return found.weights if found.name == name else None

    def order(self, name: str, rows: int) -> Array | None:
        """The place in the file of each of the model's rows [rows]. None if more than their order is changed."""
        places = np.arange(rows)[:, None]
        order = self.values(name, places)
        if order is None or order.shape != places.shape or not np.array_equal(np.sort(order, 0), places):
            return None
        return order[:, 0]
