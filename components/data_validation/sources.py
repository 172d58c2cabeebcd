"""Rows as found: every row of every file behind an address, good or bad, with the place it came from.

Nothing is judged here but whether a row can be read at all; one that cannot is a row too, with the reason, so that it
is quarantined and counted instead of ending the run or vanishing.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from components.shared.errors import InputError
from components.shared.locations import DataFile, HubDataset, open_location

__all__ = ["RawRow", "read_rows"]

logger = logging.getLogger(__name__)

_ROWS_PER_BATCH = 4096


@dataclass(frozen=True)
class RawRow:
    """One row as found.

    Attributes:
        file: Address of its file.
        line: Line of a text file; number of the item in a JSON array, of the row in Parquet or a hub data set; from 1.
        values: Its columns; None when it could not be read.
        fault: Why it could not be read.
        text: What stood there, when it could not be read.
    """

    file: str
    line: int
    values: dict[str, Any] | None
    fault: str | None = field(default=None, kw_only=True)
    text: str = field(default="", kw_only=True)

    @property
    def where(self) -> str:
        return f"{self.file}, row {self.line}"


def read_rows(uri: str) -> list[RawRow]:
    """Reads every row behind an address.

    Args:
        uri: As for `locations.open_location`.

    Raises:
        InputError: Nothing there, a file of another format than its name says, or not one row.
    """
    rows: list[RawRow] = []
    with open_location(uri) as location:
        if isinstance(location, HubDataset):
            rows.extend(_read_hub(location))
        else:
            for file in location:
                rows.extend(_read_file(file))
    if not rows:
        raise InputError("holds no rows.", where=uri, hint="Give data with at least one row.")
    return rows


def _read_file(file: DataFile) -> list[RawRow]:
    try:
        if file.path.suffix.lower() == ".parquet":
            return list(_read_parquet(file))
        content = file.path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise InputError(f"cannot read: {error.strerror or error}.", where=file.name) from error
    if file.path.suffix.lower() == ".json" and content.lstrip()[:1] == b"[":
        return _read_array(file, content)
    return _read_lines(file, content)


def _read_lines(file: DataFile, content: bytes) -> list[RawRow]:
    rows = [
        _parse_line(file.name, number, line)
        for number, line in enumerate(content.split(b"\n"), start=1)
        if line.strip()
    ]
    if rows and all(row.values is None for row in rows):
        raise InputError(
            f"is not JSON lines: {rows[0].fault}.",
            where=f"{file.name}, line {rows[0].line}",
            hint="Write one JSON object per line.",
        )
    return rows


def _parse_line(name: str, number: int, line: bytes) -> RawRow:
    try:
        text = line.decode("utf-8")
        value = _parse_json(text)
    except UnicodeDecodeError as error:
        return RawRow(name, number, None, fault=f"not UTF-8 ({error.reason})", text=line.decode("utf-8", "replace"))
    except (ValueError, RecursionError) as error:
        return RawRow(name, number, None, fault=f"not JSON ({error})", text=text)
    return _row(name, number, value)


def _read_array(file: DataFile, content: bytes) -> list[RawRow]:
    try:
        items = _parse_json(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"is not valid JSON: {error}.", where=file.name) from error
    return [_row(file.name, number, item) for number, item in enumerate(items, start=1)]


def _row(name: str, number: int, value: Any) -> RawRow:
    if not isinstance(value, dict):
        return RawRow(
            name, number, None, fault=f"a JSON {type(value).__name__}, not an object", text=repr(value)[:2000]
        )
    if not _is_encodable(value):
        text = json.dumps(value)[:2000]
        return RawRow(name, number, None, fault="not valid Unicode (half of a surrogate pair)", text=text)
    return RawRow(name, number, value)


def _parse_json(text: str) -> Any:
    """Strict JSON: NaN and infinity, also as a number too large for a float, are errors."""

    def finite(number: str) -> float:
        value = float(number)
        if not math.isfinite(value):
            raise ValueError(f"{number} is no finite number")
        return value

    return json.loads(text, parse_constant=finite, parse_float=finite)


def _is_encodable(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _read_parquet(file: DataFile) -> Iterator[RawRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file.path) as table:
            number = 0
            for batch in table.iter_batches(batch_size=_ROWS_PER_BATCH):
                for values in batch.to_pylist():
                    number += 1
                    yield RawRow(file.name, number, _json_values(values))
    except pa.ArrowException as error:
        raise InputError(f"is not a readable Parquet file: {error}.", where=file.name) from error


def _json_values(value: Any) -> Any:
    """A Parquet value in JSON's types: NaN, which pandas writes for "nothing", is null; times and decimals are text."""
    if isinstance(value, dict):
        return {str(key): _json_values(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_values(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    if value is None or isinstance(value, str | bool | int | float):
        return value
    return str(value)


def _read_hub(dataset: HubDataset) -> list[RawRow]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise InputError(
            "reading from the hub needs the library 'datasets'.",
            where=dataset.address,
            hint="Install plumbline[train], or download the data and give its path.",
        ) from error
    try:
        rows = load_dataset(dataset.name, split=dataset.split, revision=dataset.revision)
    except (OSError, ValueError) as error:
        raise InputError(
            f"cannot load from the hub: {error}", where=dataset.address, hint="Check name, split and connection."
        ) from error
    logger.info("%s: %d rows", dataset.address, len(rows))  # pyright: ignore[reportArgumentType]
    return [RawRow(dataset.address, number, _json_values(dict(row))) for number, row in enumerate(rows, start=1)]
