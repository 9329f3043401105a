"""Records for tables."""

from collections.abc import Callable

import pytest
from examples import made

from sqbench.records.record import Record


@pytest.fixture
def make_record() -> Callable[..., Record]:
    return made
