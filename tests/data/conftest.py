"""Fixtures of the tests of data."""

from collections.abc import Callable
from typing import Any

import pytest

from tagger import params
from tagger.params import Params


@pytest.fixture(scope="session")
def make_filters(default_params: Params) -> Callable[..., params.FilterParams]:
    """Return the default filters, which accept everything, with changes."""

    def make_filters(**changes: Any) -> params.FilterParams:
        values = default_params.prepare.filters.model_dump() | changes
        return params.FilterParams.model_validate(values)

    return make_filters
