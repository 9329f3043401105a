"""A data set of your own: the `text` of every line of a JSONL file.

python docs/examples/jsonl.py --config-dir docs/examples/conf data=jsonl data.path=corpus.jsonl method=rtn
"""

import json

from sqbench.config import DataConfig
from sqbench.data import SOURCES, DataSource, text
from sqbench.data.text_files import lines_of, read
from sqbench.errors import UserError


def from_jsonl(cfg: DataConfig) -> str:
    """The documents of `data.path`, an empty line between them."""
    if cfg.path is None:
        raise UserError("data.path=null: data=jsonl needs a file with a JSON object a line")
    documents = []
    for number, line in lines_of(read(cfg.path, "data.path")):
        try:
            documents.append(str(json.loads(line)["text"]))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f'data.path={cfg.path}: line {number} is no {{"text": ...}}') from error
    return "\n\n".join(documents)


text.TEXTS["jsonl"] = from_jsonl
SOURCES["jsonl"] = DataSource("text", text.fetch)

if __name__ == "__main__":
    from sqbench.run import main

    main()
