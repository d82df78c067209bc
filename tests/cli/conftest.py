"""One `headrace dev` for all tests of a module that only talk to it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cli.command import development


@pytest.fixture(scope="module")
def hub_url(request: pytest.FixtureRequest) -> Iterator[str]:
    with development(request.module.__name__) as (_, url):
        yield url
