"""Texts as tokens, and the tokens that begin every window."""

from typing import Any

import torch
from torch import Tensor

from sqbench.errors import UserError


def tokenise(tokenizer: Any, text: str) -> Tensor:
    """Token ids [N] of a whole text, tokenised in one call without special tokens."""
    return torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], dtype=torch.long)


def prefix_of(tokenizer: Any, bos: str | bool) -> tuple[int, ...]:
    """The tokens that begin every window, as they begin every text that the model was trained on.

    Tokens that a tokenizer puts after a text are part of no window.

    Args:
        bos: `auto` takes the tokens that the tokenizer puts before a text, if any. True takes the same tokens, or the BOS token
            if there are none. False takes none.

    Raises:
        UserError: the tokenizer has no BOS token, or it adds special tokens inside a text.
    """
    if bos is False:
        return ()
    bare, whole = (list(tokenizer("text", add_special_tokens=special, verbose=False)["input_ids"]) for special in (False, True))
    place = next((at for at in range(len(whole)) if whole[at : at + len(bare)] == bare), None)
    if place is None:
        raise UserError(f"data.bos={str(bos).lower()}: the model's tokenizer adds tokens inside a text; use data.bos=false")
    if bos is True and place == 0:
        if tokenizer.bos_token_id is None:
            raise UserError("data.bos=true: the model's tokenizer has no BOS token; use data.bos=auto or data.bos=false")
        return (tokenizer.bos_token_id,)
    return tuple(whole[:place])


def begun(prefix: tuple[int, ...], windows: Tensor) -> Tensor:
    """Windows [N, prefix + window]: each of the windows [N, window] after the prefix."""
    return torch.cat([torch.tensor(prefix, dtype=windows.dtype).expand(len(windows), -1), windows], dim=1)
