"""Addresses: local, object storage (a small server that speaks S3's two calls), hub; and digests that see changes."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit
from xml.sax.saxutils import escape

import pytest
from tiny_validation import write_rows

from components.data_validation.sources import read_rows
from components.shared.artifacts import write_artifact
from components.shared.errors import ArtifactError, InputError
from components.shared.files import write_json
from components.shared.locations import data_digest, open_location, parse_hub_address

Store = dict[str, bytes]


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """Objects of the bucket `data`, served on the loopback."""
    store: Store = {}

    class Handler(BaseHTTPRequestHandler):
        def _answer(self, status: int, body: bytes, **headers: str) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def _serve(self) -> None:
            url = urlsplit(self.path)
            name, _, key = url.path.lstrip("/").partition("/")
            if name != "data":
                self._answer(404, b"<Error><Code>NoSuchBucket</Code><Message>none</Message></Error>")
            elif key:
                self._answer(200, store[key], ETag=_etag(store[key]), Last_Modified="Thu, 01 Jan 2026 00:00:00 GMT")
            else:
                prefix = parse_qs(url.query).get("prefix", [""])[0]
                self._answer(200, _listing(store, prefix).encode(), Content_Type="application/xml")

        do_GET = do_HEAD = _serve

        def log_message(self, format: str, *args: object) -> None:
            del format, args

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    yield store
    server.shutdown()
    server.server_close()


def _etag(content: bytes) -> str:
    return f'"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"'


def _listing(store: Store, prefix: str) -> str:
    entries = "".join(
        f"<Contents><Key>{escape(key)}</Key><ETag>{escape(_etag(body))}</ETag><Size>{len(body)}</Size>"
        "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
        for key, body in store.items()
        if key.startswith(prefix)
    )
    return f"<ListBucketResult><Name>data</Name><IsTruncated>false</IsTruncated>{entries}</ListBucketResult>"


def test_object_storage_is_read_by_key_and_by_prefix_and_rows_name_their_object(bucket: Store) -> None:
    bucket.update({"set/b.jsonl": b'{"n": 2}', "set/a.jsonl": b'{"n": 1}', "set/_log.txt": b"x", "settle.jsonl": b"{}"})
    assert [(row.file, row.values) for row in read_rows("s3://data/set")] == [
        ("s3://data/set/a.jsonl", {"n": 1}),
        ("s3://data/set/b.jsonl", {"n": 2}),
    ]
    assert [row.values for row in read_rows("s3://data/set/b.jsonl")] == [{"n": 2}]


def test_what_was_fetched_is_removed_again(bucket: Store) -> None:
    bucket["a.jsonl"] = b"{}"
    with open_location("s3://data/a.jsonl") as files:
        assert isinstance(files, list)
        assert files[0].path.is_file()
    assert not files[0].path.exists()


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("s3://data/nothing", "no data file"),
        ("s3://other/x.jsonl", "cannot list.*AWS_ENDPOINT_URL"),
        ("s3://data/notes.txt", "cannot tell the file's format"),
    ],
)
def test_objects_that_cannot_be_read_are_errors(bucket: Store, uri: str, message: str) -> None:
    bucket["notes.txt"] = b"x"
    with pytest.raises(InputError, match=message) as error:
        read_rows(uri)
    assert uri in str(error.value)


def test_the_digest_of_objects_changes_with_their_content(bucket: Store) -> None:
    bucket["a.jsonl"] = b'{"n": 1}'
    before = data_digest("s3://data/a.jsonl")
    assert before == data_digest("s3://data/a.jsonl")
    bucket["a.jsonl"] = b'{"n": 2}'
    assert data_digest("s3://data/a.jsonl") != before


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
