"""Storage: the same promises of a folder and of a real S3 server; and errors that say what, where and what to do."""

from __future__ import annotations

import datetime
import os
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from botocore.exceptions import CredentialRetrievalError, MetadataRetrievalError
from fault_proxy import FaultProxy, make_authority
from s3_server import S3Server

from components.shared import s3, storage
from components.shared.errors import InputError
from components.shared.s3_faults import storage_errors
from components.shared.storage import Storage, StorageError, open_storage


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "WAITS_SECONDS", (0.01,))
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "folder":
        return open_storage(tmp_path / "store" / "deep")
    return open_storage(f"s3://{request.getfixturevalue('bucket')}/a/b/")


# --- what a folder and a bucket have in common -----------------------------------------------------------------------


def test_objects_are_written_read_listed_and_deleted(store):
    store.write("runs/one", b"1")
    store.write("runs/two", b"2")
    store.write("ruin", b"3")
    store.write("runs/two", b"22")

    assert store.names("runs/") == ["runs/one", "runs/two"]
    assert [(each.name, each.size) for each in store.listing()] == [("ruin", 1), ("runs/one", 1), ("runs/two", 2)]
    found = store.read("runs/two")
    assert found is not None
    assert found.content == b"22"
    assert -1 <= found.age < 30
    assert store.read("runs/three") is None
    store.delete("runs/one", "never-there")
    assert store.names("runs/") == ["runs/two"]


def test_the_tag_of_an_object_changes_with_its_content(store):
    store.write("x", b"1")
    (before,) = store.listing()
    store.write("x", b"2")
    assert store.listing()[0].tag != before.tag


def test_an_object_is_created_once(store):
    assert store.create("lease", b"mine")
    assert store.create("lease", b"mine"), "asked again because its answer was lost, it is still ours"
    assert not store.create("lease", b"theirs")

    found = store.read("lease")
    assert found is not None
    assert found.content == b"mine"
    assert store.names() == ["lease"]


def test_of_many_that_create_at_once_one_wins(store):
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda number: store.create("lease", f"{number}".encode()), range(8)))
    assert sum(won) == 1
    found = store.read("lease")
    assert found is not None
    assert found.content == f"{won.index(True)}".encode()


def test_files_go_up_and_come_down_and_those_that_are_not_there_are_named(store, tmp_path):
    (tmp_path / "large").write_bytes(bytes(range(256)) * 2**16)  # two parts of boto3's 8 MiB
    (tmp_path / "small").write_bytes(b"small")
    (tmp_path / "empty").write_bytes(b"")
    files = {f"x/{name}": tmp_path / name for name in ("large", "small", "empty")}

    store.upload(files)
    wanted = {name: path.with_suffix(".back") for name, path in files.items()}
    faults = store.download(wanted | {"x/none": tmp_path / "none"})

    assert faults == {"x/none": "is missing"}
    for path in files.values():
        assert path.with_suffix(".back").read_bytes() == path.read_bytes()
    assert not (tmp_path / "none").exists()


def test_local_copies_have_the_content_and_a_missing_one_is_an_error(store, tmp_path):
    store.write("x/a.jsonl", b"{}")
    copies = store.local_copies(["x/a.jsonl"], tmp_path)
    assert copies["x/a.jsonl"].read_bytes() == b"{}"
    assert copies["x/a.jsonl"].suffix == ".jsonl"


# --- a folder --------------------------------------------------------------------------------------------------------


def test_what_a_folder_half_holds_is_hidden(tmp_path):
    store = open_storage(f"file://{tmp_path}")
    store.write("one", b"1")
    (tmp_path / ".one.half").write_bytes(b"")
    assert store.names() == ["one"]


