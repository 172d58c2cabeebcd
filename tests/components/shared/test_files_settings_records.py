"""Files, settings, records and plug-ins: errors name the place."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from components.shared.errors import InputError
from components.shared.files import canonical_json, digest_of, read_jsonl, write_json, write_jsonl
from components.shared.plugins import load_attribute, plug_in_digest
from components.shared.records import (
    PreferenceRecord,
    PromptRecord,
    group_key,
    normalise_text,
    prompt_text,
    read_records,
    stable_order,
    write_records,
)
from components.shared.settings import StrictModel, load_settings, read_yaml


class _Inner(StrictModel):
    rate: float = Field(0.1, gt=0)


class _Outer(StrictModel):
    inner: _Inner = Field(default_factory=_Inner)
    steps: int = 3


def _load(tmp_path: Path, text: str) -> _Outer:
    (tmp_path / "s.yaml").write_text(text)
    return load_settings(tmp_path / "s.yaml", _Outer)


def test_settings_take_defaults_and_values(tmp_path: Path) -> None:
    assert _load(tmp_path, "inner: {rate: 0.5}") == _Outer(inner=_Inner(rate=0.5), steps=3)
    assert _load(tmp_path, "") == _Outer()


def test_whole_floats_are_integers_because_kfp_sends_floats(tmp_path: Path) -> None:
    assert _load(tmp_path, "steps: 4.0").steps == 4


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("inner: {rat: 1}", "inner.rat: unknown setting"),
        ("inner: {rate: -1}", "inner.rate"),
        ("steps: many", "steps"),
        ("steps: 1.5", "steps"),
        ("inner: [1", "not valid YAML"),
        ("- 1", "top level"),
        ("steps: 1\ninner: {rate: 0.5}\nsteps: 2", "steps is given twice, line 3, column 1"),
        ("inner: {rate: 0.5, rate: 0.6}", "rate is given twice, line 1"),
        ("inner: {rate: .inf}", "inner.rate"),
        ("inner: {rate: .nan}", "inner.rate"),
        (f"steps: {10**400}", "steps: larger than 9007199254740991"),
        (f"steps: {'9' * 5000}", "not valid YAML"),
        ("[" * 100_000, "not valid YAML"),
    ],
)
def test_a_faulty_settings_file_is_refused_with_the_path(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InputError, match=r"s\.yaml") as caught:
        _load(tmp_path, text)
    assert said in str(caught.value)


def test_a_merged_mapping_may_be_overridden(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text("base: &base {rate: 0.5, steps: 2}\ninner: {<<: *base, rate: 0.7}")
    assert read_yaml(file)["inner"] == {"rate": 0.7, "steps": 2}


def test_a_missing_settings_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent.yaml: cannot read"):
        load_settings(tmp_path / "absent.yaml", _Outer)


@given(st.lists(st.dictionaries(st.text(), st.integers() | st.text(), max_size=3), max_size=5))
def test_json_lines_come_back_as_they_were(tmp_path_factory: pytest.TempPathFactory, rows: list[dict]) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    write_jsonl(path, rows)
    assert list(read_jsonl(path)) == rows


@pytest.mark.parametrize(
    ("content", "said"),
    [(b'{"a": 1}\nnot json\n', "line 2"), (b"[1]\n", "list, not an object"), (b'{"a": "\xff"}\n', "not UTF-8")],
)
def test_a_bad_line_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "rows.jsonl").write_bytes(content)
    with pytest.raises(InputError, match=said):
        list(read_jsonl(tmp_path / "rows.jsonl"))


def test_nan_and_infinity_are_never_written(tmp_path: Path) -> None:
    for value in (math.nan, math.inf):
        with pytest.raises(ValueError, match="Out of range"):
            write_json(tmp_path / "x.json", {"v": value})
        with pytest.raises(ValueError, match="Out of range"):
            canonical_json(value)
    assert not (tmp_path / "x.json").exists()


def test_a_digest_does_not_depend_on_the_order_of_keys() -> None:
    assert digest_of({"a": 1, "b": 2}) == digest_of({"b": 2, "a": 1}) != digest_of({"a": 2, "b": 1})


def test_records_come_back_and_a_faulty_one_is_named(tmp_path: Path) -> None:
    records = [PromptRecord(id="1", prompt="hi"), PromptRecord(id="2", prompt=[{"role": "user", "content": "x"}])]  # type: ignore[list-item]
    write_records(tmp_path / "p.jsonl", records)
    assert list(read_records(tmp_path / "p.jsonl", PromptRecord)) == records
    write_jsonl(tmp_path / "p.jsonl", [{"id": "1", "prompt": "hi"}, {"id": "2"}])
    with pytest.raises(InputError, match=r"record 2: field 'prompt'"):
        list(read_records(tmp_path / "p.jsonl", PromptRecord))


def test_strength_beyond_one_is_refused(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "p.jsonl", [{"id": "1", "prompt": "p", "chosen": "a", "rejected": "b", "strength": 2}])
    with pytest.raises(InputError, match="strength"):
        list(read_records(tmp_path / "p.jsonl", PreferenceRecord))


@pytest.mark.parametrize(
    ("one", "other"), [("How  do I?", "how do i?"), ("a\u200bb", "ab"), ("ﬁne", "fine"), ("\u00a0x ", "x")]
)
def test_texts_that_look_alike_are_one_group(one: str, other: str) -> None:
    assert normalise_text(one) == normalise_text(other)
    assert group_key(PromptRecord(id="1", prompt=one)) == group_key(PromptRecord(id="2", prompt=other))


def test_a_conversation_has_a_line_a_turn() -> None:
    record = PromptRecord(id="1", prompt=[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])  # type: ignore[list-item]
    assert prompt_text(record.prompt) == "user: a\nassistant: b"


def test_the_stable_order_depends_on_ids_alone() -> None:
    records = [PromptRecord(id=f"p{n}", prompt="x") for n in range(20)]
    assert stable_order(records) == stable_order(reversed(records)) != records
    few = [record for record in stable_order(records) if record in records[:7]]
    assert few == stable_order(records[:7])


@pytest.mark.parametrize(
    ("reference", "said"),
    [("json", "module:attribute"), ("no.such:thing", "cannot import"), ("json:nothing", "has no")],
)
def test_a_bad_plug_in_is_explained(reference: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        load_attribute(reference)
    assert load_attribute("json:dumps")([1]) == "[1]"


def test_the_digest_of_a_plug_in_follows_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "my_raters.py").write_text("taste = 1\n")
    before = plug_in_digest(["my_raters:taste"])
    assert plug_in_digest(["my_raters:taste"]) == before
    (tmp_path / "my_raters.py").write_text("taste = 2\n")
    assert plug_in_digest(["my_raters:taste"]) != before
    with pytest.raises(InputError, match="no module"):
        plug_in_digest(["no_such_module_here:taste"])
