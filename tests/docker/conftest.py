"""One Docker Engine, one build of the images and one set of services for all tests here."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from docker_engine import Services, build_images, missing, run_engine, run_services


@pytest.fixture(scope="session")
def engine() -> Iterator[str]:
    """DOCKER_HOST of an engine.

    Skipped where none can be started, but an error where PLUMBLINE_REQUIRE_DOCKER is set, as in CI.
    """
    if why := missing():
        if os.environ.get("PLUMBLINE_REQUIRE_DOCKER"):
            raise RuntimeError(why)
        pytest.skip(why)
    with run_engine() as host:
        before = os.environ.get("DOCKER_HOST")
        os.environ["DOCKER_HOST"] = host
        yield host
        if before is None:
            del os.environ["DOCKER_HOST"]
        else:
            os.environ["DOCKER_HOST"] = before


@pytest.fixture(scope="session")
def sboms(engine: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images are built; the folder with their SBOMs."""
    folder = tmp_path_factory.mktemp("sboms")
    build_images(engine, folder)
    return folder


@pytest.fixture(scope="session")
def services(engine: str, sboms: Path) -> Iterator[Services]:
    """MLflow, Postgres and an S3 server in containers on an internal network."""
    del sboms
    with run_services(engine) as running:
        yield running