def test_a_folder_is_listed_while_others_delete_in_it(tmp_path, monkeypatch):
    store, look = open_storage(tmp_path / "busy"), Path.stat
    store.write("stays", b"x")
    store.write("goes", b"x")

    def looked_at(path: Path, **options: Any) -> os.stat_result:
        about = look(path, **options)
        if path.name == "goes":
            path.unlink()
        return about

    monkeypatch.setattr(Path, "stat", looked_at)
    assert "stays" in store.names()
    assert store.names() == ["stays"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=rf"{tmp_path}/file/x: cannot write: .*Check the folder"):
        open_storage(tmp_path / "file").write("x", b"")


# --- object storage: each file with its own sha256 -------------------------------------------------------------------


def test_a_file_that_was_altered_there_is_reported_and_not_handed_on(bucket, bucket_client, tmp_path):
    store = open_storage(f"s3://{bucket}")
    (tmp_path / "file").write_bytes(b"good")
    store.upload({"file": tmp_path / "file"})
    digest = bucket_client.head_object(Bucket=bucket, Key="file")["Metadata"]
    bucket_client.put_object(Bucket=bucket, Key="file", Body=b"evil", Metadata=digest)

    faults = store.download({"file": tmp_path / "back"})

    assert faults["file"].startswith("is damaged: its sha256 is ")
    assert not (tmp_path / "back").exists()
    with pytest.raises(StorageError, match=r"/file: is damaged.*Start again"):
        store.local_copies(["file"], tmp_path)


def test_a_file_that_is_replaced_while_it_is_read_is_read_again(bucket, bucket_client, tmp_path, monkeypatch):
    store = open_storage(f"s3://{bucket}")
    (tmp_path / "file").write_bytes(b"old")
    store.upload({"file": tmp_path / "file"})
    heads = s3.S3Storage._heads

    def replaced_meanwhile(self: s3.S3Storage, names: Any) -> Any:
        monkeypatch.setattr(s3.S3Storage, "_heads", heads)
        found = heads(self, names)
        (tmp_path / "file").write_bytes(b"new")
        store.upload({"file": tmp_path / "file"})
        return found

    monkeypatch.setattr(s3.S3Storage, "_heads", replaced_meanwhile)
    assert store.download({"file": tmp_path / "back"}) == {}
    assert (tmp_path / "back").read_bytes() == b"new"


# --- object storage: conditional writes elsewhere --------------------------------------------------------------------


