"""The KV cache of a language model as tensors, under the names that other programs give them.

A layer has keys and values [batch, heads, tokens, width] of the tokens so far.
"""

import inspect
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

PAST, PRESENT = "past_key_values", "present"  # before and after further tokens are read
MASK = "attention_mask"  # [batch, tokens so far and further ones], 0 for padding


def empty_cache(module: Any) -> Any:
    """The cache of a Hugging Face causal LM that has read nothing."""
    from transformers import DynamicCache

    return DynamicCache(config=module.config)


def as_argument(module: Any, cache: Any) -> dict[str, Any]:
    """A cache as an argument of a causal LM. Since transformers 5.24 the argument is called `cache`."""
    return {"cache" if "cache" in inspect.signature(module.forward).parameters else PAST: cache}


def as_output(cache: Any) -> dict[str, Any]:
    """A cache as a field of what a causal LM returns. See `as_argument`."""
    from transformers.modeling_outputs import CausalLMOutputWithPast

    return {"cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else PAST: cache}


def read(module: Any, ids: Tensor) -> list[Tensor]:
    """The tensors of the cache of a causal LM that has read token ids [batch, tokens]."""
    cache = empty_cache(module)
    module(input_ids=ids, use_cache=True, **as_argument(module, cache))
    return tensors(cache)


def tensors(cache: Any) -> list[Tensor]:
    """Keys and values of the first layer, of the second, and so on. The cache has read some tokens."""
    return [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]


def keep(cache: Any, found: Sequence[Tensor]) -> None:
    """Put tensors, in the order of `tensors`, in the place of those of a cache."""
    for layer, keys, values in zip(cache.layers, found[0::2], found[1::2], strict=True):
        if not layer.is_initialized:
            layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values


def names(prefix: str, count: int) -> list[str]:
    """The names of `count` tensors, in the order of `tensors`."""
    return [f"{prefix}.{number // 2}.{'value' if number % 2 else 'key'}" for number in range(count)]


def axes(name: str) -> dict[int, str]:
    """The axes whose sizes differ from call to call in a tensor of a cache, or in a mask."""
    return {0: "batch", 1: "all_tokens"} if name == MASK else {0: "batch", 2: "past" if name.startswith(PAST) else "all_tokens"}


def growing(inputs: Iterable[str]) -> dict[int, int]:
    """The number of an input -> its axis that is longer with every token that is written. Empty without a cache."""
    every = list(inputs)
    if not any(name.startswith(PAST) for name in every):
        return {}
    return {number: 1 if name == MASK else 2 for number, name in enumerate(every) if name == MASK or name.startswith(PAST)}


def nothing(like: Sequence[Tensor]) -> list[Tensor]:
    """The tensors [1, heads, 0, width] of a cache that has read nothing. `like` are those of another one."""
    return [one.new_empty(1, one.shape[1], 0, one.shape[3]) for one in like]
