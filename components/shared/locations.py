"""Where data lies: a local file or folder, `s3://bucket/prefix`, or a hub data set `hf://owner/name[@revision][/split]`.

`open_location` brings the files behind an address onto this machine; `data_digest` says, cheaply and without fetching
them, whether they changed. This module imports nothing heavy: the digest is taken when a run is submitted.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from components.shared.artifacts import MANIFEST, read_artifact
from components.shared.errors import InputError
from components.shared.files import digest_of, read_json, sha256_file
from components.shared.storage import FolderStorage, Listed, Storage, is_object_storage, open_storage

__all__ = [
    "DATA_SUFFIXES",
    "DataFile",
    "HubDataset",
    "data_digest",
    "open_location",
    "origin",
    "parse_hub_address",
    "recorded_digest",
    "require_as_recorded",
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
        StorageError: Object storage cannot be used.
        ArtifactError: A folder with a manifest that is not an intact `pairs` artifact.
    """
    if uri.startswith("hf://"):
        yield parse_hub_address(uri)
    elif _is_pairs_address(uri):
        with open_location(_pairs_address(_local_path(uri))) as files:
            yield files
    else:
        storage, listed = _data_files(uri)
        with tempfile.TemporaryDirectory(prefix="plumbline-data-") as aside:
            copies = storage.local_copies([each.name for each in listed], Path(aside))
            yield [DataFile(path, f"{storage.uri}/{name}") for name, path in copies.items()]


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
    if is_object_storage(uri):
        storage, listed = _data_files(uri)
        return digest_of([[storage.uri, each.name, each.size, each.tag] for each in listed])
    path = _local_path(uri)
    if path.is_dir() and (path / MANIFEST).is_file():
        return read_artifact(path, _PAIRS_KIND).digest
    _, listed = _data_files(uri)
    return digest_of(
        [[each.name, sha256_file(path / each.name)] if path.is_dir() else ["", sha256_file(path)] for each in listed]
    )


def recorded_digest(digests: Sequence[str], base_model_digest: str) -> str:
    """What the first step records of data: the digests of its parts, and of the model whose tokens are counted."""
    return digest_of([*digests, base_model_digest])


def require_as_recorded(addresses: Sequence[str], recorded: str, base_model_digest: str) -> None:
    """Refuses data that is not what the first step of the run saw.

    Args:
        addresses: Of the data, in the order in which it was recorded; empty for none.
        recorded: `recorded_digest` of then; empty: nothing was recorded (a stage that is used alone).
        base_model_digest: Of then.

    Raises:
        InputError: It was changed since, or is not there any more.
    """
    if not (recorded and base_model_digest):
        return
    if recorded_digest([data_digest(uri) for uri in addresses], base_model_digest) != recorded:
        raise InputError(
            "the data is not what the run's first step (prerequisites) saw and recorded.",
            where=", ".join(filter(None, addresses)),
            hint="Let nothing write there during a run; start the run again.",
        )


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


def origin(uri: str) -> str | None:
    """Where rows really come from: the address itself, or, of a `pairs` artifact, the remote one that it points to.

    Returns:
        None of a `pairs` artifact that holds its rows itself.
    """
    if not _is_pairs_address(uri):
        return uri
    source = Path(uri).expanduser() / "user" / "source.json"
    return str(read_json(source)["uri"]) if source.is_file() else None


def _pairs_address(folder: Path) -> str:
    """Where the rows of a `pairs` artifact are: in `pairs.jsonl`, else in `user/`, else where its source.json says."""
    artifact = read_artifact(folder, _PAIRS_KIND)
    if "pairs.jsonl" in artifact.manifest["files"]:
        return str(artifact.file("pairs.jsonl"))
    source = artifact.path / "user" / "source.json"
    return str(read_json(source)["uri"]) if source.is_file() else str(artifact.path / "user")


# --- files, in a folder or in object storage -------------------------------------------------------------------------


def _data_files(uri: str) -> tuple[Storage, list[Listed]]:
    """Storage, and the data files in it, of an address: the one file that it names, or all below it, by name."""
    storage, name, listed = _objects(uri) if is_object_storage(uri) else _files(_local_path(uri))
    if exact := [each for each in listed if each.name == name]:
        _require_known_suffix(name, where=uri)
        return storage, exact
    folder = f"{name}/" if name else ""
    below = [each for each in listed if each.name.startswith(folder)]
    found = [each for each in below if _is_data_file(PurePosixPath(each.name.removeprefix(folder)))]
    if not found:
        raise InputError(f"no data file ({', '.join(DATA_SUFFIXES)}) there.", where=uri, hint="Check the address.")
    return storage, found


def _objects(uri: str) -> tuple[Storage, str, list[Listed]]:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    parent, _, name = key.strip("/").rpartition("/")
    storage = open_storage(f"s3://{bucket}/{parent}")
    return storage, name, storage.listing(name)


def _files(path: Path) -> tuple[Storage, str, list[Listed]]:
    if path.is_file():  # not all that lies beside it
        return FolderStorage(path.parent), path.name, [Listed(path.name, path.stat().st_size, "")]
    if not path.is_dir():
        raise InputError("no such file or folder.", where=str(path), hint="Check the path in the settings.")
    storage = FolderStorage(path)
    return storage, "", storage.listing()


def _is_data_file(relative: PurePosixPath) -> bool:
    hidden = any(part.startswith(".") for part in relative.parts)
    return relative.suffix.lower() in DATA_SUFFIXES and not hidden


def _require_known_suffix(name: str, *, where: str) -> None:
    if PurePosixPath(name).suffix.lower() not in DATA_SUFFIXES:
        raise InputError(
            f"cannot tell the file's format from its name; {', '.join(DATA_SUFFIXES)} are read.", where=where
        )


# --- the hub ---------------------------------------------------------------------------------------------------------


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
