"""What is wrong with object storage, in words for a person: boto3's errors as `StorageError`s."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from typing import Any

from components.shared.storage import StorageError

__all__ = ["RIGHTS", "storage_errors"]

RIGHTS = "s3:ListBucket, s3:GetObject, s3:PutObject and s3:DeleteObject"

_BUSY = {"RequestTimeout", "SlowDown", "Throttling", "ThrottlingException", "TooManyRequests", "OperationAborted"}
_GONE_BETWEEN = {"NoSuchUpload"}
"""The end of an upload in parts, sent again because its answer was lost, finds the upload gone."""
_REGION = {"AuthorizationHeaderMalformed", "PermanentRedirect", "IncorrectEndpoint", "301", "TemporaryRedirect"}
_REFUSALS = {
    "NoSuchBucket": ("there is no bucket {bucket!r} at {endpoint}.", "Create it, or mend the address or the endpoint."),
    "InvalidBucketName": ("{bucket!r} cannot name a bucket.", "Mend the address: s3://bucket/prefix."),
    "InvalidAccessKeyId": (
        "{endpoint} does not know the access key (InvalidAccessKeyId).",
        "Check AWS_ACCESS_KEY_ID, and that AWS_ENDPOINT_URL leads to the server that the key is for.",
    ),
    "SignatureDoesNotMatch": (
        "access key and secret key do not fit together (SignatureDoesNotMatch) at {endpoint}.",
        "Check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (no spaces), and that no proxy rewrites requests.",
    ),
    "ExpiredToken": ("the credentials have expired (ExpiredToken).", "Fetch new ones, or mend the service account."),
    "InvalidToken": ("the session token is refused (InvalidToken).", "Check AWS_SESSION_TOKEN."),
    "QuotaExceeded": ("the bucket is full (QuotaExceeded) at {endpoint}.", "Raise its quota, or delete something."),
    "XMinioStorageFull": ("the server's disks are full at {endpoint}.", "Give it more, or delete something."),
    "XMinioAdminBucketQuotaExceeded": (
        "the bucket is full (quota) at {endpoint}.",
        "Raise its quota, or delete something.",
    ),
    "EntityTooLarge": ("the object is too large for {endpoint}.", "Raise the server's limit."),
    "NotImplemented": ("{endpoint} does not know this request: {error}.", "See docs/storage.md for what is needed."),
}


@contextmanager
def storage_errors(client: Any, bucket: str, action: str, where: str, *, seen: bool) -> Iterator[None]:
    """Turns boto3's errors inside the block into a `StorageError`.

    Args:
        client: Whose errors.
        bucket: Which it asks for.
        action: What is tried: `read`, `write`.
        where: The address of what is asked for.
        seen: Whether the bucket was there before: servers that are just starting up say of any that it is not.
    """
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.parsers import ResponseParserError
    from s3transfer.exceptions import RetriesExceededError, S3DownloadFailedError

    try:
        yield
    except ClientError as error:
        raise _refusal(error, client.meta, bucket, action, where, seen) from error
    except (BotoCoreError, ResponseParserError, RetriesExceededError, S3DownloadFailedError) as error:
        raise _failure(error, client.meta.endpoint_url, action, where) from error


def _refusal(error: Any, meta: Any, bucket: str, action: str, where: str, seen: bool) -> StorageError:
    """The server answered, and said no."""
    code = str(error.response.get("Error", {}).get("Code", ""))
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    endpoint = meta.endpoint_url
    if code == "RequestTimeTooSkewed":
        return _skew(error, endpoint, where)
    if code in _REGION:
        region = error.response["Error"].get("Region") or "another one"
        return StorageError(
            f"the bucket's region is {region}, asked for in {meta.region_name} ({code}) at {endpoint}.",
            where=where,
            hint="Set AWS_REGION to the bucket's.",
        )
    if code in _REFUSALS:
        problem, hint = _REFUSALS[code]
        problem = problem.format(bucket=bucket, endpoint=endpoint, error=error)
        return StorageError(problem, where=where, hint=hint, transient=seen and code == "NoSuchBucket")
    if code.isdigit() and status < 500 and error.operation_name != "HeadObject":  # whose answers have no body
        return _not_s3(action, endpoint, where)
    if status in (401, 403):
        return StorageError(
            f"no right to {action} ({code}) at {endpoint}.",
            where=where,
            hint=f"Check the credentials (AWS_ACCESS_KEY_ID, or the service account's role); needed: {RIGHTS}.",
        )
    return StorageError(
        f"cannot {action} at {endpoint}: {error}.",
        where=where,
        hint="Check bucket, region and AWS_ENDPOINT_URL.",
        transient=(status >= 500 and status != 501) or status == 429 or code in _BUSY | _GONE_BETWEEN,
    )


def _skew(error: Any, endpoint: str, where: str) -> StorageError:
    theirs = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date")
    told = ""
    if theirs:
        seconds = time.time() - parsedate_to_datetime(theirs).timestamp()
        told = f": it is {abs(seconds):.0f} s {'ahead of' if seconds > 0 else 'behind'} the server's"
    return StorageError(
        f"{endpoint} refuses this machine's clock (RequestTimeTooSkewed){told}.",
        where=where,
        hint="Set the clock (NTP) of this machine, or the server's.",
    )


def _failure(error: Exception, endpoint: str, action: str, where: str) -> StorageError:
    """The server did not answer, or not as S3 does."""
    from botocore import exceptions as faults
    from botocore.parsers import ResponseParserError
    from s3transfer.exceptions import RetriesExceededError, S3DownloadFailedError

    if isinstance(error, faults.NoCredentialsError | faults.PartialCredentialsError):
        return StorageError(
            f"cannot {action}: no credentials.",
            where=where,
            hint="Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the service account a role.",
        )
    login = faults.CredentialRetrievalError | faults.MetadataRetrievalError | faults.TokenRetrievalError
    if isinstance(error, login | faults.SSOError):
        return StorageError(
            f"cannot {action}: the credentials could not be fetched: {error}.",
            where=where,
            hint="Log in again (aws sso login), or mend the service account's role and what issues its tokens.",
            transient=isinstance(error, faults.MetadataRetrievalError),
        )
    told = error.last_exception if isinstance(error, RetriesExceededError) else error
    if isinstance(told, faults.SSLError):
        return StorageError(
            f"cannot {action}: no trusted TLS connection to {endpoint}: {told}.",
            where=where,
            hint="Set AWS_CA_BUNDLE to the file with the certificate of the authority that signed the server's.",
        )
    if isinstance(told, ResponseParserError):
        return _not_s3(action, endpoint, where)
    transient = faults.ConnectionError | faults.HTTPClientError | faults.IncompleteReadError
    again = isinstance(error, transient | RetriesExceededError | S3DownloadFailedError)
    return StorageError(
        f"cannot {action}: {endpoint} does not answer as it should: {told}.",
        where=where,
        hint="Check AWS_ENDPOINT_URL and the network.",
        transient=again,
    )


def _not_s3(action: str, endpoint: str, where: str) -> StorageError:
    return StorageError(
        f"cannot {action}: what {endpoint} answers is not S3.",
        where=where,
        hint="Check AWS_ENDPOINT_URL: it must lead to the S3 API, not to a console or a login page.",
    )
