"""A chat template for small models."""

import shutil
from pathlib import Path

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def with_template(folder: Path, to: Path, template: str = TEMPLATE) -> Path:
    """A copy of a model's folder whose tokenizer has a chat template."""
    shutil.copytree(folder, to)
    (to / "chat_template.jinja").write_text(template, encoding="utf-8")
    return to
