"""Drops the stores that a test made."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.postgres.stores import drop_stores


@pytest.fixture
def stores() -> Iterator[None]:
    """Drop at the end what the test has made on the shared server."""
    yield
    drop_stores()
