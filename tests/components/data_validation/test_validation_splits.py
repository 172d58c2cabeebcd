"""Splits follow from salt and group alone, and nothing leaks between them."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from components.data_validation.assignment import Assignment, assign, human_eval_digest
from components.data_validation.settings import SplitSettings
from components.data_validation.splits import HELD_OUT_PROMPTS, Groups, find_leakage, forbidden_pairs, place
from components.data_validation.validation import Part
from components.shared.records import PreferenceRecord, PromptRecord, SFTRecord, group_key

SETTINGS = SplitSettings(human_eval=0.2, fresh=0.2, heldout=0.2)


def _prompts(numbers: Any, **overrides: Any) -> list[PromptRecord]:
    return [PromptRecord(id=f"p{n}", prompt=f"Ask {n}", **overrides) for n in numbers]


def _sft(numbers: Any) -> list[SFTRecord]:
    return [SFTRecord(id=f"s{n}", prompt=f"ask  {n}", completion="so") for n in numbers]


def _pairs(numbers: Any) -> list[PreferenceRecord]:
    return [PreferenceRecord(id=f"c{n}", prompt=f"Ask {n}", chosen="a", rejected="b") for n in numbers]


def _assign(settings: SplitSettings = SETTINGS, earlier: Any = None, **records: Any) -> Assignment:
    parts = [Part(kind, kind, [], records=list(found)) for kind, found in records.items()]  # type: ignore[arg-type]
    return assign(parts, settings, earlier)


def _ids(assignment: Assignment) -> dict[str, set[str]]:
    return {name: {record.id for record in records} for name, records in assignment.splits.items()}


def _keys(assignment: Assignment, name: str) -> set[str]:
    return {group_key(record) for record in assignment.splits[name]}


@given(st.text(), st.text())
def test_a_place_is_in_the_unit_interval(salt: str, key: str) -> None:
    assert 0.0 <= place(salt, key) < 1.0


def test_places_do_not_change_between_versions() -> None:
    assert place("plumbline", "prompt:how do i boil an egg") == 0.9143209877301495


def test_shares_are_met_and_salt_moves_groups() -> None:
    sizes = {name: len(records) for name, records in _assign(prompts=_prompts(range(3000))).splits.items()}
    assert all(abs(sizes[f"prompts/{name}"] / 3000 - 0.2) < 0.03 for name in HELD_OUT_PROMPTS)
    other = _assign(SETTINGS.model_copy(update={"salt": "other"}), prompts=_prompts(range(3000)))
    assert _ids(other) != _ids(_assign(prompts=_prompts(range(3000))))


@given(st.sets(st.integers(0, 300), min_size=1), st.sets(st.integers(0, 300)), st.randoms())
def test_records_stay_where_they_are_when_others_come_and_order_changes(
    first: set[int], more: set[int], shuffle: random.Random
) -> None:
    before = _ids(_assign(prompts=_prompts(sorted(first)), sft=_sft(sorted(first))))
    numbers = sorted(first | more)
    shuffle.shuffle(numbers)
    after = _ids(_assign(prompts=_prompts(numbers), sft=_sft(sorted(first))))
    assert all(before[name] <= after[name] for name in before if name.startswith("prompts"))


@given(st.sets(st.integers(0, 200), min_size=5), st.sets(st.integers(0, 200)), st.sets(st.integers(0, 200)))
def test_nothing_leaks_whatever_kinds_share_prompts(prompts: set[int], sft: set[int], pairs: set[int]) -> None:
    assignment = _assign(prompts=_prompts(prompts), sft=_sft(sft), preferences=_pairs(pairs))
    assert assignment.leaks == []
    held_out = set().union(*(_keys(assignment, f"prompts/{name}") for name in HELD_OUT_PROMPTS))
    for name in ("sft/train", "preferences/train", "preferences/divergence"):
        assert not _keys(assignment, name) & held_out
    assert sum(len(records) for records in assignment.splits.values()) == len(prompts) + len(sft) + len(pairs)


def test_demonstrations_of_held_out_prompts_are_held_back_and_counted() -> None:
    assignment = _assign(prompts=_prompts(range(300)), sft=_sft(range(300)))
    held_out = {split: len(assignment.splits[f"prompts/{split}"]) for split in HELD_OUT_PROMPTS}
    assert dict(assignment.held_back["sft"]) == held_out
    assert len(assignment.splits["sft/heldout"]) >= sum(held_out.values())


def test_the_whole_range_is_held_back_on_request_so_that_later_prompts_never_trained() -> None:
    settings = SETTINGS.model_copy(update={"hold_back_sft": "whole_range"})
    today = _assign(settings, sft=_sft(range(300)))
    tomorrow = _assign(settings, prompts=_prompts(range(300)))
    for split in HELD_OUT_PROMPTS:
        assert not _keys(today, "sft/train") & _keys(tomorrow, f"prompts/{split}")
    assert len(_assign(sft=_sft(range(300))).splits["sft/train"]) > len(today.splits["sft/train"])


def test_one_prompt_in_several_groups_joins_the_groups() -> None:
    shared = [
        PromptRecord(id="1", prompt="x", group_id="g1"),
        PromptRecord(id="2", prompt="x", group_id="g2"),
        PromptRecord(id="3", prompt="y", group_id="g2"),
        PromptRecord(id="4", prompt="Y "),
        PromptRecord(id="5", prompt="z"),
    ]
    groups = Groups(shared)
    assert len({groups.key(record) for record in shared[:4]}) == 1
    assert groups.key(shared[4]) == "prompt:z"
    assert groups.key(shared[3]) == "group:g1"


def test_a_frozen_human_evaluation_set_stays_as_it_is_and_new_prompts_are_fresh_instead() -> None:
    first = _assign(prompts=_prompts(range(200)))
    earlier = {split: first.splits[f"prompts/{split}"] for split in HELD_OUT_PROMPTS}
    second = _assign(earlier=earlier, prompts=_prompts(range(100, 400)), sft=_sft(range(400)))
    assert second.splits["prompts/human_eval"] == first.splits["prompts/human_eval"]
    assert second.leaks == []
    would_be = _keys(_assign(prompts=_prompts(range(200, 400))), "prompts/human_eval")
    assert would_be
    assert would_be <= _keys(second, "prompts/fresh")
    for split in HELD_OUT_PROMPTS:
        assert not _keys(first, f"prompts/{split}") & _keys(second, "sft/train")


def test_frozen_prompts_keep_their_place_under_another_salt() -> None:
    first = _assign(prompts=_prompts(range(200)))
    earlier = {split: first.splits[f"prompts/{split}"] for split in HELD_OUT_PROMPTS}
    second = _assign(SETTINGS.model_copy(update={"salt": "new"}), earlier, prompts=_prompts(range(200)))
    assert second.splits["prompts/human_eval"] == first.splits["prompts/human_eval"]
    assert _ids(first)["prompts/fresh"] <= _ids(second)["prompts/fresh"]
    assert second.leaks == []


def test_a_new_prompt_in_a_frozen_group_is_left_out() -> None:
    frozen = {"human_eval": [PromptRecord(id="1", prompt="x", group_id="g")]}
    new = [PromptRecord(id="2", prompt="y", group_id="g"), PromptRecord(id="1", prompt="x", group_id="g")]
    assignment = _assign(earlier=frozen, prompts=new)
    assert assignment.splits["prompts/human_eval"] == frozen["human_eval"]
    assert assignment.left_out == 1
    assert sum(map(len, assignment.splits.values())) == 1


def test_pairs_of_earlier_held_out_prompts_are_held_out() -> None:
    first = _assign(prompts=_prompts(range(300)))
    earlier = {split: first.splits[f"prompts/{split}"] for split in HELD_OUT_PROMPTS}
    second = _assign(earlier=earlier, preferences=_pairs(range(300)))
    assert second.leaks == []
    assert sum(second.held_back["preferences"].values()) == sum(map(len, earlier.values()))
    train = _keys(second, "preferences/train") | _keys(second, "preferences/divergence")
    assert train <= _keys(first, "prompts/train")


def test_leakage_is_found_by_prompt_and_by_group() -> None:
    splits = {
        "sft/train": [SFTRecord(id="1", prompt="X", completion="a")],
        "prompts/human_eval": [PromptRecord(id="2", prompt="x ", group_id="g")],
        "preferences/divergence": [PreferenceRecord(id="3", prompt="z", chosen="a", rejected="b", group_id="g")],
        "preferences/heldout": [PreferenceRecord(id="4", prompt="x", chosen="a", rejected="b")],
    }
    assert find_leakage(splits, forbidden_pairs(splits)) == [
        "preferences/divergence and prompts/human_eval share 1 prompts or groups",
        "prompts/human_eval and sft/train share 1 prompts or groups",
    ]


def test_the_digest_of_the_human_evaluation_set_ignores_order_and_sees_changes() -> None:
    records = _prompts(range(5))
    assert human_eval_digest(records) == human_eval_digest(records[::-1])
    assert human_eval_digest(records) != human_eval_digest(records[1:])
