"""Files that are whole or absent: atomic writes, JSON lines whose errors name the line, digests."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from components.shared.errors import InputError

__all__ = [
    "canonical_json",
    "digest_of",
    "parse_json",
    "read_json",
    "read_jsonl",
    "sha256_file",
    "sync_folder",
    "write_bytes",
    "write_json",
    "write_jsonl",
    "write_text",
]


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values have equal text. NaN and infinity are errors."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest_of(value: Any) -> str:
    """sha256 (hex) of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def sha256_file(path: str | Path) -> str:
    """sha256 (hex) of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_folder(path: Path) -> None:
    """Makes a rename inside `path` survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: str | Path, content: bytes) -> None:
    """Writes a file so that a reader sees the old content or the new, never a part."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(aside, 0o644)
        os.replace(aside, path)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_text(path: str | Path, content: str) -> None:
    """`write_bytes` for UTF-8 text."""
    write_bytes(path, content.encode())


def write_json(path: str | Path, value: Any) -> None:
    """Writes indented JSON atomically. NaN and infinity are errors: no reader could trust them."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_jsonl(path: str | Path, rows: Iterable[Any]) -> None:
    """Writes one JSON object a line, atomically."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows))


def read_json(path: str | Path) -> Any:
    """Reads a JSON file.

    Raises:
        InputError: The file is missing or is not JSON.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"cannot read: {error.strerror}.", where=str(path)) from error
    return parse_json(content, where=str(path))


def parse_json(content: bytes, *, where: str) -> Any:
    """Parses JSON.

    Raises:
        InputError: It is none.
    """
    try:
        return json.loads(content.decode())
    except ValueError as error:
        raise InputError(f"is not valid JSON: {error}.", where=where) from error


def read_jsonl(path: str | Path) -> Iterator[dict[str, Any]]:
    """Reads JSON lines one by one; blank lines are skipped.

    Raises:
        InputError: The file is missing, or a line is not a JSON object (the error names the line).
    """
    try:
        file = open(path, encoding="utf-8")  # noqa: SIM115 (closed below; opened here to tell a missing file apart)
    except OSError as error:
        raise InputError(f"cannot read: {error.strerror}.", where=str(path)) from error
    with file:
        number = 0
        try:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield _object(line, where=f"{path}, line {number}")
        except UnicodeDecodeError as error:
            raise InputError(f"is not UTF-8 text: {error.reason}.", where=f"{path}, line {number + 1}") from error


def _object(line: str, *, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise InputError(f"is not JSON: {error}.", where=where, hint="Write one JSON object per line.") from error
    if not isinstance(value, dict):
        raise InputError(f"holds a JSON {type(value).__name__}, not an object.", where=where)
    return value
