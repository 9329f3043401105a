"""The runtimes that are installed."""

import pytest

from sqbench.runtimes import RUNTIMES


@pytest.fixture(params=list(RUNTIMES))
def backend(request: pytest.FixtureRequest) -> str:
    pytest.importorskip(RUNTIMES[request.param].package)
    name: str = request.param
    return name
