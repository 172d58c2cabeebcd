"""A prefix of an S3 bucket: small objects, conditional writes, files by boto3's transfer manager, errors for a person.

Endpoint, region and credentials come from the standard AWS environment variables (`AWS_ENDPOINT_URL` and the like).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from components.shared.errors import InputError, PlumblineError

__all__ = ["ObjectPrefix", "StorageError", "StoredObject", "is_object_storage"]

_SCHEME = "s3://"
_CONNECT_SECONDS = 10
_READ_SECONDS = 60
_CONNECTIONS = 16
"""A transfer manager uses ten, and the lease's thread one."""
_CONFLICT_RETRIES = 5
_TRANSIENT_CODES = {"RequestTimeout", "SlowDown", "Throttling", "ThrottlingException", "TooManyRequests"}
_RIGHTS = "s3:ListBucket, s3:GetObject, s3:PutObject and s3:DeleteObject"


class StorageError(PlumblineError):
    """Object storage did not do what was asked of it.

    Attributes:
        transient: Whether to ask again may help: it did not answer, or was too busy.
    """

    def __init__(self, problem: str, *, where: str, hint: str | None = None, transient: bool = False) -> None:
        super().__init__(problem, where=where, hint=hint)
        self.transient = transient


@dataclass(frozen=True)
class StoredObject:
    """A small object.

    Attributes:
        content: Its bytes.
        age: Seconds since it was written, both times read off the server's clock.
    """

    content: bytes
    age: float


def is_object_storage(place: str) -> bool:
    """Whether `place` names object storage rather than a folder."""
    return place.startswith(_SCHEME)


