"""Object storage: `Storage` below `s3://bucket/prefix`, by boto3.

Endpoint, region, credentials and certificates come from the standard AWS environment variables (`AWS_ENDPOINT_URL`,
`AWS_REGION`, `AWS_CA_BUNDLE` and the like), and how a bucket is addressed from `PLUMBLINE_S3_ADDRESSING_STYLE`.

The body of each request, so each part of a large file, is signed with its sha256, and a server refuses one that was
altered on the way; that works on servers that know none of Amazon's newer checksums. The sha256 of a whole file travels
with it as metadata, for an ETag is no digest of a file that came in parts, and is checked when the file comes back.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

from components.shared.errors import InputError
from components.shared.files import sha256_file
from components.shared.s3_faults import storage_errors
from components.shared.storage import Listed, Storage, StorageError, StoredObject, is_object_storage, waited_for

__all__ = ["ADDRESSING_VARIABLE", "S3Storage"]

ADDRESSING_VARIABLE = "PLUMBLINE_S3_ADDRESSING_STYLE"
_CHECKSUMS_VARIABLE = "AWS_REQUEST_CHECKSUM_CALCULATION"
_STYLES = ("auto", "path", "virtual")
_CONNECT_SECONDS = 10
_READ_SECONDS = 60
_CONNECTIONS = 24
"""A transfer manager uses ten, looking at what there is eight, and a lease's thread one."""
_LOOKERS = 8
_CONFLICT_RETRIES = 5
_DIGEST = "sha256"
_ABSENT = ("404", "NoSuchKey")

_Answer = TypeVar("_Answer")


