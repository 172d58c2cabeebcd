"""Objects on a real S3 server on the loopback: conditional writes, and errors that say what, where and what to do."""

from __future__ import annotations

import socket
from typing import Any

import boto3
import pytest

from components.shared.errors import InputError
from components.shared.object_storage import ObjectPrefix, StorageError


def test_objects_are_written_read_listed_and_deleted_below_the_prefix(bucket, bucket_client):
    prefix = ObjectPrefix(f"s3://{bucket}/a/b/")
    bucket_client.put_object(Bucket=bucket, Key="a/bc", Body=b"a neighbour's")

    prefix.write("one", b"1")
    prefix.write("two", b"2")

    assert prefix.names("") == ["one", "two"]
    found = prefix.read("one")
    assert found is not None
    assert found.content == b"1"
    assert -1 <= found.age < 30
    assert prefix.read("three") is None
    prefix.delete("one", "never-there")
    assert prefix.names("") == ["two"]


def test_files_go_up_and_come_down_and_those_that_are_not_there_are_named(bucket, tmp_path):
    prefix = ObjectPrefix(f"s3://{bucket}")
    (tmp_path / "large").write_bytes(bytes(range(256)) * 2**16)  # two parts of boto3's 8 MiB
    (tmp_path / "small").write_bytes(b"small")

    prefix.upload({"x/large": tmp_path / "large", "x/small": tmp_path / "small"})
    absent = prefix.download({f"x/{name}": tmp_path / f"{name}.back" for name in ("large", "small", "none")})

    assert absent == ["x/none"]
    for name in ("large", "small"):
        assert (tmp_path / f"{name}.back").read_bytes() == (tmp_path / name).read_bytes()


def test_an_object_is_created_once(bucket):
    prefix = ObjectPrefix(f"s3://{bucket}/runs")

    assert prefix.create("lease", b"mine")
    assert not prefix.create("lease", b"theirs")

    found = prefix.read("lease")
    assert found is not None
    assert found.content == b"mine"


def test_a_creation_whose_answer_was_lost_and_that_was_sent_again_is_ours(bucket):
    prefix = ObjectPrefix(f"s3://{bucket}")
    client = prefix._client

    class Resending:
        meta = client.meta
        get_object = client.get_object

        def put_object(self, **request: Any) -> Any:
            client.put_object(**request)
            return client.put_object(**request)  # 412, against ourselves

    prefix.__dict__["_client"] = Resending()

    assert prefix.create("lease", b"mine")
    assert not prefix.create("lease", b"theirs")


@pytest.mark.parametrize("uri", ["s3://", "/a/folder", "s3:///prefix"])
def test_an_address_that_is_none_is_refused(uri):
    with pytest.raises(InputError, match="Write s3://bucket/prefix"):
        ObjectPrefix(uri)


def test_a_bucket_that_is_not_there_is_named(bucket):
    with pytest.raises(StorageError, match=r"no bucket 'absent-one' at http://127.0.0.1.*Create it") as caught:
        ObjectPrefix("s3://absent-one/runs").names("")
    assert not caught.value.transient


def test_a_missing_right_is_named(bucket, refuse_credentials):
    refuse_credentials()
    with pytest.raises(StorageError, match=f"s3://{bucket}/runs/x: no right to write .*s3:PutObject") as caught:
        ObjectPrefix(f"s3://{bucket}/runs").write("x", b"")
    assert not caught.value.transient


def test_missing_credentials_are_named(bucket, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # it remembers credentials
    with pytest.raises(StorageError, match=r"no credentials.*Set AWS_ACCESS_KEY_ID"):
        ObjectPrefix(f"s3://{bucket}").names("")


def test_an_endpoint_that_does_not_answer_is_named(bucket, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", address)
    with pytest.raises(StorageError, match=f"{address} does not answer.*Check AWS_ENDPOINT_URL") as caught:
        ObjectPrefix(f"s3://{bucket}").names("")
    assert caught.value.transient


def test_an_endpoint_that_is_no_address_is_named(bucket, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "storage.example")
    with pytest.raises(InputError, match=r"AWS_ENDPOINT_URL.*Write http"):
        ObjectPrefix(f"s3://{bucket}").names("")
