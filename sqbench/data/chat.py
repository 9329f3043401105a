"""Conversations as the tokenizer of a model writes them: its chat template."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqbench.errors import UserError
from sqbench.storage.files import digest

MARK = "THE-USER-SAYS-THIS"  # stands for what a user says; no template has it
Message = Mapping[str, str]  # `role` and `content`


def template_of(tokenizer: Any) -> str | None:
    """The chat template that the tokenizer brings. None if it has none, or several and no default."""
    try:
        found: str = tokenizer.get_chat_template()
    except ValueError:
        return None
    return found


def fingerprint(tokenizer: Any, asked: str, name: str) -> str:
    """sha256 of the chat template and of a short conversation as it writes it. A template may put the day's date into it.

    Args:
        asked: the key and value that ask for a template.
        name: the model's name.

    Raises:
        UserError: the tokenizer has no chat template.
    """
    template = template_of(tokenizer)
    if template is None:
        raise UserError(f"{asked}: the tokenizer of {name} has no chat template; use a model with one, or leave it out")
    return digest([template, *around(tokenizer, asked)])


def written(tokenizer: Any, messages: Sequence[Message], asked: str, *, answer: bool = False) -> str:
    """A conversation as text, with the special tokens of the template.

    Args:
        answer: whether the text ends where the model is to answer.

    Raises:
        UserError: the template does not take these messages. The message begins with `asked`.
    """
    from jinja2 import TemplateError

    try:
        text: str = tokenizer.apply_chat_template([dict(one) for one in messages], tokenize=False, add_generation_prompt=answer)
    except (TemplateError, ValueError, TypeError) as error:
        raise UserError(f"{asked}: the model's chat template does not take it ({error})") from error
    return text


def around(tokenizer: Any, asked: str) -> tuple[str, str]:
    """What the template writes before and after the only message of a user, up to where the model is to answer.

    Raises:
        UserError: the template takes no such message, or writes it more than once.
    """
    parts = written(tokenizer, [{"role": "user", "content": MARK}], asked, answer=True).split(MARK)
    if len(parts) != 2:
        raise UserError(f"{asked}: the model's chat template writes a user's message {len(parts) - 1} times; it must be once")
    return parts[0], parts[1]
