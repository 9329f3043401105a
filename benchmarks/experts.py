"""Train a small mixture of experts on bytes of the Python language reference, for measurements without downloaded weights.

    python -m benchmarks.experts folder=./experts

It is a Mixtral with 2 blocks of 8 experts, 2 for each token. The second half of the text trains it. `data=pydoc` evaluates on the
first windows of the text. No loss balances the experts.
"""

import sys
from pathlib import Path

import torch
from transformers import MixtralConfig, MixtralForCausalLM

from benchmarks.llama import save_byte_tokenizer
from benchmarks.timing import arguments
from sqbench.config import DataConfig
from sqbench.data.text import from_pydoc
from sqbench.errors import UserError

WINDOW, BATCH, PEAK = 128, 8, 4e-3  # tokens, windows of a step, the largest learning rate of one cycle


def build(experts: int, layers: int, width: int) -> MixtralForCausalLM:
    """A random mixture over bytes, 2 experts for each token."""
    config = MixtralConfig(
        vocab_size=256,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=experts,
        num_experts_per_tok=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )
    torch.manual_seed(0)
    return MixtralForCausalLM(config)


def train(module: MixtralForCausalLM, ids: torch.Tensor, steps: int) -> float:
    """Train a model on token ids by AdamW, and return the loss of the last step."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=PEAK, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK, total_steps=steps)
    generator = torch.Generator().manual_seed(0)
    loss = torch.zeros(())
    for _ in range(steps):
        starts = torch.randint(0, len(ids) - WINDOW, (BATCH,), generator=generator)
        batch = torch.stack([ids[start : start + WINDOW] for start in starts])
        loss = module(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return loss.item()


def main() -> None:
    try:
        own, others = arguments(sys.argv[1:], folder="experts", experts=8, layers=2, width=128, steps=150)
        if others:
            raise UserError(f"{others[0]}: folder=..., experts=..., layers=..., width=... and steps=... work")
        if own["width"] % 8:
            raise UserError(f"width={own['width']}: must be a multiple of 8")
    except UserError as error:
        sys.exit(f"error: {error}")
    from transformers import AutoTokenizer

    folder = Path(own["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    save_byte_tokenizer(folder)
    text = from_pydoc(DataConfig(name="pydoc", source="pydoc"))
    ids = torch.tensor(AutoTokenizer.from_pretrained(folder)(text[len(text) // 2 :], verbose=False)["input_ids"])
    module = build(own["experts"], own["layers"], own["width"])
    loss = train(module, ids, own["steps"])
    module.save_pretrained(folder)
    count = sum(parameter.numel() for parameter in module.parameters())
    print(f"{count / 1e6:.2f} million parameters in {folder}, {loss:.3f} nats per byte at the end of training")


if __name__ == "__main__":
    main()
