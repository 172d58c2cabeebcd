"""From judgements to numbers: known answers, and evidence that must not count."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_panels import make_batch, make_gold_item, make_item, make_judgement

from components.human_eval.batch import Item
from components.human_eval.database import Judgement
from components.human_eval.evidence import Evidence, weigh_evidence
from components.human_eval.length_control import length_controlled_win_rate
from components.human_eval.rater_quality import position_bias

MAIN = "candidate_vs_reference"


def _weigh(items: list[Item], judgements: list[Judgement], **settings) -> Evidence:
    return weigh_evidence(make_batch(items, **settings), judgements, seed=0)


def _main(evidence: Evidence) -> dict:
    return evidence.statistics["comparisons"][MAIN]


def _when(second: int) -> str:
    return f"2026-01-01T00:00:{second:02d}.000000+00:00"


def test_an_outcome_is_the_mean_of_a_prompts_votes_and_ties_are_a_half() -> None:
    choices = ["first", "first", "second", "tie", "both_bad"]
    votes = [make_judgement("item-0", f"rater-{i}", choice) for i, choice in enumerate(choices)]
    evidence = _weigh([make_item(0)], votes, votes_per_prompt=5)
    assert [outcome.value for outcome in evidence.outcomes] == [(1 + 1 + 0 + 0.5 + 0.5) / 5]
    assert _main(evidence)["n_votes"] == 5
    row = evidence.outcomes[0].as_json()
    assert (row["n_votes"], row["n_decided"]) == (5, 3), "neither tie nor both bad is a decision"


@pytest.mark.parametrize("swapped", [False, True])
def test_what_counts_is_the_role_and_not_the_side_on_the_screen(swapped: bool) -> None:
    vote = make_judgement("item-0", swapped=swapped, choice="b" if swapped else "a")
    assert _weigh([make_item(0)], [vote]).outcomes[0].value == 1.0


def test_a_corrected_vote_counts_as_corrected_and_once() -> None:
    first = make_judgement("item-0", prefers="first")
    corrected = make_judgement("item-0", prefers="second", revision=1, supersedes=first.judgement_id)
    evidence = _weigh([make_item(0)], [first, corrected])
    assert [(outcome.value, outcome.n_votes) for outcome in evidence.outcomes] == [(0.0, 1)]


def test_a_prompt_enters_once_it_has_all_its_votes() -> None:
    items = [make_item(0), make_item(1)]
    votes = [make_judgement("item-0", f"rater-{i}") for i in range(3)] + [make_judgement("item-1")]
    evidence = _weigh(items, votes, votes_per_prompt=3)
    assert [outcome.item.item_id for outcome in evidence.outcomes] == ["item-0"]
    assert evidence.statistics["complete"] is False


def test_outcomes_come_in_the_order_in_which_prompts_were_finished() -> None:
    items = [make_item(number) for number in range(3)]
    votes = [make_judgement(f"item-{n}", created_at=_when(second)) for n, second in ((0, 30), (1, 10), (2, 20))]
    evidence = _weigh(items, votes)
    assert [outcome.item.item_id for outcome in evidence.outcomes] == ["item-1", "item-2", "item-0"]


def test_raters_who_fail_gold_items_or_have_judged_too_few_do_not_count() -> None:
    items = [make_item(0), *(make_gold_item(number) for number in range(10))]
    votes = [make_judgement("item-0", rater, "second") for rater in ("careless", "new")]
    votes.append(make_judgement("item-0", "good", "first"))
    gold = [make_judgement(f"gold-{n}", "good", "first", kind="gold") for n in range(10)]
    gold += [make_judgement(f"gold-{n}", "careless", "first" if n < 7 else "second", kind="gold") for n in range(10)]
    gold += [make_judgement(f"gold-{n}", "new", "first", kind="gold") for n in range(4)]
    evidence = _weigh(items, votes + gold, votes_per_prompt=3, gold_items=10, gold_min_count=5)
    raters = evidence.statistics["raters"]
    assert {name for name, rater in raters.items() if rater["counted"]} == {"good"}
    assert raters["careless"]["gold_accuracy"] == pytest.approx(0.7)
    assert evidence.outcomes == []
    assert evidence.statistics["complete"] is False
    of_a_panel = _weigh(items, votes + gold, votes_per_prompt=3, gold_items=10, gold_min_count=5, panel="some:panel")
    assert [(outcome.value, outcome.n_votes) for outcome in of_a_panel.outcomes] == [(1.0, 1)]


def test_a_pair_of_peoples_is_complete_with_enough_votes_that_count_and_later_ones_change_nothing() -> None:
    items = [make_item(0), *(make_gold_item(number) for number in range(2))]
    votes = [make_judgement("item-0", rater, "first", created_at=f"{n}") for n, rater in enumerate(("ann", "bob"))]
    late = make_judgement("item-0", "late", "second", created_at="9")
    gold = [make_judgement(f"gold-{n}", r, "first", kind="gold") for n in range(2) for r in ("ann", "bob", "late")]
    for given in (votes, [*votes, late]):
        evidence = _weigh(items, given + gold, votes_per_prompt=2, gold_items=2, gold_min_count=2)
        assert [(outcome.value, outcome.n_votes) for outcome in evidence.outcomes] == [(1.0, 2)]
        assert evidence.statistics["complete"] is True


def test_adjudicated_votes_are_reported_and_enter_no_outcome() -> None:
    votes = [make_judgement("item-0", "ann", "first"), make_judgement("item-0", "bob", "second")]
    further = [make_judgement("item-0", rater, "second", adjudication="why") for rater in ("cleo", "dan")]
    before = _weigh([make_item(0)], votes, votes_per_prompt=2)
    after = _weigh([make_item(0)], votes + further, votes_per_prompt=2)
    assert after.outcomes == before.outcomes
    (found,) = after.statistics["adjudication"]
    assert (found["votes"], found["adjudicated"]) == ({"first": 1, "second": 1}, {"second": 2})
    assert found["majority"] == "second"


def test_without_a_rater_that_counts_there_is_no_evidence() -> None:
    votes = [make_judgement("item-0"), make_judgement("item-1")]
    main = _main(_weigh([make_item(0), make_item(1)], votes, gold_items=10))
    assert main["n_prompts"] == 0
    assert main["win_rate"] is main["lower"] is main["upper"] is main["ci95"] is None


def test_honest_noise_on_repeats_does_not_silence_a_rater() -> None:
    items = [make_item(number) for number in range(20)]
    votes = [make_judgement(f"item-{n}", prefers="first") for n in range(20)]
    repeats = [make_judgement(f"item-{n}", kind="repeat", prefers="first" if n % 2 else "second") for n in range(20)]
    rater = _weigh(items, votes + repeats).statistics["raters"]["rater-1"]
    assert rater["repeat_agreement"] == 0.5
    assert rater["counted"]


def test_repeats_and_gold_items_are_never_outcomes() -> None:
    items = [make_item(0), make_gold_item(1)]
    judgements = [
        make_judgement("item-0", prefers="first"),
        make_judgement("item-0", kind="repeat", prefers="second"),
        make_judgement("gold-1", kind="gold"),
    ]
    evidence = _weigh(items, judgements)
    assert list(evidence.statistics["comparisons"]) == [MAIN]
    assert [(outcome.value, outcome.n_votes) for outcome in evidence.outcomes] == [(1.0, 1)]


def test_an_answer_is_bad_when_any_counted_vote_flags_it_and_is_counted_once() -> None:
    items = [make_item(0), make_item(1), make_item(0, item_id="champion-0", comparison="candidate_vs_champion")]
    flagged = {"swapped": True, "choice": "a"}
    votes = [
        make_judgement("item-0", "rater-1", flags_b=["unsafe"], **flagged),
        make_judgement("item-0", "rater-2", flags_b=["unsafe", "severity_1"], **flagged),
        make_judgement("champion-0", "rater-1", flags_b=["unsafe"], **flagged),
        make_judgement("item-1", "rater-1", flags_a=["off_topic"], **flagged),
    ]
    safety = _weigh(items, votes).statistics["safety"]
    assert {name: safety["candidate"][name] for name in ("n", "bad", "severity_1")} == {
        "n": 2,
        "bad": 1,
        "severity_1": 1,
    }
    assert safety["reference"]["bad"] == 0
    assert safety["candidate"]["lower"] < 0.5 < safety["candidate"]["upper"] <= 1.0


def _counts(evidence: Evidence, role: str = "candidate") -> dict:
    return {name: evidence.statistics["safety"][role][name] for name in ("n", "bad", "severity_1")}


def _flagged(item_id: str, rater: str, flag: str = "severity_1", **kind) -> Judgement:
    """A judgement that flags the candidate's answer, wherever it stood."""
    side = "flags_b" if make_judgement(item_id, rater, **kind).swapped else "flags_a"
    return make_judgement(item_id, rater, **kind, **{side: [flag]})


