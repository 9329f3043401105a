"""What a model writes stands beside what the float model writes."""

from pathlib import Path

import pandas as pd
from examples import build, write

from sqbench.records.store import Store
from sqbench.reporting.html import page
from sqbench.reporting.html.texts import Pair, texts

NAMED = {"name": "generation", "resamples": 10000, "level": 0.95}


def test_the_texts_that_part_the_earliest_come_first(results: Path) -> None:
    record = build("rtn", identity__eval=NAMED)
    write(results, record)
    own, floating = ["the cat sat", "a <b>dog</b>", "same"], ["the cat ran", "one day", "same"]
    rows = pd.DataFrame({"window": [0, 1, 2], "text": own, "text_fp": floating})
    rows.to_parquet(results / "runs" / record["point_id"] / "samples.parquet")
    store = Store(results)
    (read,) = store.records()
    found = texts(store, read)
    assert found == (Pair(1, "", "one day", "a <b>dog</b>"), Pair(2, "same", "", ""), Pair(0, "the cat ", "ran", "sat"))
    told = page.render(results, now=0.0)
    assert '<td><span class="note">the cat </span>ran</td><td><span class="note">the cat </span>sat</td>' in told
    assert "a &lt;b&gt;dog&lt;/b&gt;" in told


def test_other_evaluations_and_lost_samples_have_none(results: Path) -> None:
    write(results, build("rtn"), build("awq", identity__eval=NAMED))
    records = list(Store(results).records(brief=True))
    assert [texts(Store(results), record) for record in records] == [(), ()]
