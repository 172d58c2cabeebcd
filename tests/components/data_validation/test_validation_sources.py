"""Rows are read from each kind of file, and what cannot be read is told apart from what is merely a bad row."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_validation import write_rows

from components.data_validation.sources import read_rows
from components.shared.errors import InputError


def test_json_lines_keep_their_line_numbers_and_blank_lines_are_no_rows(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('\ufeff{"prompt": "x"}\n\n  \n{"prompt": "y"}', encoding="utf-8")
    assert [(row.line, row.values) for row in read_rows(str(file))] == [(1, {"prompt": "x"}), (4, {"prompt": "y"})]


def test_lines_that_cannot_be_read_become_rows_with_a_fault(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    bad = [b"{broken", b"[1]", b'{"x": NaN}', b'{"x": 1e999}', b'{"x": "\xff"}', b'{"x": "\\ud800"}', b"[" * 100_000]
    file.write_bytes(b'{"prompt": "x"}\n' + b"\n".join(bad))
    rows = read_rows(str(file))
    assert [row.values is None for row in rows] == [False] + [True] * len(bad)
    faults = " | ".join(str(row.fault) for row in rows[1:])
    for expected in ("not JSON (", "a JSON list", "NaN is no finite number", "1e999", "not UTF-8", "surrogate"):
        assert expected in faults
    json.dumps([row.text for row in rows], ensure_ascii=False).encode()


def test_a_file_without_one_json_line_is_an_error_that_names_the_line(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text("\nprompt,completion\nhello,world\n")
    with pytest.raises(InputError, match=r"a\.jsonl, line 2: is not JSON lines.*one JSON object per line"):
        read_rows(str(file))


def test_a_json_array_is_read_item_by_item(tmp_path: Path) -> None:
    file = tmp_path / "export.json"
    file.write_text(json.dumps([{"a": 1}, {"a": 2}], indent=2))
    assert [(row.line, row.values) for row in read_rows(str(file))] == [(1, {"a": 1}), (2, {"a": 2})]
    file.write_text("[{]")
    with pytest.raises(InputError, match="not valid JSON"):
        read_rows(str(file))


def test_parquet_is_read_in_jsons_types(tmp_path: Path) -> None:
    table = pa.table(
        {
            "prompt": ["x", None],
            "strength": [0.5, float("nan")],
            "messages": [[{"role": "user", "content": "hi"}], []],
            "at": [datetime.date(2026, 1, 2), None],
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    first, second = read_rows(str(tmp_path / "a.parquet"))
    assert first.values == {
        "prompt": "x",
        "strength": 0.5,
        "messages": [{"role": "user", "content": "hi"}],
        "at": "2026-01-02",
    }
    assert second.values == {"prompt": None, "strength": None, "messages": [], "at": None}
    assert second.line == 2


def test_a_parquet_file_that_is_none_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(InputError, match=r"a\.parquet: is not a readable Parquet file"):
        read_rows(str(tmp_path / "a.parquet"))


def test_a_folder_is_all_its_data_files_in_order_and_nothing_else(tmp_path: Path) -> None:
    write_rows(tmp_path / "b.jsonl", [{"n": 2}])
    write_rows(tmp_path / "a" / "part.jsonl", [{"n": 1}])
    write_rows(tmp_path / ".hidden.jsonl", [{"n": 3}])
    (tmp_path / "README.md").write_text("notes")
    assert [row.values for row in read_rows(str(tmp_path))] == [{"n": 1}, {"n": 2}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.jsonl", None, "no such file or folder"),
        ("empty.jsonl", "", "holds no rows"),
        ("blank.jsonl", "\n \n", "holds no rows"),
        ("data.csv", "a,b\n", r"cannot tell the file's format.*\.jsonl"),
        ("empty.json", "[]", "holds no rows"),
    ],
)
def test_what_holds_no_rows_is_an_error_that_names_it(
    tmp_path: Path, name: str, content: str | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message) as error:
        read_rows(str(tmp_path / name))
    assert name in str(error.value)


def test_a_folder_without_data_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(InputError, match="no data file"):
        read_rows(str(tmp_path))


def test_a_hub_address_is_loaded_with_its_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_rows(tmp_path / "acme" / "pairs" / "test.jsonl", [{"prompt": "x"}, {"prompt": "y"}])
    monkeypatch.chdir(tmp_path)  # a folder of the data set's name stands in for the hub
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = read_rows("hf://acme/pairs/test")
    assert [(row.file, row.line, row.values) for row in rows] == [
        ("hf://acme/pairs/test", 1, {"prompt": "x"}),
        ("hf://acme/pairs/test", 2, {"prompt": "y"}),
    ]
    with pytest.raises(InputError, match="cannot load from the hub"):
        read_rows("hf://acme/pairs/nosuch")
