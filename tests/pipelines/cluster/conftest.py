"""A KFP server of each test's own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from kfp_server import KFPServer, run_kfp_server

from pipelines.cluster.connection import KFP, Connection


@pytest.fixture
def server() -> Iterator[KFPServer]:
    with run_kfp_server() as running:
        yield running


@pytest.fixture
def kfp(server: KFPServer) -> KFP:
    return KFP(Connection(server.address, timeout_seconds=5), pause_seconds=0.01)
