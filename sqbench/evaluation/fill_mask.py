"""The losses of a masked language model: every token of a text is masked alone and predicted from all others."""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from sqbench.models.encoder import EncoderModel

BATCH = 32  # masked copies of a text at once


def losses(model: EncoderModel, text: Tensor) -> Tensor:
    """The negative log-likelihood of every token of a text but the special ones, in nats: [tokens] float64 on the CPU.

    Their sum is the negative pseudo-log-likelihood of Salazar et al. 2020, "Masked language model scoring", equation 1.

    Args:
        text: [fields, tokens], the token ids first.
    """
    ids = text[0].tolist()
    special = model.tokenizer.get_special_tokens_mask(ids, already_has_special_tokens=True)
    places = torch.tensor([place for place, is_special in enumerate(special) if not is_special])
    found = []
    for part in places.split(BATCH):
        copies = text.unsqueeze(0).repeat(len(part), 1, 1)
        rows = torch.arange(len(part))
        copies[rows, 0, part] = model.tokenizer.mask_token_id
        logits = model.forward(copies)[rows, part]
        found.append(cross_entropy(logits.float(), text[0, part].to(logits.device), reduction="none").double().cpu())
    return torch.cat(found)