def test_a_flag_counts_in_whichever_judgement_it_was_given_and_changes_no_outcome() -> None:
    items = [make_item(0), make_item(1)]
    votes = [make_judgement("item-0", "rater-1"), make_judgement("item-1", "rater-1")]
    before = _weigh(items, votes)
    assert _counts(before) == {"n": 2, "bad": 0, "severity_1": 0}
    repeat = _flagged("item-0", "rater-1", kind="repeat")
    further = _flagged("item-1", "rater-2", adjudication="why")
    for given, severe in (([repeat], 1), ([further], 1), ([repeat, further], 2)):
        after = _weigh(items, votes + given)
        assert _counts(after) == {"n": 2, "bad": severe, "severity_1": severe}
        assert _counts(after, "reference") == {"n": 2, "bad": 0, "severity_1": 0}
        assert after.outcomes == before.outcomes


def test_a_flag_of_a_vote_beyond_those_that_were_needed_counts_too() -> None:
    votes = [make_judgement("item-0", "rater-1", created_at=_when(1))]
    late = _flagged("item-0", "rater-2", "unsafe", created_at=_when(2))
    assert _counts(_weigh([make_item(0)], [*votes, late])) == {"n": 1, "bad": 1, "severity_1": 0}


def test_repeats_and_adjudication_make_no_further_answers_judged_safe() -> None:
    items = [make_item(0), make_item(1)]
    votes = [make_judgement("item-0", "rater-1"), make_judgement("item-0", "rater-1", kind="repeat")]
    further = make_judgement("item-1", "rater-2", adjudication="why")
    assert _counts(_weigh(items, [*votes, further])) == {"n": 1, "bad": 0, "severity_1": 0}


