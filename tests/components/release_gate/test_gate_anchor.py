"""The ledger's head in object storage, on a real S3 server on the loopback, and in the tags of the model's versions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from sqlalchemy import create_engine, text
from tiny_office import check_agreement, release_weights
from tiny_release import MODEL, register_moves

from components.release_gate.anchor import LedgerAlteredError, ObjectAnchor, open_anchor
from components.release_gate.ledger import Ledger
from components.release_gate.office import Office, open_office, verify
from components.shared.errors import InputError
from components.shared.storage import StorageError, open_storage


@pytest.fixture
def stored(office: Office, bucket: str, monkeypatch: pytest.MonkeyPatch) -> Office:
    """Ledger and registry, the ledger anchored in object storage."""
    monkeypatch.setenv("PLUMBLINE_LEDGER_ANCHOR", f"s3://{bucket}/anchors")
    return open_office()


def _tamper(root: Path, statement: str) -> None:
    engine = create_engine(f"sqlite:///{root / 'plumbline.db'}")
    with engine.begin() as connection:
        connection.execute(text(statement))
    engine.dispose()


def _forget_tags(office: Office) -> None:
    for version in office.ledger.view(MODEL).versions:
        MlflowClient().delete_model_version_tag(MODEL, version, "plumbline.ledger_head")


def test_every_append_leaves_an_object_of_its_own_and_the_last_is_the_head(
    stored: Office, tmp_path: Path, bucket: str, bucket_client: Any
) -> None:
    release_weights(stored, tmp_path, "one")
    view = stored.ledger.view(MODEL)
    keys = [item["Key"] for item in bucket_client.list_objects_v2(Bucket=bucket)["Contents"]]
    assert len(keys) > 2
    assert keys[-1] == f"anchors/{MODEL}/{view.head[0]:012d}.json"
    assert open_anchor().head(MODEL) == view.head
    check_agreement(stored, "1")


@pytest.mark.parametrize("kept", ["object storage", "tags"])
def test_a_ledger_that_was_cut_is_shown_by_either_anchor(
    stored: Office, tmp_path: Path, bucket_client: Any, bucket: str, kept: str
) -> None:
    release_weights(stored, tmp_path, "one")
    head = stored.ledger.view(MODEL).head[0]
    _tamper(tmp_path, f"DELETE FROM release_ledger WHERE sequence = {head}")
    if kept == "tags":
        bucket_client.delete_object(Bucket=bucket, Key=f"anchors/{MODEL}/{head:012d}.json")
    else:
        _forget_tags(stored)
    problems = verify(MODEL, office=stored).problems
    assert f"the anchor knows entry {head}, the table does not: entries were removed." in problems


def test_tags_that_were_removed_are_named(stored: Office, tmp_path: Path) -> None:
    release_weights(stored, tmp_path, "one")
    _forget_tags(stored)
    assert verify(MODEL, office=stored).problems == [
        "no model version's tags hold a head of the ledger: they were removed."
    ]


def test_a_history_that_was_rewritten_cannot_be_anchored_over_the_true_one(bucket: str, tmp_path: Path) -> None:
    anchor = ObjectAnchor(open_storage(f"s3://{bucket}"))
    true, forged = (Ledger(f"sqlite:///{tmp_path / name}", anchor) for name in ("true.db", "forged.db"))
    true.append(MODEL, register_moves("1"))
    anchor.advance(MODEL, true.view(MODEL).head)  # twice is once
    with pytest.raises(LedgerAlteredError, match="entries were removed"):
        forged.append(MODEL, register_moves("1"))
    with pytest.raises(LedgerAlteredError, match="two histories"):
        anchor.advance(MODEL, (1, "f" * 64))
    assert true.verify(MODEL).sound


def test_the_anchor_of_an_append_that_was_cut_off_is_made_up_for_by_the_next_call(
    stored: Office, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bucket: str
) -> None:
    version = release_weights(stored, tmp_path, "one")

    def refuse(*_: Any) -> None:
        raise StorageError("no right to write.", where="s3://x")

    with monkeypatch.context() as cut_off:
        cut_off.setattr(ObjectAnchor, "advance", refuse)
        with pytest.raises(StorageError):
            stored.ledger.append(MODEL, register_moves("9"))
    assert verify(MODEL, office=stored).sound, "an anchor may lag"
    stored.record(MODEL, lambda view: [])
    assert open_anchor().head(MODEL) == stored.ledger.view(MODEL).head
    check_agreement(stored, version)


def test_one_model_does_not_see_the_anchors_of_another_whose_name_it_begins(bucket: str) -> None:
    anchor = ObjectAnchor(open_storage(f"s3://{bucket}"))
    anchor.advance("tiny.drill", (7, "a" * 64))
    assert anchor.head("tiny") is None


def test_an_object_that_is_no_anchor_is_named(bucket: str, bucket_client: Any) -> None:
    bucket_client.put_object(Bucket=bucket, Key=f"{MODEL}/000000000001.json", Body=b"?")
    with pytest.raises(InputError, match=f"{MODEL}/000000000001.json"):
        ObjectAnchor(open_storage(f"s3://{bucket}")).head(MODEL)


def test_without_the_right_to_read_the_anchor_nothing_is_appended(
    stored: Office, tmp_path: Path, refuse_credentials: Callable[[], None]
) -> None:
    release_weights(stored, tmp_path, "one")
    before = stored.ledger.view(MODEL).entries
    refuse_credentials()
    fresh = replace(stored, ledger=open_office().ledger)
    with pytest.raises(StorageError, match="do not fit together"):
        fresh.ledger.append(MODEL, register_moves("2"))
    assert fresh.ledger.view(MODEL).entries == before
