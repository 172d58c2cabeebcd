"""Where data lies: a local file or folder, `s3://bucket/prefix`, or a hub data set `hf://owner/name[@revision][/split]`.

`open_location` brings the files behind an address onto this machine; `data_digest` says, cheaply and without fetching
them, whether they changed. This module imports nothing heavy: the digest is taken when a run is submitted.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from components.shared.artifacts import MANIFEST, read_artifact
from components.shared.errors import InputError
from components.shared.files import digest_of, read_json, sha256_file

__all__ = [
    "DATA_SUFFIXES",
    "DataFile",
    "HubDataset",
    "data_digest",
    "model_digest",
    "open_location",
    "parse_hub_address",
]

DATA_SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet")

_PAIRS_KIND = "pairs"
_HUB_ADDRESS = re.compile(
    r"hf://(?:datasets/)?(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+?))?(?:/(?P<split>\w+))?/?"
)


@dataclass(frozen=True)
class DataFile:
    """A file of rows.

    Attributes:
        path: Where it lies on this machine.
        name: What reports and errors call it: the address the user knows.
    """

    path: Path
    name: str


@dataclass(frozen=True)
class HubDataset:
    """A data set on the hub."""

    name: str
    revision: str | None
    split: str

    @property
    def address(self) -> str:
        return f"hf://{self.name}{f'@{self.revision}' if self.revision else ''}/{self.split}"


@contextmanager
def open_location(uri: str) -> Iterator[list[DataFile] | HubDataset]:
    """The data files behind an address; what was fetched is removed when the block ends.

    Args:
        uri: Path (or `file://`) of a file, a folder or a `pairs` artifact; `s3://...`; `hf://...`.

    Raises:
        InputError: Nothing there, or no file with a suffix that can be read.
        ArtifactError: A folder with a manifest that is not an intact `pairs` artifact.
    """
    if uri.startswith("hf://"):
        yield parse_hub_address(uri)
    elif uri.startswith("s3://"):
        with tempfile.TemporaryDirectory(prefix="plumbline-data-") as aside:
            yield _fetch_from_s3(uri, Path(aside))
    elif _is_pairs_address(uri):
        with open_location(_pairs_address(_local_path(uri))) as files:
            yield files
    else:
        yield _local_files(_local_path(uri))


def data_digest(uri: str) -> str:
    """sha256 (hex) that changes when the data behind `uri` does: a cache key.

    Of local files their names and content count, of S3 objects key, size and ETag, of a hub data set its commit.

    Args:
        uri: As for `open_location`; empty (no data) has a digest too.

    Raises:
        InputError: As for `open_location`.
    """
    if not uri:
        return digest_of([])
    if uri.startswith("hf://"):
        return _hub_digest(parse_hub_address(uri))
    if uri.startswith("s3://"):
        bucket, objects = _list_s3(_s3_client(), uri)
        return digest_of([[bucket, item["Key"], item["Size"], item["ETag"]] for item in objects])
    path = _local_path(uri)
    if path.is_dir() and (path / MANIFEST).is_file():
        return read_artifact(path, _PAIRS_KIND).digest
    return digest_of(
        [
            [file.path.relative_to(path).as_posix() if path.is_dir() else "", sha256_file(file.path)]
            for file in _local_files(path)
        ]
    )


def model_digest(base_model: str) -> str:
    """sha256 (hex) that changes when a model folder's files do, or a hub model's commit.

    Raises:
        InputError: The hub does not answer and the model is not in the local cache either.
    """
    folder = Path(base_model)
    if not folder.is_dir():
        return digest_of([base_model, _hub_model_commit(base_model)])
    return digest_of({file.name: sha256_file(file) for file in sorted(folder.iterdir()) if file.is_file()})


def parse_hub_address(uri: str) -> HubDataset:
    """Parses `hf://owner/name[@revision][/split]`; the split is `train` unless named.

    Raises:
        InputError: Another form.
    """
    match = _HUB_ADDRESS.fullmatch(uri)
    if match is None:
        raise InputError("is not a hub address.", where=uri, hint="Write hf://owner/name or hf://owner/name/split.")
    return HubDataset(match["name"], match["revision"], match["split"] or "train")


# --- local files -----------------------------------------------------------------------------------------------------


def _local_path(uri: str) -> Path:
    if "://" in uri and not uri.startswith("file://"):
        raise InputError("is an unknown kind of address.", where=uri, hint="Give a path, s3://bucket/prefix or hf://.")
    return Path(uri.removeprefix("file://")).expanduser()


def _is_pairs_address(uri: str) -> bool:
    return "://" not in uri and (Path(uri).expanduser() / MANIFEST).is_file()


def _pairs_address(folder: Path) -> str:
    """Where the rows of a `pairs` artifact are: in `pairs.jsonl`, else in `user/`, else where its source.json says."""
    artifact = read_artifact(folder, _PAIRS_KIND)
    if "pairs.jsonl" in artifact.manifest["files"]:
        return str(artifact.file("pairs.jsonl"))
    source = artifact.path / "user" / "source.json"
    return str(read_json(source)["uri"]) if source.is_file() else str(artifact.path / "user")


def _local_files(path: Path) -> list[DataFile]:
    if path.is_file():
        _require_known_suffix(path.name, where=str(path))
        return [DataFile(path, str(path))]
    if not path.is_dir():
        raise InputError("no such file or folder.", where=str(path), hint="Check the path in the settings.")
    files = [file for file in sorted(path.rglob("*")) if file.is_file() and _is_data_file(file.relative_to(path))]
    if not files:
        raise InputError(f"the folder holds no data file ({', '.join(DATA_SUFFIXES)}).", where=str(path))
    return [DataFile(file, str(file)) for file in files]


def _is_data_file(relative: Path | PurePosixPath) -> bool:
    hidden = any(part.startswith(".") for part in relative.parts)
    return relative.suffix.lower() in DATA_SUFFIXES and not hidden


def _require_known_suffix(name: str, *, where: str) -> None:
    if PurePosixPath(name).suffix.lower() not in DATA_SUFFIXES:
        raise InputError(
            f"cannot tell the file's format from its name; {', '.join(DATA_SUFFIXES)} are read.", where=where
        )


# --- object storage --------------------------------------------------------------------------------------------------


def _s3_client() -> Any:
    """A client that takes endpoint, region and credentials from the standard AWS environment variables."""
    import boto3

    return boto3.client("s3")


def _list_s3(client: Any, uri: str) -> tuple[str, list[dict[str, Any]]]:
    """Bucket and data objects, by key, of `s3://bucket/key` or of all below `s3://bucket/prefix`."""
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    try:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        found = [item for page in pages for item in page.get("Contents", [])]
    except (BotoCoreError, ClientError) as error:
        raise InputError(
            f"cannot list: {error}.", where=uri, hint="Check bucket, AWS_ENDPOINT_URL and credentials."
        ) from error
    exact = [item for item in found if item["Key"] == prefix]
    folder = prefix if not prefix or prefix.endswith("/") else f"{prefix}/"
    below = [
        item
        for item in found
        if item["Key"].startswith(folder) and _is_data_file(PurePosixPath(item["Key"].removeprefix(folder)))
    ]
    if exact:
        _require_known_suffix(prefix, where=uri)
    elif not below:
        raise InputError(f"no data file ({', '.join(DATA_SUFFIXES)}) there.", where=uri, hint="Check bucket and key.")
    return bucket, exact or sorted(below, key=lambda item: item["Key"])


def _fetch_from_s3(uri: str, aside: Path) -> list[DataFile]:
    from botocore.exceptions import BotoCoreError, ClientError

    client = _s3_client()
    bucket, objects = _list_s3(client, uri)
    files = []
    for number, item in enumerate(objects):
        name = f"s3://{bucket}/{item['Key']}"
        path = aside / f"{number:05d}{PurePosixPath(item['Key']).suffix.lower()}"
        try:
            client.download_file(bucket, item["Key"], str(path))
        except (BotoCoreError, ClientError) as error:
            raise InputError(f"cannot fetch: {error}.", where=name, hint="Check the right to read it.") from error
        files.append(DataFile(path, name))
    return files


# --- the hub ---------------------------------------------------------------------------------------------------------


def _hub_model_commit(name: str) -> str:
    """The commit that loading `name` would take: the hub's newest, or without the hub the one in the local cache."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return str(HfApi().model_info(name).sha)
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        cached = None if isinstance(error, HFValidationError) else try_to_load_from_cache(name, "config.json")
        if isinstance(cached, str):
            return Path(cached).parent.name
        raise InputError(
            f"cannot ask the hub for the model's commit: {error}",
            where=name,
            hint="Check the name and the network, or give a folder as `base_model`.",
        ) from error


def _hub_digest(dataset: HubDataset) -> str:
    """Digest of a data set's commit; a revision that is a full commit hash needs no question to the hub."""
    if dataset.revision and re.fullmatch(r"[0-9a-f]{40}", dataset.revision):
        return digest_of([dataset.address])
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        commit = HfApi().dataset_info(dataset.name, revision=dataset.revision).sha
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        raise InputError(
            f"cannot ask the hub for its commit: {error}",
            where=dataset.address,
            hint="Name one, hf://owner/name@<40 hex digits>, to need no answer.",
        ) from error
    return digest_of([dataset.name, commit, dataset.split])