class S3Storage(Storage):
    """The objects below `s3://bucket/prefix`."""

    def __init__(self, uri: str, *, waits: tuple[float, ...]) -> None:
        """Parses the address; nothing is asked of the server yet.

        Raises:
            InputError: It is not `s3://bucket[/prefix]`.
        """
        bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        if not is_object_storage(uri) or not bucket:
            raise InputError("is not an address in object storage.", where=uri, hint="Write s3://bucket/prefix.")
        self.uri = uri.rstrip("/")
        self._bucket = bucket
        self._prefix = prefix.strip("/") + "/" if prefix.strip("/") else ""
        self._waits = waits
        self._seen = False

    def listing(self, under: str = "") -> list[Listed]:
        def ask() -> list[Listed]:
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=self._key(under))
            return [
                Listed(item["Key"].removeprefix(self._prefix), item["Size"], item["ETag"])
                for page in pages
                for item in page.get("Contents", [])
            ]

        return sorted(self._ask("list", under, ask), key=lambda each: each.name)

    def read(self, name: str) -> StoredObject | None:
        return self._ask("read", name, lambda: self._read(name))

    def _read(self, name: str) -> StoredObject | None:
        from botocore.exceptions import ClientError

        try:
            answer = self._client.get_object(Bucket=self._bucket, Key=self._key(name))
        except ClientError as error:
            if error.response["Error"]["Code"] == "NoSuchKey":
                return None
            raise
        now = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
        seconds = parsedate_to_datetime(now).timestamp() if now else time.time()
        return StoredObject(answer["Body"].read(), seconds - answer["LastModified"].timestamp())

    def write(self, name: str, content: bytes) -> None:
        self._ask("write", name, lambda: self._put(name, content))

    def create(self, name: str, content: bytes) -> bool:
        for attempt in range(_CONFLICT_RETRIES):
            time.sleep(0.1 * attempt)
            if self._put_if_absent(name, content):
                return True
            if (found := self.read(name)) is not None:
                return found.content == content
        raise StorageError(
            f"cannot write: {_CONFLICT_RETRIES} times in a row another write of it was under way, and none came of it.",
            where=f"{self.uri}/{name}",
            hint="Try again.",
            transient=True,
        )

    def _put_if_absent(self, name: str, content: bytes) -> bool:
        from botocore.exceptions import ClientError

        def ask() -> bool:
            try:
                self._put(name, content, IfNoneMatch="*")
            except ClientError as error:
                status = error.response["ResponseMetadata"]["HTTPStatusCode"]
                if status in (409, 412):  # 409: another write of it is in progress
                    return False
                if status == 501:
                    raise StorageError(
                        "the server knows no conditional writes (If-None-Match).",
                        where=self._client.meta.endpoint_url,
                        hint="Use one that does, or a folder.",
                    ) from error
                raise
            return True

        return self._ask("write", name, ask)

    def _put(self, name: str, content: bytes, **condition: str) -> None:
        self._client.put_object(Bucket=self._bucket, Key=self._key(name), Body=content, **condition)

    def delete(self, *names: str) -> None:
        for name in names:
            ask = partial(self._client.delete_object, Bucket=self._bucket, Key=self._key(name))
            self._ask("delete", name, ask)

    def upload(self, files: Mapping[str, Path], digests: Mapping[str, str] | None = None) -> None:
        known = {name: (digests or {}).get(name) or sha256_file(path) for name, path in files.items()}
        left = dict(files)
        tried = False

        def ask() -> None:
            nonlocal tried
            if tried:  # what arrived although its answer was lost
                self._forget_those_there(left, known)
            tried = True
            with self._transfers() as manager:
                transfers = {
                    name: manager.upload(
                        str(file), self._bucket, self._key(name), extra_args={"Metadata": {_DIGEST: known[name]}}
                    )
                    for name, file in left.items()
                }
                for name, transfer in transfers.items():
                    transfer.result()
                    del left[name]

        self._ask("write", "", ask)

    def _forget_those_there(self, left: dict[str, Path], digests: Mapping[str, str]) -> None:
        for name, head in self._heads(left).items():
            if head is not None and head.get("Metadata", {}).get(_DIGEST) == digests[name]:
                del left[name]

    def download(self, files: Mapping[str, Path]) -> dict[str, str]:
        left = dict(files)
        faults: dict[str, str] = {}

        def ask() -> None:
            heads = self._heads(left)
            faults.update({name: "is missing" for name, head in heads.items() if head is None})
            found = {name: head for name, head in heads.items() if head is not None}
            with self._transfers() as manager:
                transfers = {
                    name: manager.download(self._bucket, self._key(name), str(left[name]), subscribers=[_Known(head)])
                    for name, head in found.items()
                }
                for name, transfer in transfers.items():
                    transfer.result()
                    if fault := _damage(left[name], found[name]):
                        self._require_same(name, found[name]["ETag"])
                        faults[name] = fault
                    del left[name]

        self._ask("read", "", ask)
        return faults

    def _require_same(self, name: str, tag: str) -> None:
        """An object that was replaced between the look at it and its transfer is not damaged; it is read again."""
        head = self._head(name)
        if head is None or head["ETag"] != tag:
            where = f"{self.uri}/{name}"
            raise StorageError("it was replaced while it was read.", where=where, hint="Try again.", transient=True)

    def _heads(self, names: Mapping[str, Path]) -> dict[str, dict[str, Any] | None]:
        """What the server says of objects; None for one that is not there."""
        with ThreadPoolExecutor(_LOOKERS) as pool:
            heads = dict(zip(names, pool.map(self._head, names), strict=True))
        if None in heads.values():  # its answer does not tell an absent object from an absent bucket
            self._client.list_objects_v2(Bucket=self._bucket, Prefix=self._prefix, MaxKeys=1)
        return heads

    def _head(self, name: str) -> dict[str, Any] | None:
        from botocore.exceptions import ClientError

        try:
            return self._client.head_object(Bucket=self._bucket, Key=self._key(name))
        except ClientError as error:
            if error.response["Error"]["Code"] in _ABSENT:
                return None
            if error.response["ResponseMetadata"]["HTTPStatusCode"] < 500:  # it has no body, and cannot tell the cause
                self._client.list_objects_v2(Bucket=self._bucket, Prefix=self._prefix, MaxKeys=1)
            raise

    def _transfers(self) -> Any:
        from boto3.s3.transfer import TransferConfig, create_transfer_manager

        return create_transfer_manager(self._client, TransferConfig())

    def _key(self, name: str) -> str:
        return self._prefix + name

    def _ask(self, action: str, name: str, ask: Callable[[], _Answer]) -> _Answer:
        where = f"{self.uri}/{name}" if name else self.uri

        def once() -> _Answer:
            with storage_errors(self._client, self._bucket, action, where, seen=self._seen):
                answer = ask()
            self._seen = True
            return answer

        return waited_for(once, self._waits)

    @cached_property
    def _client(self) -> Any:
        from boto3.session import Session
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError

        config = Config(
            connect_timeout=_CONNECT_SECONDS,
            read_timeout=_READ_SECONDS,
            max_pool_connections=_CONNECTIONS,
            s3={"addressing_style": _addressing_style(), "payload_signing_enabled": True},
        )
        if _CHECKSUMS_VARIABLE not in os.environ:
            config = config.merge(Config(request_checksum_calculation="when_required"))
        if (bundle := os.environ.get("AWS_CA_BUNDLE")) and not Path(bundle).is_file():
            raise InputError("no such file.", where=f"AWS_CA_BUNDLE={bundle}", hint="Give a file with certificates.")
        try:
            return Session().client("s3", config=config)
        except ValueError as error:
            raise InputError(f"{error}.", where="AWS_ENDPOINT_URL", hint="Write http(s)://host[:port].") from error
        except BotoCoreError as error:
            raise InputError(f"{error}.", where=self.uri, hint="Check the AWS_* variables.") from error


class _Known:
    """Spares a transfer the question for size and tag; with the tag, no object is read that changes meanwhile."""

    def __init__(self, head: Mapping[str, Any]) -> None:
        self._head = head

    def on_queued(self, future: Any, **_: Any) -> None:
        future.meta.provide_transfer_size(self._head["ContentLength"])
        future.meta.provide_object_etag(self._head["ETag"])


def _damage(file: Path, head: Mapping[str, Any]) -> str | None:
    """What is wrong with a file that came, by its own digest where it has one."""
    expected = head.get("Metadata", {}).get(_DIGEST)
    if expected is None or (found := sha256_file(file)) == expected:
        return None
    file.unlink()
    return f"is damaged: its sha256 is {found[:12]}..., {expected[:12]}... was stored"


def _addressing_style() -> str:
    style = os.environ.get(ADDRESSING_VARIABLE, "auto")
    if style not in _STYLES:
        raise InputError(f"{style!r} is no addressing style.", where=ADDRESSING_VARIABLE, hint="auto, path or virtual.")
    return style
