"""Addresses: local, object storage (a real S3 server), hub; and digests that see changes."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_validation import write_rows

from components.data_validation.sources import read_rows
from components.shared.artifacts import write_artifact
from components.shared.errors import ArtifactError, InputError, PlumblineError
from components.shared.files import write_json
from components.shared.locations import data_digest, open_location, parse_hub_address
from components.shared.storage import Storage, open_storage


@pytest.fixture
def store(bucket: str) -> Storage:
    return open_storage(f"s3://{bucket}")


def test_object_storage_is_read_by_key_and_by_prefix_and_rows_name_their_object(store: Storage) -> None:
    for name, content in {"b.jsonl": b'{"n": 2}', "a.jsonl": b'{"n": 1}', "_log.txt": b"x", ".x.jsonl": b"{}"}.items():
        store.write(f"set/{name}", content)
    store.write("settle.jsonl", b"{}")
    for address in (f"{store.uri}/set", f"{store.uri}/set/"):
        assert [(row.file, row.values) for row in read_rows(address)] == [
            (f"{store.uri}/set/a.jsonl", {"n": 1}),
            (f"{store.uri}/set/b.jsonl", {"n": 2}),
        ]
    assert [row.values for row in read_rows(f"{store.uri}/set/b.jsonl")] == [{"n": 2}]
    assert len(read_rows(store.uri)) == 3


def test_what_was_fetched_is_removed_again(store: Storage) -> None:
    store.write("a.jsonl", b"{}")
    with open_location(f"{store.uri}/a.jsonl") as files:
        assert isinstance(files, list)
        assert files[0].path.is_file()
    assert not files[0].path.exists()


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("s3://{bucket}/nothing", "no data file"),
        ("s3://absent-one/x.jsonl", "no bucket 'absent-one'"),
        ("s3://{bucket}/notes.txt", "cannot tell the file's format"),
    ],
)
def test_objects_that_cannot_be_read_are_errors(store: Storage, bucket: str, uri: str, message: str) -> None:
    store.write("notes.txt", b"x")
    with pytest.raises(PlumblineError, match=message) as error:
        read_rows(uri.format(bucket=bucket))
    assert uri.format(bucket=bucket) in str(error.value)


def test_the_digest_of_objects_changes_with_their_content(store: Storage) -> None:
    address = f"{store.uri}/a.jsonl"
    store.write("a.jsonl", b'{"n": 1}')
    before = data_digest(address)
    assert before == data_digest(address)
    store.write("a.jsonl", b'{"n": 2}')
    assert data_digest(address) != before


def test_the_digest_of_files_sees_content_and_names_but_not_the_place(tmp_path: Path) -> None:
    one = write_rows(tmp_path / "one" / "a.jsonl", [{"n": 1}])
    write_rows(tmp_path / "two" / "a.jsonl", [{"n": 1}])
    assert data_digest(str(tmp_path / "one")) == data_digest(str(tmp_path / "two"))
    assert data_digest(one) == data_digest(str(tmp_path / "two" / "a.jsonl"))
    before = data_digest(str(tmp_path / "one"))
    write_rows(tmp_path / "one" / "b.jsonl", [{"n": 2}])
    assert data_digest(str(tmp_path / "one")) != before
    assert data_digest("") != before
    with pytest.raises(InputError, match="no such file"):
        data_digest(str(tmp_path / "missing"))


def _make_pairs(folder: Path, **files: object) -> str:
    with write_artifact(folder, "pairs", stage="test") as draft:
        for name, content in files.items():
            if name == "source":
                write_json(draft.path / "user" / "source.json", content)
            else:
                write_rows(draft.path / name.replace("__", "/").replace("_jsonl", ".jsonl"), [content])
    return str(folder)


def test_a_pairs_artifact_is_its_pairs_or_the_users_files_or_where_its_source_points(tmp_path: Path) -> None:
    outside = write_rows(tmp_path / "outside.jsonl", [{"n": 3}])
    sampled = _make_pairs(tmp_path / "sampled", pairs_jsonl={"n": 1}, provenance_jsonl={"n": 9})
    copied = _make_pairs(tmp_path / "copied", user__mine_jsonl={"n": 2}, provenance_jsonl={"n": 9})
    pointed = _make_pairs(tmp_path / "pointed", source={"uri": outside})
    assert [[row.values for row in read_rows(uri)] for uri in (sampled, copied, pointed)] == [
        [{"n": 1}],
        [{"n": 2}],
        [{"n": 3}],
    ]
    assert len({data_digest(uri) for uri in (sampled, copied, pointed)}) == 3


def test_an_artifact_of_another_kind_or_an_altered_one_is_not_read(tmp_path: Path) -> None:
    with write_artifact(tmp_path / "dataset", "dataset", stage="test") as draft:
        write_rows(draft.path / "a.jsonl", [{}])
    with pytest.raises(ArtifactError, match="expected pairs"):
        read_rows(str(tmp_path / "dataset"))
    altered = _make_pairs(tmp_path / "altered", pairs_jsonl={"n": 1})
    write_rows(Path(altered) / "pairs.jsonl", [{"n": 2}])
    with pytest.raises(ArtifactError, match="altered"):
        read_rows(altered)


def test_hub_addresses_are_parsed() -> None:
    plain = parse_hub_address("hf://acme/pairs")
    assert (plain.name, plain.revision, plain.split) == ("acme/pairs", None, "train")
    full = parse_hub_address("hf://datasets/acme/pairs-v2@main/test")
    assert (full.name, full.revision, full.split) == ("acme/pairs-v2", "main", "test")
    for wrong in ("hf://pairs", "hf://", "hf://a/b/c/d"):
        with pytest.raises(InputError, match="not a hub address"):
            parse_hub_address(wrong)


def test_a_hub_address_that_names_its_commit_needs_no_answer_from_the_hub() -> None:
    commits = ["0" * 40, "1" * 40]
    assert len({data_digest(f"hf://acme/pairs@{commit}") for commit in commits}) == 2


def test_an_unknown_scheme_is_an_error() -> None:
    with pytest.raises(InputError, match="unknown kind of address"):
        data_digest("gs://bucket/x.jsonl")
