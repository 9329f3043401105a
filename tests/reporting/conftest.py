"""Records for tables."""

from collections.abc import Callable
from typing import Any

import pytest
from examples import build


@pytest.fixture
def make_record() -> Callable[..., dict[str, Any]]:
    return build
