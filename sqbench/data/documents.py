"""Files of documents to calibrate on: a plain text, or a JSONL with a text or a conversation a line."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqbench.data.chat import written
from sqbench.data.text_files import lines_of, read
from sqbench.errors import UserError
from sqbench.storage.files import digest

KEY = "calibration.path"
LINE = '{"text": "..."} or {"messages": [{"role": "user", "content": "..."}, ...]}'


@dataclass(frozen=True)
class Documents:
    """The documents of a file.

    Attributes:
        path: of the file.
        fingerprint: sha256 of the content.
        texts: its texts. Empty if it has conversations.
        conversations: its conversations, each a tuple of (role, content). Empty if it has texts.
        divided: whether the file says where a document ends. A plain text does not.
    """

    path: str
    fingerprint: str
    texts: tuple[str, ...] = ()
    conversations: tuple[tuple[tuple[str, str], ...], ...] = ()
    divided: bool = True

    def __len__(self) -> int:
        return len(self.texts) + len(self.conversations)

    def written(self, tokenizer: Any, number: int) -> str:
        """A document as text. A conversation is what the tokenizer's chat template writes.

        Raises:
            UserError: the template does not take its messages.
        """
        if self.texts:
            return self.texts[number]
        messages = [{"role": role, "content": content} for role, content in self.conversations[number]]
        return written(tokenizer, messages, f"{KEY}={self.path}: conversation {number}")

    def joined(self, tokenizer: Any) -> str:
        """All documents as one text: texts with a blank line between them, conversations one after the other."""
        return ("\n\n" if self.texts else "").join(self.written(tokenizer, number) for number in range(len(self)))

    def content(self) -> list[str]:
        """What each document says, without a template."""
        return [*self.texts, *("\n".join(said for _, said in one) for one in self.conversations)]


def documents_of(path: str) -> Documents:
    """The documents of a file. One that ends in .jsonl has a JSON object a line, any other is a plain text.

    Raises:
        UserError: the file cannot be read, or a line is no document.
    """
    text = read(path, KEY)
    if Path(path).suffix.lower() != ".jsonl":
        return Documents(path, hashlib.sha256(text.encode()).hexdigest(), (text,), divided=False)
    found = [_document(line, f"{KEY}={path}: line {number}") for number, line in lines_of(text)]
    texts = tuple(one for one in found if isinstance(one, str))
    conversations = tuple(one for one in found if not isinstance(one, str))
    if texts and conversations:
        raise UserError(f"{KEY}={path}: has texts and conversations; use a file for each")
    return Documents(path, digest(found), texts, conversations)


def _document(line: str, place: str) -> str | tuple[tuple[str, str], ...]:
    try:
        told = json.loads(line)
    except ValueError as error:
        raise UserError(f"{place} is no JSON ({error}); write {LINE}") from error
    if isinstance(told, Mapping) and isinstance(text := told.get("text"), str) and text.strip() and "messages" not in told:
        return text
    messages = told.get("messages") if isinstance(told, Mapping) and "text" not in told else None
    if not isinstance(messages, list) or not messages or not all(map(_is_message, messages)):
        raise UserError(f"{place} is no document; write {LINE}")
    return tuple((one["role"], one["content"]) for one in messages)


def _is_message(told: Any) -> bool:
    return isinstance(told, Mapping) and all(isinstance(told.get(word), str) for word in ("role", "content"))
