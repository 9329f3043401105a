"""The committed reference results come from the committed records, and the check would notice if they did not."""

import pandas as pd
import pytest
from examples import build, write

from scripts import reference
from scripts.reference import Study


@pytest.fixture
def study(tmp_path, monkeypatch):
    """One study made by hand, written up."""
    folder = tmp_path / "reference"
    own = (Study("own", "Something.", ("sqbench.run method=rtn",), ("sqbench.collect",)),)
    monkeypatch.setattr(reference, "FOLDER", folder)
    monkeypatch.setattr(reference, "STUDIES", own)
    record = build("rtn", perplexity=16.0)
    record["provenance"] |= {"hardware": {"processor": "abacus", "cpu_capability": "beads", "threads": 2}}
    record["provenance"] |= {"versions": {"python": "3.11", "torch": "2.14"}}
    write(folder / "own", record)
    samples = pd.DataFrame({"window": range(4), "tokens": 63, "nll": [2.7, 2.8, 2.9, 2.6], "nll_fp": [2.7, 2.8, 2.9, 2.5]})
    samples.to_parquet(folder / "own" / "runs" / record["point_id"] / "samples.parquet")
    assert reference.main(["write"]) == 0
    return folder


def test_what_is_written_up_passes_its_check(study):
    assert reference.wrong() == []
    text = (study / "README.md").read_text()
    assert "python -m sqbench.run method=rtn" in text
    assert "abacus (beads, 2 threads), Python 3.11, torch 2.14" in text
    assert "2026-11-22" in text
    assert "(own/tables/perplexity.md)" in text


@pytest.mark.slow
def test_the_committed_results_come_from_the_committed_records():
    assert reference.wrong() == []


@pytest.mark.slow
def test_a_number_that_no_record_gives_is_found(study):
    table = study / "own" / "tables" / "perplexity.csv"
    table.write_text(table.read_text().replace("16", "15"))
    assert reference.wrong() == ["own/tables/perplexity.csv: differs from what its records give"]
    (study / "own" / "tables" / "extra.csv").write_text("1")
    assert "own/tables/extra.csv: only in one of the two" in reference.wrong()
    (study / "README.md").write_text("16.0")
    assert reference.wrong()[-1] == "README.md: differs from what the records give"


def test_unknown_names_are_refused():
    with pytest.raises(reference.UserError, match="did you mean claims"):
        reference.main(["make", "claim"])
    with pytest.raises(reference.UserError, match="did you mean make"):
        reference.main(["mak"])
