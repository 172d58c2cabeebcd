"""Agreement by rater and slice, drift in time, and the items that deserve a second look."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_panels import make_batch, make_gold_item, make_item, make_judgement

from components.human_eval.batch import Item
from components.human_eval.database import Judgement
from components.human_eval.evidence import weigh_evidence
from components.human_eval.rater_statistics import agreement_statistics, find_drift, review_queue


def _by_id(*items: Item) -> dict[str, Item]:
    return {item.item_id: item for item in items}


def _votes(item: str, *said: str) -> list[Judgement]:
    return [make_judgement(item, f"rater-{number}", prefers) for number, prefers in enumerate(said)]


def _when(second: int) -> str:
    return f"2026-01-01T{second // 3600:02d}:{second // 60 % 60:02d}:{second % 60:02d}.000000+00:00"


def test_agreement_has_known_answers_overall_by_slice_and_by_rater() -> None:
    items = _by_id(*(make_item(number) for number in range(4)))  # even: howto, odd: unsafe
    votes = [
        *_votes("item-0", "first", "first"),
        *_votes("item-2", "second", "second"),
        *_votes("item-1", "first", "second"),
        *_votes("item-3", "second", "first"),
    ]
    found = agreement_statistics(votes, items)
    # Each rater says first twice and second twice: half agree, half is expected.
    assert (found["raw"], found["fleiss_kappa"], found["cohen_kappa"]) == (0.5, 0.0, 0.0)
    assert (found["n_items"], found["n_pairs"]) == (4, 4)
    assert found["slices"]["howto"]["raw"] == found["slices"]["howto"]["fleiss_kappa"] == 1.0
    assert found["slices"]["unsafe"]["fleiss_kappa"] == found["slices"]["unsafe"]["cohen_kappa"] == -1.0
    assert found["raters"]["rater-0"] == {"raw": 0.5, "kappa": 0.0, "n_pairs": 4}


def test_the_rater_who_disagrees_with_everybody_stands_out() -> None:
    items = _by_id(*(make_item(number) for number in range(20)))
    votes = []
    for number in range(20):
        side, other = ("first", "second") if number % 2 else ("second", "first")
        votes += _votes(f"item-{number}", side, side, side, other)
    raters = agreement_statistics(votes, items)["raters"]
    assert raters["rater-3"]["raw"] == 0.0
    assert raters["rater-3"]["kappa"] == -1.0
    assert raters["rater-0"]["raw"] == pytest.approx(2 / 3)


def test_without_two_votes_on_an_item_or_without_variety_there_is_no_figure() -> None:
    items = _by_id(make_item(0), make_item(1))
    alone = agreement_statistics(_votes("item-0", "first"), items)
    assert alone["raw"] is alone["fleiss_kappa"] is alone["cohen_kappa"] is None
    assert alone["raters"] == {}
    unanimous = agreement_statistics(_votes("item-0", "first", "first"), items)
    assert unanimous["raw"] == 1.0
    assert unanimous["fleiss_kappa"] is unanimous["alpha"] is None


def _gold_series(rater: str, right: np.ndarray) -> list[Judgement]:
    return [
        make_judgement(f"gold-{n}", rater, "first" if ok else "second", kind="gold", created_at=_when(n))
        for n, ok in enumerate(right)
    ]


GOLD = _by_id(*(make_gold_item(number) for number in range(60)))


def test_a_rater_whose_gold_accuracy_falls_in_time_is_named_and_the_others_are_not() -> None:
    judgements = _gold_series("tired", np.arange(20) < 12) + _gold_series("steady", np.arange(20) % 5 > 0)
    found = find_drift(reversed(judgements), GOLD, alpha=0.05)
    assert found["tired"]["drifts"]
    assert found["tired"]["gold"]["first_half"] == 1.0
    assert found["tired"]["gold"]["second_half"] == pytest.approx(0.2)
    assert found["tired"]["gold"]["p_holm"] < 0.05
    assert not found["steady"]["drifts"]


def test_a_rater_who_ceases_to_agree_with_the_others_drifts_and_takes_nobody_along() -> None:
    items, votes = _by_id(*(make_item(number) for number in range(60))), []
    rng = np.random.default_rng(0)
    for number in range(60):
        side, other = ("first", "second") if rng.random() < 0.5 else ("second", "first")
        astray = number >= 30
        for rater, said in enumerate([side, side, side, side, other if astray else side]):
            noisy = said if rng.random() < 0.9 else {"first": "second", "second": "first"}[said]
            votes.append(
                make_judgement(f"item-{number}", f"rater-{rater}", noisy, created_at=_when(10 * number + rater))
            )
    found = find_drift(votes, items, alpha=0.05)
    assert found["rater-4"]["drifts"]
    assert found["rater-4"]["agreement"]["second_half"] < found["rater-4"]["agreement"]["first_half"]
    assert min(found, key=lambda rater: found[rater]["agreement"]["p"]) == "rater-4"


def test_a_rater_with_few_observations_is_not_judged() -> None:
    found = find_drift(_gold_series("new", np.array([1, 1, 1, 0, 0, 0, 0])), GOLD, alpha=0.05)["new"]
    assert found["gold"]["p"] is None
    assert found["gold"]["n"] == 7
    assert not found["drifts"]


def test_a_steady_panel_raises_an_alarm_in_at_most_five_percent() -> None:
    """Twelve raters, twenty gold items each, accuracy 0.7 to 0.95: any alarm in the panel counts."""
    rng, runs, alarms = np.random.default_rng(1), 150, 0
    for _ in range(runs):
        judgements = []
        for rater in range(12):
            judgements += _gold_series(f"rater-{rater}", rng.random(20) < rng.uniform(0.7, 0.95))
        alarms += any(found["drifts"] for found in find_drift(judgements, GOLD, alpha=0.05).values())
    assert alarms / runs <= 0.05 + 3 * (0.05 * 0.95 / runs) ** 0.5


def test_a_rater_who_falls_from_095_to_050_half_way_is_found_in_most_panels() -> None:
    rng, runs, found = np.random.default_rng(2), 100, 0
    for _ in range(runs):
        judgements = []
        for rater in range(5):
            judgements += _gold_series(f"rater-{rater}", rng.random(60) < 0.9)
        tired = np.where(np.arange(60) < 30, 0.95, 0.5)
        judgements += _gold_series("tired", rng.random(60) < tired)
        found += find_drift(judgements, GOLD, alpha=0.05)["tired"]["drifts"]
    assert found / runs >= 0.8


def test_the_review_queue_begins_with_the_items_on_which_raters_disagree_the_most() -> None:
    items = _by_id(*(make_item(number) for number in range(5)), make_gold_item(9))
    votes = [
        *_votes("item-0", "first", "first", "first"),
        *_votes("item-1", "first", "first", "second"),
        *_votes("item-2", "first", "second", "tie"),
        *_votes("item-3", "first", "second", "first", "second"),
        *_votes("item-4", "first"),
        *_votes("gold-9", "first", "second"),
    ]
    queue = review_queue(votes, items)
    assert [entry["item_id"] for entry in queue] == ["item-2", "item-3", "item-1"]
    assert queue[0]["agreement"] == 0.0
    assert queue[1]["votes"] == {"first": 2, "second": 2}
    assert queue[2]["agreement"] == pytest.approx(1 / 3)
    assert {"comparison", "prompt_id", "slice", "n_votes"} <= set(queue[0])


def test_the_review_queue_is_no_longer_than_a_person_reads() -> None:
    items = _by_id(*(make_item(number) for number in range(150)))
    votes = [vote for number in range(150) for vote in _votes(f"item-{number}", "first", "second")]
    assert len(review_queue(votes, items)) == 100


def test_the_evidence_holds_all_three() -> None:
    votes = _votes("item-0", "first", "second", "tie")
    statistics = weigh_evidence(make_batch([make_item(0)], votes_per_prompt=3), votes, seed=0).statistics
    assert statistics["agreement"]["raw"] == statistics["raw_agreement"] == 0.0
    assert statistics["review_queue"][0]["item_id"] == "item-0"
    assert set(statistics["drift"]) == {"rater-0", "rater-1", "rater-2"}