def test_conditional_writes_work_on_another_server_too(monkeypatch):
    """moto's: it has them by itself, while Swift's go through a filter of ours."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://{}:{}".format(*server.get_host_and_port()))
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "any")
        monkeypatch.setenv("AWS_REGION", "us-east-1")
        store = open_storage("s3://conditions")
        store._client.create_bucket(Bucket="conditions")  # pyright: ignore[reportAttributeAccessIssue]
        assert store.create("x", b"mine")
        assert not store.create("x", b"theirs")
    finally:
        server.stop()


def test_a_server_without_conditional_writes_is_named(tmp_path, monkeypatch):
    server = S3Server(tmp_path, conditional=False)
    server.start()
    try:
        server.make_bucket("plain")
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        with pytest.raises(StorageError, match=r"knows no conditional writes.*Use one that does, or a folder"):
            open_storage("s3://plain").create("x", b"")
        assert open_storage("s3://plain").names() == []
    finally:
        server.stop()


# --- object storage: what can be wrong -------------------------------------------------------------------------------


@pytest.mark.parametrize("uri", ["s3://", "s3:///prefix"])
def test_an_address_that_is_none_is_refused(uri):
    with pytest.raises(InputError, match="Write s3://bucket/prefix"):
        open_storage(uri)


def test_a_bucket_that_is_not_there_is_named_whatever_is_asked(bucket, tmp_path):
    store = open_storage("s3://absent-one/runs")
    (tmp_path / "x").touch()
    for ask in (
        store.names,
        lambda: store.write("x", b""),
        lambda: store.create("x", b""),
        lambda: store.upload({"x": tmp_path / "x"}),
        lambda: store.download({"x": tmp_path / "x"}),
    ):
        with pytest.raises(StorageError, match=r"no bucket 'absent-one' at http://127.0.0.1.*Create it") as caught:
            ask()
        assert not caught.value.transient


def test_a_wrong_secret_key_is_named_whatever_is_asked(bucket, monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    store = open_storage(f"s3://{bucket}/runs")
    for ask in (store.names, lambda: store.write("x", b""), lambda: store.download({"x": tmp_path / "x"})):
        with pytest.raises(StorageError, match=r"do not fit together.*and AWS_SECRET_ACCESS_KEY") as caught:
            ask()
        assert not caught.value.transient


def test_an_unknown_access_key_is_named(bucket, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody:here")
    with pytest.raises(StorageError, match=r"keys? do not fit together.*Check AWS_ACCESS_KEY_ID"):
        open_storage(f"s3://{bucket}").names()


@pytest.mark.parametrize(("hours", "told"), [(-2, "72.. s behind the server's"), (2, "72.. s ahead of the server's")])
def test_a_wrong_clock_is_named(bucket, monkeypatch, hours, told):
    import time

    import botocore.auth

    right, now = botocore.auth.get_current_datetime, time.time
    off = datetime.timedelta(hours=hours, seconds=30 if hours > 0 else -30)
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda *a, **k: right(*a, **k) + off)
    monkeypatch.setattr(time, "time", lambda: now() + off.total_seconds())
    with pytest.raises(StorageError, match=rf"refuses this machine's clock.*{told}.*Set the clock"):
        open_storage(f"s3://{bucket}").names()


def test_a_wrong_region_is_mended_where_the_server_tells_the_right_one(bucket, monkeypatch):
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-west-7")
    store = open_storage(f"s3://{bucket}")
    store.write("x", b"1")
    assert store.names() == ["x"]


@pytest.fixture
def proxy(storage_server: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    with FaultProxy(storage_server.host, storage_server.port) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.address)
        yield proxy


def test_a_wrong_region_is_named_where_it_does_not(bucket, proxy):
    proxy.arm("status", status=400, code="AuthorizationHeaderMalformed", times=9)
    with pytest.raises(StorageError, match=r"region is another one, asked for in eu-test-1.*Set AWS_REGION"):
        open_storage(f"s3://{bucket}").names()


@pytest.mark.parametrize(
    ("status", "code", "told"),
    [
        (403, "AccessDenied", "no right to write .*s3:PutObject"),
        (403, "InvalidAccessKeyId", "does not know the access key.*Check AWS_ACCESS_KEY_ID"),
        (400, "ExpiredToken", "credentials have expired.*Fetch new ones"),
        (403, "QuotaExceeded", "the bucket is full.*Raise its quota"),
        (418, "Odd", "cannot write at http://127.0.0.1.*Odd"),
    ],
)
def test_a_refusal_is_told_and_not_tried_again(bucket, proxy, status, code, told):
    proxy.arm("status", status=status, code=code, times=9)
    with pytest.raises(StorageError, match=told) as caught:
        open_storage(f"s3://{bucket}/runs").write("x", b"")
    assert f"s3://{bucket}/runs/x" in str(caught.value)
    assert not caught.value.transient
    assert len(proxy.requests) == 1


def test_missing_credentials_are_named(bucket, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(StorageError, match=r"no credentials.*Set AWS_ACCESS_KEY_ID"):
        open_storage(f"s3://{bucket}").names()


@pytest.mark.parametrize(
    ("error", "transient"),
    [
        (CredentialRetrievalError(provider="assume-role-with-web-identity", error_msg="expired"), False),
        (MetadataRetrievalError(error_msg="timed out"), True),
    ],
)
def test_a_login_that_cannot_be_renewed_is_named_and_not_the_server(error, transient):
    client = SimpleNamespace(meta=SimpleNamespace(endpoint_url="https://objects.example.com"))
    with pytest.raises(StorageError, match="credentials could not be fetched") as caught:  # noqa: SIM117
        with storage_errors(client, "bucket", "read", "s3://bucket/x", seen=True):
            raise error
    assert "objects.example.com" not in str(caught.value)
    assert caught.value.transient is transient


@pytest.mark.parametrize(
    ("status", "code"), [(507, "XMinioStorageFull"), (400, "XMinioAdminBucketQuotaExceeded"), (403, "QuotaExceeded")]
)
def test_a_full_bucket_is_told_and_not_waited_for(bucket, proxy, status, code):
    proxy.arm("status", "PUT", times=9, status=status, code=code)
    with pytest.raises(StorageError, match="full") as caught:
        open_storage(f"s3://{bucket}/x").write("y", b"1")
    assert not caught.value.transient


def test_an_endpoint_that_does_not_answer_is_named(bucket, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", address)
    with pytest.raises(StorageError, match=f"{address} does not answer.*Check AWS_ENDPOINT_URL") as caught:
        open_storage(f"s3://{bucket}").names()
    assert caught.value.transient


def test_an_endpoint_that_is_no_address_is_named(bucket, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "storage.example")
    with pytest.raises(InputError, match=r"AWS_ENDPOINT_URL.*Write http"):
        open_storage(f"s3://{bucket}").names()


@pytest.mark.parametrize("body", ["<html><body>Log in<br></body></html>", "not found"])
def test_an_endpoint_that_is_not_s3_is_named(bucket, proxy, body):
    proxy.arm("status", status=404, body=body, times=9)
    with pytest.raises(StorageError, match=r"is not S3.*must lead to the S3 API"):
        open_storage(f"s3://{bucket}").names()


# --- object storage: settings ----------------------------------------------------------------------------------------


def test_a_private_authority_is_trusted_once_it_is_named(bucket, storage_server, monkeypatch, tmp_path):
    authority, certificates = make_authority(tmp_path)
    with FaultProxy(storage_server.host, storage_server.port, certificates=certificates) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.address)
        with pytest.raises(StorageError, match=r"no trusted TLS connection to https://.*Set AWS_CA_BUNDLE") as caught:
            open_storage(f"s3://{bucket}").names()
        assert not caught.value.transient
        monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "absent.pem"))
        with pytest.raises(InputError, match=r"AWS_CA_BUNDLE=.*absent.pem: no such file"):
            open_storage(f"s3://{bucket}").names()
        monkeypatch.setenv("AWS_CA_BUNDLE", str(authority))
        store = open_storage(f"s3://{bucket}")
        (tmp_path / "file").write_bytes(os.urandom(2**20))
        store.upload({"file": tmp_path / "file"})
        assert store.create("small", b"x")
        assert store.download({"file": tmp_path / "back"}) == {}
        assert (tmp_path / "back").read_bytes() == (tmp_path / "file").read_bytes()


@pytest.mark.parametrize(
    ("endpoint", "style", "url"),
    [
        ("http://storage.example:9000", None, "http://storage.example:9000/bucket/k"),
        ("http://storage.example:9000", "virtual", "http://bucket.storage.example:9000/k"),
        (None, None, "https://bucket.s3.amazonaws.com/k"),
        (None, "path", "https://s3.eu-test-1.amazonaws.com/bucket/k"),
    ],
)
def test_how_a_bucket_is_addressed_is_a_setting(monkeypatch, endpoint, style, url):
    for name, value in {"AWS_ENDPOINT_URL": endpoint, s3.ADDRESSING_VARIABLE: style}.items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name, raising=False)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "any")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-test-1")
    client: Any = open_storage("s3://bucket")._client  # pyright: ignore[reportAttributeAccessIssue]
    assert client.generate_presigned_url("get_object", {"Bucket": "bucket", "Key": "k"}).partition("?")[0] == url


def test_an_unknown_addressing_style_is_refused(bucket, monkeypatch):
    monkeypatch.setenv(s3.ADDRESSING_VARIABLE, "paths")
    with pytest.raises(InputError, match=r"PLUMBLINE_S3_ADDRESSING_STYLE: 'paths' is no"):
        open_storage(f"s3://{bucket}").names()