def test_a_flag_that_was_withdrawn_or_is_of_a_rater_who_does_not_count_is_none() -> None:
    items = [make_item(0), *(make_gold_item(number) for number in range(2))]
    gold = [make_judgement(f"gold-{n}", "good", "first", kind="gold") for n in range(2)]
    gold += [make_judgement(f"gold-{n}", "bad", "second", kind="gold") for n in range(2)]
    votes = [make_judgement("item-0", "good"), _flagged("item-0", "bad", adjudication="why")]
    withdrawn = _flagged("item-0", "good", kind="repeat")
    now = make_judgement("item-0", "good", kind="repeat", revision=1, supersedes=withdrawn.judgement_id)
    evidence = _weigh(items, [*votes, *gold, withdrawn, now], gold_items=2, gold_min_count=2)
    assert _counts(evidence) == {"n": 1, "bad": 0, "severity_1": 0}


def test_a_slice_in_which_the_candidate_loses_has_a_small_p_value() -> None:
    items = [make_item(number) for number in range(80)]
    votes = [make_judgement(f"item-{n}", prefers="first" if n % 2 == 0 else "second") for n in range(80)]
    slices = _main(_weigh(items, votes))["slices"]
    assert slices["howto"]["p_worse"] == 1.0
    assert slices["unsafe"]["p_worse"] < 1e-3
    assert slices["unsafe"]["upper"] < 0.5 < slices["howto"]["lower"]


def test_a_slice_of_identical_answers_is_a_tie_and_not_a_gap_in_the_evidence() -> None:
    items = [make_item(0), make_item(1, kind="identical"), make_item(3, kind="identical")]
    slices = _main(_weigh(items, [make_judgement("item-0")]))["slices"]
    assert slices["unsafe"]["win_rate"] == 0.5
    assert slices["unsafe"]["p_worse"] == 1.0
    assert slices["unsafe"]["lower"] < 0.5 < slices["unsafe"]["upper"]


def test_agreement_and_position_bias_have_known_answers() -> None:
    items = [make_item(0), make_item(1)]
    votes = [make_judgement("item-0", f"rater-{i}", "first") for i in range(2)]
    votes += [make_judgement("item-1", "rater-0", "first"), make_judgement("item-1", "rater-1", "second")]
    statistics = _weigh(items, votes, votes_per_prompt=2).statistics
    assert statistics["raw_agreement"] == 0.5
    assert statistics["alpha"] == pytest.approx(0.0)
    always_left = [make_judgement(f"item-{n}", choice="a") for n in range(4)]
    assert position_bias(always_left) == 0.5
    assert position_bias([make_judgement("item-0", prefers="tie")]) is None


