from __future__ import annotations

import itertools

import pytest

from components.release_gate.findings import Criterion, Finding
from components.release_gate.verdict import Judgement, Verdict, decide

CANDIDATE_FINDINGS = [Finding.PASS, Finding.NOT_APPLICABLE, Finding.HOLD, Finding.BLOCK, Finding.ERROR]


def _make_criterion(finding: Finding, name: str = "human_preference.reference") -> Criterion:
    return Criterion(name, finding, f"Because of {finding}.")


def _verdict(*findings: Finding, live: bool = False, name: str = "human_preference.reference") -> Verdict:
    return decide([_make_criterion(finding, name) for finding in findings], live=live).verdict


@pytest.mark.parametrize("findings", list(itertools.combinations(CANDIDATE_FINDINGS, 2)))
def test_the_worst_criterion_wins_for_a_candidate(findings: tuple[Finding, Finding]) -> None:
    order = [Finding.ERROR, Finding.BLOCK, Finding.HOLD]
    worst = next((finding for finding in order if finding in findings), None)
    expected = Verdict.PROMOTE if worst is None else Verdict(str(worst))
    assert _verdict(*findings) is expected
    assert _verdict(*reversed(findings)) is expected


def test_shown_harm_outranks_error_on_a_live_model() -> None:
    assert _verdict(Finding.ERROR, Finding.BLOCK, live=True) is Verdict.ROLLBACK
    assert _verdict(Finding.ERROR, Finding.ROLLBACK, Finding.HOLD, live=True) is Verdict.ROLLBACK
    assert _verdict(Finding.ERROR, Finding.HOLD, live=True) is Verdict.ERROR
    assert _verdict(Finding.HOLD, Finding.PASS, live=True) is Verdict.HOLD
    assert _verdict(Finding.PASS, live=True) is Verdict.KEEP


@pytest.mark.parametrize("name", ["reward_model.accuracy", "kl.sequence", "length_style", "raters.quality"])
def test_a_live_model_is_not_rolled_back_for_how_it_was_trained(name: str) -> None:
    assert _verdict(Finding.BLOCK, live=True, name=name) is Verdict.HOLD


@pytest.mark.parametrize("name", ["human_preference.reference", "divergence.harm", "safety.share", "regression.harm"])
def test_a_live_model_that_harms_people_is_rolled_back(name: str) -> None:
    assert _verdict(Finding.BLOCK, live=True, name=name) is Verdict.ROLLBACK


def test_nothing_judged_is_an_error_and_never_a_pass() -> None:
    for live in (False, True):
        assert decide([], live=live).verdict is Verdict.ERROR
        assert _verdict(Finding.NOT_APPLICABLE, Finding.NOT_APPLICABLE, live=live) is Verdict.ERROR


def test_reasons_name_the_heaviest_first_and_people_before_machines() -> None:
    found = [
        _make_criterion(Finding.HOLD, "length_style"),
        _make_criterion(Finding.BLOCK, "kl.sequence"),
        _make_criterion(Finding.BLOCK, "divergence.harm"),
        _make_criterion(Finding.PASS, "raters.kind"),
    ]
    reasons = decide(found, live=False).reasons
    assert [reason.split(":")[0] for reason in reasons] == [
        "Blocked (divergence, harm)",
        "Blocked (kl, sequence)",
        "Evidence missing (length style)",
    ]


HUMAN_HARM = ["human_preference.reference", "divergence.harm", "safety.severity_1", "safety.share", "regression.harm"]


def _on_live(harm: str, **raters: Finding) -> Judgement:
    """The verdict on a live model of which one criterion shows harm, and what the criteria of the raters say."""
    found = {"kind": Finding.PASS, "complete": Finding.PASS, "quality": Finding.PASS, **raters}
    criteria = [_make_criterion(Finding.BLOCK, harm)]
    return decide(criteria + [_make_criterion(value, f"raters.{name}") for name, value in found.items()], live=True)


@pytest.mark.parametrize("harm", HUMAN_HARM)
@pytest.mark.parametrize(
    "raters",
    [{"kind": Finding.HOLD}, {"quality": Finding.HOLD}, {"kind": Finding.HOLD, "complete": Finding.HOLD}],
    ids=str,
)
def test_votes_that_do_not_count_roll_no_live_model_back_and_raise_the_alarm(
    harm: str, raters: dict[str, Finding]
) -> None:
    found = _on_live(harm, **raters)
    assert (found.verdict, found.alarm) == (Verdict.HOLD, True)
    assert found.reasons[0].startswith("ALARM: HARM IS SEEN ON THE LIVE MODEL")
    assert harm in found.reasons[0]
    assert "voids the votes" in found.criteria[0].reason
    assert _on_live(harm).verdict is Verdict.ROLLBACK, "where the votes count"


@pytest.mark.parametrize("name", ["kind", "quality", "complete"])
def test_votes_of_which_nothing_can_be_said_roll_no_live_model_back(name: str) -> None:
    found = _on_live("human_preference.reference", **{name: Finding.ERROR})
    assert (found.verdict, found.alarm) == (Verdict.ERROR, True)


def test_harm_that_does_not_rest_on_votes_rolls_back_whoever_voted() -> None:
    found = _on_live("divergence.heldout_peak", kind=Finding.HOLD)
    assert (found.verdict, found.alarm) == (Verdict.ROLLBACK, False)


@pytest.mark.parametrize("harm", HUMAN_HARM)
def test_an_incomplete_batch_takes_nothing_from_bounds_that_hold_at_any_time(harm: str) -> None:
    found = _on_live(harm, complete=Finding.HOLD)
    if harm == "safety.share":
        assert (found.verdict, found.alarm) == (Verdict.HOLD, True), "its bounds are for a fixed number of answers"
    else:
        assert (found.verdict, found.alarm) == (Verdict.ROLLBACK, False)


def test_a_live_model_that_harms_nobody_raises_no_alarm_whoever_voted() -> None:
    found = decide([_make_criterion(Finding.PASS), _make_criterion(Finding.HOLD, "raters.kind")], live=True)
    assert (found.verdict, found.alarm) == (Verdict.HOLD, False)


def test_a_candidate_is_blocked_whoever_voted() -> None:
    """A block takes nothing from anybody: the champion stays."""
    found = decide([_make_criterion(Finding.BLOCK), _make_criterion(Finding.HOLD, "raters.kind")], live=False)
    assert (found.verdict, found.alarm) == (Verdict.BLOCK, False)
