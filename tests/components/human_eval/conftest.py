from __future__ import annotations

import pytest


@pytest.fixture
def empty_database_url(any_database_url: str) -> str:
    """URL of an empty database of each kind."""
    return any_database_url
