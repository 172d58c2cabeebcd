"""One process at a time, the next soon after one that died; on a real S3 server on the loopback."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from components.shared import lease as lease_module
from components.shared.errors import PlumblineError
from components.shared.lease import Lease, LeaseLostError
from components.shared.s3 import S3Storage
from components.shared.storage import StorageError, open_storage


@pytest.fixture
def prefix(bucket: str, monkeypatch: pytest.MonkeyPatch) -> S3Storage:
    monkeypatch.setattr(lease_module, "LEASE_SECONDS", 3.0)
    return open_storage(f"s3://{bucket}/runs/one")


def _make_lease(prefix: S3Storage) -> Lease:
    return Lease(prefix, what="trains this very run")


def _die(lease: Lease) -> None:
    """Its process shows no sign of life any more."""
    lease._ended.set()
    lease._thread.join()


def test_a_second_process_is_refused_and_told_who_holds_the_lease_and_since_when(prefix):
    with _make_lease(prefix) as first:
        with pytest.raises(PlumblineError) as caught:
            _make_lease(prefix).__enter__()
        first.require()

    told = str(caught.value)
    assert f"{prefix.uri}: another process trains this very run: process {os.getpid()} on " in told
    assert f"since {first._since}" in told
    assert "Wait for it, or stop it first" in told


def test_a_lease_that_was_given_back_is_free_at_once(prefix):
    with _make_lease(prefix):
        pass
    started = time.monotonic()
    with _make_lease(prefix) as second:
        second.require()
    assert time.monotonic() - started < 2
    assert prefix.names("") == []


def test_the_lease_of_a_dead_process_is_taken_over_after_it_expired(prefix):
    dead = _make_lease(prefix)
    dead.__enter__()
    _die(dead)
    started = time.monotonic()
    with _make_lease(prefix) as second:
        assert time.monotonic() - started > 1
        second.require()
        with pytest.raises(
            LeaseLostError, match=r"no sign of life for over 3 s, and another trains .* nothing is lost"
        ):
            dead.require()


def test_the_lease_is_held_for_longer_than_it_lives_without_signs_of_life(prefix):
    with _make_lease(prefix) as first:
        time.sleep(4.5)
        first.require()


def test_who_reaches_for_a_number_below_the_highest_gets_nothing(prefix):
    late = _make_lease(prefix)
    with _make_lease(prefix) as first:
        _die(first)
        time.sleep(4.5)
        with _make_lease(prefix) as second:
            assert prefix.names("") == ["lease/000002.json"]
            assert not late._take(None), "it saw no lease before the others came"
            second.require()


def test_a_server_that_ignores_the_condition_is_refused(prefix, monkeypatch):
    def put(self: S3Storage, name: str, content: bytes) -> bool:
        self.write(name, content)
        return True

    monkeypatch.setattr(S3Storage, "_put_if_absent", put)
    with pytest.raises(StorageError, match="ignores the condition"):
        _make_lease(prefix).__enter__()
    assert prefix.names("") == []


def test_a_lease_that_cannot_be_read_is_told(prefix, tmp_path: Path):
    prefix.write("lease/000001.json", b"{")
    with pytest.raises(StorageError, match=r"lease/000001\.json: the lease is damaged.*delete the object"):
        _make_lease(prefix).__enter__()