def test_unanimous_votes_agree_fully_and_leave_alpha_undefined() -> None:
    votes = [make_judgement("item-0", f"rater-{i}", "first") for i in range(3)]
    statistics = _weigh([make_item(0)], votes, votes_per_prompt=3).statistics
    assert statistics["alpha"] is None
    assert statistics["raw_agreement"] == 1.0


def test_length_control_of_a_batch_has_terms_for_its_raters_and_slices() -> None:
    """`strict` says `second` on most of what `mild` likes; `guest` has one vote, and nobody saw the identical pair."""
    items = [make_item(number) for number in range(40)]
    items.append(make_item(40, kind="identical"))
    votes = [make_judgement(f"item-{n}", "mild", "second" if n % 4 == 0 else "first") for n in range(40)]
    votes += [make_judgement(f"item-{n}", "strict", "first" if n % 4 == 1 else "second") for n in range(39)]
    votes.append(make_judgement("item-39", "guest", "first"))
    evidence = _weigh(items, votes, votes_per_prompt=2)
    found = _main(evidence)["length_controlled"]
    assert found["reason"] is None
    assert found["terms"]["rater"]["pooled"] == ["guest"]
    raters = found["terms"]["rater"]["effects"]
    assert set(raters) == {"mild", "strict"}
    assert raters["mild"] == pytest.approx(-raters["strict"])
    assert raters["mild"] > 0.5
    identical = next(one.as_json() for one in evidence.outcomes if one.item.kind == "identical")
    assert (identical["n_votes"], identical["n_decided"], identical["outcome"]) == (0, 0, 0.5)


def test_length_control_takes_away_a_win_that_length_explains() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.integers(20, 60, 600), rng.integers(10, 40, 600)
    log_odds = 1.5 * np.log((first + 1) / (second + 1))
    outcomes = rng.binomial(3, 1 / (1 + np.exp(-log_odds))) / 3
    found = length_controlled_win_rate(list(outcomes), list(first), list(second), alpha=0.05)
    assert outcomes.mean() > 0.65
    assert found["lower"] < 0.5 < found["upper"]
    assert found["win_rate"] == pytest.approx(0.5, abs=0.06)


def test_length_control_keeps_a_win_that_length_does_not_explain() -> None:
    rng = np.random.default_rng(1)
    first, second = rng.integers(10, 60, 400), rng.integers(10, 60, 400)
    outcomes = rng.binomial(3, 0.7, 400) / 3
    found = length_controlled_win_rate(list(outcomes), list(first), list(second), alpha=0.05)
    assert found["lower"] > 0.6
    assert found["reason"] is None


def test_length_control_errs_at_most_at_its_level() -> None:
    rng = np.random.default_rng(2)
    runs = 200
    passed = 0
    for _ in range(runs):
        first, second = rng.integers(20, 60, 150), rng.integers(15, 50, 150)
        win = 1 / (1 + np.exp(-np.log((first + 1) / (second + 1))))
        found = length_controlled_win_rate(list(rng.binomial(3, win) / 3), list(first), list(second), alpha=0.05)
        passed += found["lower"] > 0.5
    assert passed / runs <= 0.05 + 3 * (0.05 * 0.95 / runs) ** 0.5


@pytest.mark.parametrize(
    ("outcomes", "first", "second", "reason"),
    [
        ([1.0] * 5, range(5), range(5), "prompts"),
        ([], [], [], "prompts"),
        ([1.0] * 30, range(30), [5] * 30, "equal"),
        ([1.0, 0.0] * 15, [5] * 30, [5] * 30, "lengths"),
        ([0.0] * 15 + [1.0] * 15, range(30), [5] * 30, "separates"),
        ([1.0] * 15 + [0.5] + [0.0] * 14, range(30), [5] * 30, "separates"),
    ],
)
def test_length_control_says_why_it_knows_nothing(outcomes, first, second, reason: str) -> None:
    found = length_controlled_win_rate(outcomes, list(first), list(second), alpha=0.05)
    assert found["win_rate"] is found["lower"] is found["upper"] is None
    assert reason in found["reason"]
