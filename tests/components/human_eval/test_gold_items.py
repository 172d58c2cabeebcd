"""Items with a known answer: those that somebody wrote, else made from demonstrations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_panels import make_dataset, make_evaluation

from components.human_eval.gold_items import given_gold_pairs
from components.human_eval.stage import run
from components.shared.artifacts import read_artifact
from components.shared.errors import InputError
from components.shared.files import read_jsonl


def _make_row(number: int, **overrides: Any) -> dict[str, Any]:
    row = {"id": f"g{number}", "prompt": f"what is {number} and 1?", "better": str(number + 1), "worse": "a fish"}
    return {**row, **overrides}


def _write(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_given_items_are_taken_always_in_the_same_order_and_no_more_than_asked_for(tmp_path: Path) -> None:
    file = _write(tmp_path / "gold.jsonl", *(_make_row(number) for number in range(9)))
    shuffled = _write(tmp_path / "other.jsonl", *(_make_row(number) for number in reversed(range(9))))
    found = given_gold_pairs(file, 5)
    assert len(found) == 5
    assert found == given_gold_pairs(shuffled, 5)
    assert all(pair.worse == "a fish" for pair in found)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (_make_row(1, worse=" 2 "), "the same"),
        ({"id": "g1", "prompt": "what?"}, "better"),
        (_make_row(1, beter="typo"), "beter"),
    ],
)
def test_an_item_that_checks_nobody_is_refused_with_its_place(row: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said) as raised:
        given_gold_pairs(_write(tmp_path / "gold.jsonl", row), 5)
    assert "gold.jsonl" in str(raised.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.jsonl"):
        given_gold_pairs(str(tmp_path / "absent.jsonl"), 5)


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PLUMBLINE_DATABASE_URL", f"sqlite:///{tmp_path}/state/evidence.db")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    make_dataset(tmp_path)
    make_evaluation(tmp_path)
    return tmp_path


def _open_batch(folder: Path, gold: str) -> str:
    result = run(
        evaluation=str(folder / "evaluation"),
        dataset=str(folder / "dataset"),
        output=str(folder / Path(gold).stem),
        seed=0,
        settings={"panel": "people", "gold_items": 6, "gold_data": gold, "checkpoint_prompts": 0},
    )
    return str(result["batch_id"])


def test_the_batch_holds_the_given_items_and_its_name_hangs_on_them_not_on_where_they_lie(inputs: Path) -> None:
    rows = [_make_row(number) for number in range(6)]
    first = _open_batch(inputs, _write(inputs / "one.jsonl", *rows))
    assert _open_batch(inputs, _write(inputs / "two.jsonl", *rows)) == first
    assert _open_batch(inputs, _write(inputs / "three.jsonl", *rows[:5], _make_row(7))) != first
    items = read_jsonl(read_artifact(inputs / "one", "human_evidence").file("items.jsonl"))
    gold = [item for item in items if item["kind"] == "gold"]
    assert {item["prompt"] for item in gold} == {row["prompt"] for row in rows}


def test_too_few_items_for_any_vote_to_count_are_refused(inputs: Path) -> None:
    with pytest.raises(InputError, match="no vote could ever count"):
        _open_batch(inputs, _write(inputs / "few.jsonl", _make_row(1)))
