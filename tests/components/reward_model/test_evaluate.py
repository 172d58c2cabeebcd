from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_pairs import BAD, GOOD, make_attacks, make_pairs, make_record, make_records, make_settings, make_tokenizer

from components.reward_model.evaluate import Evaluation, evaluate
from components.reward_model.robustness import Scorer
from components.reward_model.settings import REQUIRED_ATTACKS, RewardModelSettings
from components.shared.errors import InputError
from components.shared.records import PreferenceRecord
from components.shared.statistics import logistic_slope, wilson_interval

TOKEN = make_tokenizer().get_vocab()


def make_parsed_settings(**overrides: Any) -> RewardModelSettings:
    return RewardModelSettings(**make_settings(**overrides))


def score_each(reward: Callable[[list[int]], float]) -> Scorer:
    """A reward model that looks at the answer's token ids only."""

    def scorer(prompts_ids: Sequence[list[int]], responses_ids: Sequence[list[int]]) -> list[float]:
        assert len(prompts_ids) == len(responses_ids)
        return [reward(ids) for ids in responses_ids]

    return scorer


def robust(ids: list[int]) -> float:
    """Pays for substance alone."""
    return float(TOKEN["good"] in ids) - float(TOKEN["bad"] in ids)


def with_bonus(word: str, bonus: float) -> Callable[[list[int]], float]:
    """Pays for substance, and for every occurrence of a word."""
    return lambda ids: robust(ids) + bonus * ids.count(TOKEN[word])


def judge(tmp_path, reward, records=None, **overrides: Any) -> Evaluation:
    parsed = make_parsed_settings(**overrides)
    pairs = make_pairs(tmp_path, records or make_mixed_records(120), parsed)
    return evaluate(pairs, score_each(reward), make_tokenizer(), parsed)


def make_mixed_records(n: int) -> list[PreferenceRecord]:
    """Records of which every fifth was judged the other way round: substance alone is right on 80 %."""
    return [
        record.model_copy(update={"chosen": record.rejected, "rejected": record.chosen}) if i % 5 == 0 else record
        for i, record in enumerate(make_records(n))
    ]


def failed_checks(evaluation: Evaluation) -> set[str]:
    return {check["name"] for check in evaluation.report["checks"] if not check["passed"]}


def test_a_robust_reward_model_passes_every_check(tmp_path):
    evaluation = judge(tmp_path, robust)
    assert failed_checks(evaluation) == set()
    assert evaluation.report["passed"] is True


def test_accuracy_and_its_intervals_are_those_of_the_counts(tmp_path):
    report = judge(tmp_path, robust).report
    assert report["n"] == 120
    assert report["accuracy"]["value"] == pytest.approx(0.8)
    assert report["accuracy"]["ci95_wilson"] == pytest.approx(wilson_interval(96, 120))
    assert report["accuracy"]["lower95_one_sided"] <= wilson_interval(96, 120, 0.90)[0]
    assert report["slices"]["safe"]["n"] + report["slices"]["unsafe"]["n"] == 120
    assert report["raters"].keys() == {"r0", "r1"}


def test_pairs_of_few_prompts_widen_the_interval(tmp_path):
    """All pairs of one prompt are right or wrong together: the evidence is 6 prompts, not 120 pairs."""
    records = [
        make_record(i, prompt="how do i fix it" + " so" * (i % 6), chosen=BAD, rejected=GOOD)
        if i % 6 == 0
        else make_record(i, prompt="how do i fix it" + " so" * (i % 6))
        for i in range(120)
    ]
    accuracy = judge(tmp_path, robust, records).report["accuracy"]
    wilson, clustered = accuracy["ci95_wilson"], accuracy["ci95_clustered"]
    assert clustered[1] - clustered[0] > 2 * (wilson[1] - wilson[0])
    assert accuracy["lower95_one_sided"] < wilson_interval(100, 120, 0.90)[0]


def test_the_scale_is_that_of_the_heldout_rewards(tmp_path):
    evaluation = judge(tmp_path, robust)
    differences = [2.0] * 96 + [-2.0] * 24
    assert evaluation.scale["mean"] == pytest.approx(0.0)
    assert evaluation.scale["std"] == pytest.approx(1.0)
    assert evaluation.scale["slope"] == pytest.approx(logistic_slope(differences))
    assert evaluation.scale["slope"] == pytest.approx(math.log(4) / 2, rel=0.05)
    assert evaluation.report["margin"] == {"mean": pytest.approx(1.2), "std": pytest.approx(1.6)}


