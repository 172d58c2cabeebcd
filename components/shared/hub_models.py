"""Models on the hub by commit: `owner/name@revision`, where a revision is a branch, a tag or a commit.

The first step of a run asks the hub once, and later steps are given `owner/name@<commit>`: whoever pushes in the middle
of the run changes nothing, and what a policy began from stands in its `policy.json`.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from components.shared.errors import InputError
from components.shared.files import digest_of, sha256_file

__all__ = ["model_digest", "pinned_model", "split_revision"]

_ADDRESS = re.compile(r"(?P<name>[\w.-]+(?:/[\w.-]+)?)@(?P<revision>[\w./-]+)")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def split_revision(source: str | Path) -> tuple[str, str | None]:
    """Name and revision of a hub model; of a folder, and where none is named, the source itself and None."""
    text = str(source)
    match = None if isinstance(source, Path) or Path(text).is_dir() else _ADDRESS.fullmatch(text)
    return (match["name"], match["revision"]) if match else (text, None)


def pinned_model(base_model: str) -> str:
    """The same model by its commit, `owner/name@<commit>`; a folder stays what it is.

    Raises:
        InputError: The hub does not answer and the model is not in the local cache either.
    """
    if Path(base_model).is_dir():
        return base_model
    name, revision = split_revision(base_model)
    return f"{name}@{_commit(name, revision)}"


def model_digest(base_model: str) -> str:
    """sha256 (hex) that changes when a model folder's files do, or a hub model's commit.

    Raises:
        InputError: As for `pinned_model`.
    """
    folder = Path(base_model)
    if folder.is_dir():
        return digest_of({file.name: sha256_file(file) for file in sorted(folder.iterdir()) if file.is_file()})
    name, revision = split_revision(base_model)
    return digest_of([name, _commit(name, revision)])


def _commit(name: str, revision: str | None) -> str:
    """The commit that loading would take: the hub's newest, or without the hub the one in the local cache."""
    if revision and _COMMIT.fullmatch(revision):
        return revision
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return str(HfApi().model_info(name, revision=revision).sha)
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        invalid = isinstance(error, HFValidationError)
        cached = None if invalid else try_to_load_from_cache(name, "config.json", revision=revision)
        if isinstance(cached, str):
            return Path(cached).parent.name
        raise InputError(
            f"cannot ask the hub for the model's commit: {error}",
            where=f"{name}@{revision}" if revision else name,
            hint="Check the name, its revision and the network, or give a folder as `base_model`.",
        ) from error