class ObjectPrefix:
    """The objects below `s3://bucket/prefix`, by their names below it."""

    def __init__(self, uri: str) -> None:
        """Parses the address; nothing is asked of the server yet.

        Raises:
            InputError: It is not `s3://bucket[/prefix]`.
        """
        bucket, _, prefix = uri.removeprefix(_SCHEME).partition("/")
        if not is_object_storage(uri) or not bucket:
            raise InputError("is not an address in object storage.", where=uri, hint="Write s3://bucket/prefix.")
        self.uri = uri.rstrip("/")
        self._bucket = bucket
        self._prefix = prefix.strip("/") + "/" if prefix.strip("/") else ""

    def names(self, under: str) -> list[str]:
        """Names of all objects that start with `under`, sorted."""
        with self._errors("list", under):
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=self._key(under))
            return sorted(item["Key"].removeprefix(self._prefix) for page in pages for item in page.get("Contents", []))

    def read(self, name: str) -> StoredObject | None:
        """A small object; None if there is none."""
        from botocore.exceptions import ClientError

        with self._errors("read", name):
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
        """Writes a small object, over the one that is there."""
        with self._errors("write", name):
            self._client.put_object(Bucket=self._bucket, Key=self._key(name), Body=content)

    def create(self, name: str, content: bytes) -> bool:
        """Writes a small object unless there is one of that name.

        Args:
            name: Of the object.
            content: Must be unlike anybody else's: a request whose answer was lost is sent again and refused because
                of the first; only the content tells that it was ours.

        Returns:
            Whether the object is ours.

        Raises:
            StorageError: The server knows no conditional writes, or as for any other request.
        """
        for attempt in range(_CONFLICT_RETRIES):
            time.sleep(0.1 * attempt)
            if self._put_if_absent(name, content):
                return True
            if (found := self.read(name)) is not None:
                return found.content == content
        return False

    def _put_if_absent(self, name: str, content: bytes) -> bool:
        from botocore.exceptions import ClientError

        with self._errors("write", name):
            try:
                self._client.put_object(Bucket=self._bucket, Key=self._key(name), Body=content, IfNoneMatch="*")
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

    def delete(self, *names: str) -> None:
        """Deletes objects, in that order; one that is not there counts as deleted."""
        for name in names:
            with self._errors("delete", name):
                self._client.delete_object(Bucket=self._bucket, Key=self._key(name))

    def upload(self, files: Mapping[str, Path]) -> None:
        """Uploads files by the names that they get: in parallel, large ones in parts."""
        with self._errors("write"), self._transfers() as manager:
            transfers = [
                manager.upload(str(file), self._bucket, self._key(name), extra_args={}) for name, file in files.items()
            ]
            for transfer in transfers:
                transfer.result()

    def download(self, files: Mapping[str, Path]) -> list[str]:
        """Downloads objects into files: in parallel, large ones in parts.

        Returns:
            The names of those that are not there.
        """
        from botocore.exceptions import ClientError

        absent = []
        with self._errors("read"), self._transfers() as manager:
            transfers = {
                name: manager.download(self._bucket, self._key(name), str(file), extra_args={})
                for name, file in files.items()
            }
            for name, transfer in transfers.items():
                try:
                    transfer.result()
                except ClientError as error:
                    if error.response["Error"]["Code"] not in ("404", "NoSuchKey"):
                        raise
                    absent.append(name)
        return absent

    def _transfers(self) -> Any:
        from boto3.s3.transfer import TransferConfig, create_transfer_manager

        return create_transfer_manager(self._client, TransferConfig())

    def _key(self, name: str) -> str:
        return self._prefix + name

    @cached_property
    def _client(self) -> Any:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError

        config = Config(connect_timeout=_CONNECT_SECONDS, read_timeout=_READ_SECONDS, max_pool_connections=_CONNECTIONS)
        try:
            return boto3.client("s3", config=config)
        except ValueError as error:
            raise InputError(f"{error}.", where="AWS_ENDPOINT_URL", hint="Write http(s)://host[:port].") from error
        except BotoCoreError as error:
            raise InputError(f"{error}.", where=self.uri, hint="Check the AWS_* variables.") from error

    @contextmanager
    def _errors(self, action: str, name: str = "") -> Iterator[None]:
        """Turns boto3's errors inside the block into a `StorageError`."""
        from botocore.exceptions import BotoCoreError, ClientError
        from s3transfer.exceptions import RetriesExceededError

        where = f"{self.uri}/{name}" if name else self.uri
        try:
            yield
        except ClientError as error:
            raise self._refusal(error, action, where) from error
        except (BotoCoreError, RetriesExceededError) as error:
            raise self._failure(error, action, where) from error

    def _refusal(self, error: Any, action: str, where: str) -> StorageError:
        code = str(error.response["Error"].get("Code", ""))
        status = error.response["ResponseMetadata"].get("HTTPStatusCode", 0)
        endpoint = self._client.meta.endpoint_url
        if code == "NoSuchBucket":
            return StorageError(
                f"there is no bucket {self._bucket!r} at {endpoint}.",
                where=where,
                hint="Create it, or mend the address or AWS_ENDPOINT_URL.",
            )
        if status in (401, 403):
            return StorageError(
                f"no right to {action} ({code}) at {endpoint}.",
                where=where,
                hint=f"Check the credentials (AWS_ACCESS_KEY_ID, or the service account's role); needed: {_RIGHTS}.",
            )
        return StorageError(
            f"cannot {action} at {endpoint}: {error}.",
            where=where,
            hint="Check bucket, region and AWS_ENDPOINT_URL.",
            transient=status >= 500 or status == 429 or code in _TRANSIENT_CODES,
        )

    def _failure(self, error: Exception, action: str, where: str) -> StorageError:
        from botocore import exceptions as faults
        from s3transfer.exceptions import RetriesExceededError

        if isinstance(error, faults.NoCredentialsError | faults.PartialCredentialsError):
            return StorageError(
                f"cannot {action}: no credentials.",
                where=where,
                hint="Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the service account a role.",
            )
        transient = faults.ConnectionError | faults.HTTPClientError | faults.IncompleteReadError | RetriesExceededError
        told = error.last_exception if isinstance(error, RetriesExceededError) else error
        return StorageError(
            f"cannot {action}: {self._client.meta.endpoint_url} does not answer as it should: {told}.",
            where=where,
            hint="Check AWS_ENDPOINT_URL and the network.",
            transient=isinstance(error, transient),
        )