def test_calibration_of_a_model_with_one_difference_is_known(tmp_path):
    """It says sigmoid(2) = 0.88 on every pair and is right on 80 %."""
    calibration = judge(tmp_path, robust).report["calibration"]
    confidence = 1 / (1 + math.exp(-2))
    assert calibration["ece"] == pytest.approx(confidence - 0.8)
    assert calibration["brier"] == pytest.approx(0.8 * (1 - confidence) ** 2 + 0.2 * confidence**2)
    assert calibration["ece_scaled"] == pytest.approx(0.0, abs=0.01)
    assert calibration["bins"] == [{"p_mean": pytest.approx(confidence), "rate": pytest.approx(0.8), "n": 120}]


def test_which_answer_is_called_chosen_does_not_change_the_calibration_of_a_coin(tmp_path):
    records = [
        record if i % 2 else record.model_copy(update={"chosen": record.rejected, "rejected": record.chosen})
        for i, record in enumerate(make_records(120))
    ]
    report = judge(tmp_path, robust, records).report
    assert report["calibration"]["slope"] == pytest.approx(0.0, abs=1e-6)
    assert "accuracy_lower_bound" in {check["name"] for check in report["checks"] if not check["passed"]}


def test_a_reward_that_is_length_is_caught(tmp_path):
    records = [
        make_record(i, chosen=GOOD + " so" * (i % 4), rejected=BAD if i % 4 else BAD + " so so so") for i in range(120)
    ]
    evaluation = judge(tmp_path, lambda ids: float(len(ids)), records)
    assert evaluation.report["length"]["correlation"] == pytest.approx(1.0)
    assert evaluation.report["length"]["difference_correlation"] == pytest.approx(1.0)
    assert {"attack:padding", "attack:repetition"} <= failed_checks(evaluation)
    assert evaluation.report["attacks"]["padding"]["success_rate"] == 1.0
    assert evaluation.report["attacks"]["padding"]["mean_shift"] > 1


@pytest.mark.parametrize(
    ("word", "attack"),
    [("so", "padding"), ("wow", "flattery"), ("step", "confident_jargon"), ("sorry", "refusal_template")],
)
def test_a_shortcut_is_caught_by_its_attack(tmp_path, word, attack):
    records = (
        make_mixed_records(120) if word != "so" else [make_record(i, chosen=GOOD, rejected=BAD) for i in range(120)]
    )
    bonus = 3.0 if word == "sorry" else 1.5
    evaluation = judge(tmp_path, with_bonus(word, bonus), records)
    assert f"attack:{attack}" in failed_checks(evaluation)
    assert evaluation.report["attacks"][attack]["raised_share"] == 1.0


def test_a_limit_decides_what_is_too_much(tmp_path):
    strict = judge(tmp_path, with_bonus("wow", 1.5), attacks=make_attacks(flattery=0.3))
    lenient = judge(tmp_path, with_bonus("wow", 1.5), attacks=make_attacks(flattery=1.0))
    assert failed_checks(strict) - failed_checks(lenient) == {"attack:flattery"}


def test_a_refusal_counts_only_where_it_is_wrong(tmp_path):
    attacks = make_attacks()
    attacks["refusal_template"]["exclude_slices"] = ["unsafe"]
    everywhere, excluded = judge(tmp_path, robust), judge(tmp_path, robust, attacks=attacks)
    assert everywhere.report["attacks"]["refusal_template"]["n"] == 96
    right_and_safe = sum(i % 5 != 0 and i % 3 != 0 for i in range(120))
    assert excluded.report["attacks"]["refusal_template"]["n"] == right_and_safe


def test_an_attack_that_no_pair_can_show_never_passes(tmp_path):
    attacks = make_attacks()
    attacks["flattery"]["exclude_slices"] = ["safe", "unsafe"]
    evaluation = judge(tmp_path, robust, attacks=attacks)
    assert evaluation.report["attacks"]["flattery"]["ci95"] is None
    assert failed_checks(evaluation) == {"attack:flattery"}


def test_a_reward_that_minds_a_harmless_edit_is_caught(tmp_path):
    records = [make_record(i, rejected=f"{BAD} '") for i in range(120)]
    evaluation = judge(tmp_path, with_bonus("’", 5.0), records)
    assert failed_checks(evaluation) == {"edit:typographic_quotes", "leakage_ceiling"}
    assert evaluation.report["edits"]["typographic_quotes"]["flip_rate"] == 1.0
    assert evaluation.report["edits"]["double_space"]["flip_rate"] == 0.0


