"""What tests of several export formats share."""

from collections.abc import Callable

import pytest

from sqbench import api
from sqbench.calibration import Statistics
from sqbench.formats.scheme import Scheme
from sqbench.models.language import LanguageModel


@pytest.fixture(scope="session")
def quantize(tiny: LanguageModel, statistics: Statistics) -> Callable[..., LanguageModel]:
    """Quantizes the tiny model by a method, in a scheme."""

    def made(scheme: Scheme, method: str = "rtn") -> LanguageModel:
        found = api.quantize(tiny, statistics, method, scheme)
        assert isinstance(found, LanguageModel)
        return found

    return made