def test_too_good_to_be_true_is_taken_for_leakage(tmp_path):
    evaluation = judge(tmp_path, robust, make_records(120))
    assert evaluation.report["accuracy"]["value"] == 1.0
    assert failed_checks(evaluation) == {"leakage_ceiling"}


def test_a_few_pairs_are_too_little_evidence(tmp_path):
    assert "accuracy_lower_bound" in failed_checks(judge(tmp_path, robust, make_mixed_records(10)))


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_rewards_that_are_not_numbers_never_pass(tmp_path, poison):
    """One poisoned answer among 240 is enough."""
    calls = iter(range(10**6))
    evaluation = judge(tmp_path, lambda ids: poison if next(calls) == 7 else robust(ids))
    assert evaluation.report["passed"] is False
    assert evaluation.scale == {"mean": None, "std": None, "slope": None}
    assert {f"attack:{name}" for name in REQUIRED_ATTACKS} <= failed_checks(evaluation)
    assert "finite_rewards" in failed_checks(evaluation)


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_an_attack_that_breaks_the_reward_counts_as_a_success(tmp_path, poison):
    evaluation = judge(tmp_path, lambda ids: poison if TOKEN["wow"] in ids else robust(ids))
    assert evaluation.report["attacks"]["flattery"]["success_rate"] == 1.0
    assert failed_checks(evaluation) == {"attack:flattery"}


def test_a_constant_reward_has_ties_and_fails(tmp_path):
    evaluation = judge(tmp_path, lambda ids: 0.5)
    assert evaluation.report["accuracy"]["value"] == 0.0
    assert evaluation.report["accuracy"]["ties"] == 120
    assert evaluation.scale["slope"] is None
    assert evaluation.report["passed"] is False


def test_without_heldout_pairs_there_is_no_verdict():
    with pytest.raises(InputError, match="no held-out pairs"):
        evaluate([], score_each(robust), make_tokenizer(), make_parsed_settings())


def test_length_bins_show_where_the_model_is_right(tmp_path):
    bins = judge(tmp_path, lambda ids: float(len(ids)), make_records(120)).report["length"]["bins"]
    assert sum(row["n"] for row in bins) == 120
    assert [row["low"] for row in bins] == sorted(row["low"] for row in bins)
    assert bins[0]["accuracy"] == 0.0
    assert bins[-1]["accuracy"] == 1.0


def test_clear_and_unclear_preferences_are_told_apart(tmp_path):
    records = [
        make_record(i, strength=1.0) if i % 2 else make_record(i, strength=0.1, chosen=BAD, rejected=GOOD)
        for i in range(60)
    ]
    bins = judge(tmp_path, robust, records).report["separability"]["bins"]
    assert [(row["low"], row["accuracy"]) for row in bins] == [(0.1, 0.0), (1.0, 1.0)]


def test_predictions_tell_every_pair(tmp_path):
    rows = judge(tmp_path, robust).predictions
    assert len(rows) == 120
    assert np.mean([row["correct"] for row in rows]) == pytest.approx(0.8)
    assert rows[0].keys() >= {"id", "slice", "group", "rater", "chosen_reward", "rejected_reward", "difference"}


def test_an_attack_cannot_be_left_out():
    attacks = make_attacks()
    del attacks["repetition"]
    with pytest.raises(ValueError, match="attacks left out: repetition"):
        make_parsed_settings(attacks=attacks)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return make_pairs(tmp_path_factory.mktemp("pairs"), make_mixed_records(40), make_parsed_settings())


@settings(max_examples=10, deadline=None)
@given(
    values=st.lists(st.integers(-3, 3), min_size=len(TOKEN), max_size=len(TOKEN)),
    scale=st.sampled_from([0.25, 2.0, 8.0]),
    shift=st.integers(-5, 5),
)
def test_what_decides_does_not_depend_on_the_rewards_scale_or_origin(pairs, values, scale, shift):
    def verdicts(scale: float, shift: int) -> list[bool]:
        scorer = score_each(lambda ids: scale * sum(values[i] for i in ids) + shift)
        report = evaluate(pairs, scorer, make_tokenizer(), make_parsed_settings()).report
        return [check["passed"] for check in report["checks"]]

    assert verdicts(scale, shift) == verdicts(1.0, 0)
