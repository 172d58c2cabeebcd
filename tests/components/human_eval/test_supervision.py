"""Batches that cannot go on by themselves: what is missing is said, and a release manager can help."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from test_rating_desk import Clock, _answer, _honest, _judge_all, _next, clock, make_desk

from components.human_eval.desk import RatingDesk
from components.human_eval.evidence import weigh_evidence
from components.human_eval.rating import ClosedError, SetAsideError
from components.human_eval.supervision import Supervision
from components.shared.errors import InputError

__all__ = ["clock", "make_desk"]


def _watch(desk: RatingDesk) -> Supervision:
    return Supervision(desk.books)


def _wrong_about_gold(task: Any) -> str:
    honest = _honest(task)
    return {"a": "b", "b": "a"}[honest] if "good" in (task.response_a, task.response_b) else honest


def test_pairs_of_a_rater_who_fails_go_to_others_until_enough_votes_count(make_desk: Any) -> None:
    desk = make_desk(n_pairs=8, n_gold=6, votes_per_prompt=2)
    _judge_all(desk, "careless", _wrong_about_gold)
    assert desk.progress("batch", "careless").set_aside
    assert desk.next_task("batch", "careless") is None
    assert desk.progress("batch", "ann").votes == 0
    for rater in ("ann", "bob"):
        _judge_all(desk, rater, _honest)
    batch, judgements = desk.database.batch("batch"), desk.database.judgements("batch")
    assert any(judgement.rater == "careless" and judgement.kind == "vote" for judgement in judgements)
    statistics = weigh_evidence(batch, judgements, seed=0).statistics
    assert statistics["complete"]
    assert [name for name, rater in statistics["raters"].items() if not rater["counted"]] == ["careless"]
    assert statistics["comparisons"]["candidate_vs_reference"]["n_votes"] == 16
    assert desk.database.closure("batch") is not None


def test_a_rater_who_failed_can_change_nothing_to_be_counted_after_all(make_desk: Any) -> None:
    desk = make_desk(n_pairs=8, n_gold=6)
    tasks = _judge_all(desk, "careless", _wrong_about_gold)
    last = tasks[-1]
    with pytest.raises(SetAsideError):
        desk.reopen("batch", "careless")
    with pytest.raises(SetAsideError):
        desk.submit(last.task_id, "careless", _answer(_honest(last), revision=1))
    again = desk.submit(last.task_id, "careless", _answer(_wrong_about_gold(last)))
    assert again.revision == 0, "the same request again has the same answer"


def test_a_skipped_pair_without_raters_left_is_named_and_can_be_given_back(make_desk: Any) -> None:
    desk = make_desk(n_pairs=2, votes_per_prompt=2)
    skipped = _next(desk, "ann")
    desk.skip(skipped.task_id, "ann")
    for rater in ("ann", "bob"):
        _judge_all(desk, rater)
    assert desk.next_task("batch", "ann") is None
    report = _watch(desk).report("batch")
    (stuck,) = report.stuck
    assert (stuck.votes, stuck.needed, stuck.skipped_by, report.more_raters) == (1, 2, ["ann"], 1)
    assert "1 more rater is wanted, or 1 skipped pairs are given back" in " ".join(report.waits_for)
    with pytest.raises(InputError, match="nobody skipped"):
        _watch(desk).return_skip("batch", "item-99", actor="mia", reason="please")
    _watch(desk).return_skip("batch", stuck.item_id, actor="mia", reason="please")
    assert _watch(desk).report("batch").stuck == []
    back = _next(desk, "ann")
    assert back.task_id == skipped.task_id
    desk.skip(back.task_id, "ann")
    assert desk.next_task("batch", "ann") is None
    assert _watch(desk).report("batch").stuck_pairs == 1
    _watch(desk).return_skip("batch", stuck.item_id, actor="mia", reason="once more")
    desk.submit(_next(desk, "ann").task_id, "ann", _answer())
    assert desk.database.closure("batch") is not None


def test_a_pair_that_came_back_to_its_rater_is_held_for_that_rater_alone(make_desk: Any) -> None:
    desk = make_desk(n_pairs=1)
    skipped = _next(desk, "ann")
    desk.skip(skipped.task_id, "ann")
    _watch(desk).return_skip("batch", desk.plan("batch").pairs[0], actor="mia", reason="please")
    back = _next(desk, "ann")
    assert desk.next_task("batch", "bob") is None
    assert _next(desk, "ann") == back, "a reload changes nothing"
    anew = RatingDesk(desk.database, now=desk.books.now)
    assert anew.next_task("batch", "bob") is None, "nor does a restart"
    desk.submit(back.task_id, "ann", _answer())


def test_another_rater_helps_as_well(make_desk: Any) -> None:
    desk = make_desk(n_pairs=1)
    desk.skip(_next(desk, "ann").task_id, "ann")
    assert _watch(desk).report("batch").more_raters == 1
    _judge_all(desk, "bob")
    assert desk.database.closure("batch") is not None


def test_a_rater_who_owes_checks_and_is_gone_can_be_dismissed_and_no_other(make_desk: Any, clock: Clock) -> None:
    desk = make_desk(n_pairs=6, n_gold=6)
    task = _next(desk, "gone")
    while task.response_a[0] not in "cr":
        desk.submit(task.task_id, "gone", _answer(_honest(task)))
        task = _next(desk, "gone")
    desk.submit(task.task_id, "gone", _answer("a"))
    _judge_all(desk, "ann", _honest)
    watch = _watch(desk)
    report = watch.report("batch")
    assert (report.open_pairs, report.owing) == (0, ["gone"])
    assert "raters owe checks: gone" in report.waits_for[0]
    with pytest.raises(InputError, match="cannot be taken away"):
        watch.dismiss("batch", "ann", actor="mia", reason="she votes wrong")
    clock.advance(21)
    watch.dismiss("batch", "gone", actor="mia", reason="left the project")
    after = watch.report("batch")
    assert (after.open_pairs, {rater.rater: rater.status for rater in after.raters}["gone"]) == (1, "dismissed")
    _judge_all(desk, "ann", _honest)
    assert desk.database.closure("batch") is not None


def test_of_a_dismissed_rater_who_owed_a_repeat_only_the_votes_stay(make_desk: Any, clock: Clock) -> None:
    """The desk asks nobody else for them, as the evidence counts them."""
    desk = make_desk(n_pairs=4, repeat_share=1.0, votes_per_prompt=1)
    for _ in range(4):
        desk.submit(_next(desk, "gone").task_id, "gone", _answer("a"))
    watch = _watch(desk)
    assert (watch.report("batch").votes, watch.report("batch").owing) == (4, ["gone"])
    with pytest.raises(InputError, match="was here less than 20 minutes ago"):
        watch.dismiss("batch", "gone", actor="mia", reason="dislikes the candidate")
    clock.advance(21)
    watch.dismiss("batch", "gone", actor="mia", reason="left the project")
    report = watch.report("batch")
    assert (report.votes, report.open_pairs, report.owing) == (4, 0, [])
    progress = desk.progress("batch", "gone")
    assert (progress.excused or progress.closed, progress.set_aside, progress.remaining) == (True, False, 0)
    assert desk.database.closure("batch") is not None
    evidence = weigh_evidence(desk.database.batch("batch"), desk.database.judgements("batch"), seed=0)
    assert evidence.statistics["raters"]["gone"]["counted"]


def test_nobody_whose_votes_count_is_kept_from_judging_on_by_a_lunch(make_desk: Any, clock: Clock) -> None:
    desk = make_desk(n_pairs=9, repeat_share=1.0, votes_per_prompt=1)
    for _ in range(4):
        desk.submit(_next(desk, "ann").task_id, "ann", _answer("a"))
    clock.advance(60)
    with pytest.raises(InputError, match="pairs lack votes"):
        _watch(desk).dismiss("batch", "ann", actor="mia", reason="dislikes the candidate")


def test_what_a_dismissed_rater_holds_goes_to_others_and_nothing_new_comes(make_desk: Any, clock: Clock) -> None:
    desk = make_desk(n_pairs=2, n_gold=6, votes_per_prompt=1, lease_minutes=60.0)
    task = _next(desk, "gone")
    while task.response_a[0] not in "cr":
        desk.submit(task.task_id, "gone", _answer(_honest(task)))
        task = _next(desk, "gone")
    desk.submit(task.task_id, "gone", _answer("a"))
    task = _next(desk, "gone")
    desk.save_draft(task.task_id, "gone", {"choice": "a"})
    clock.advance(61)
    _watch(desk).dismiss("batch", "gone", actor="mia", reason="left the project")
    assert desk.next_task("batch", "gone") is None
    with pytest.raises(SetAsideError):
        desk.save_draft(task.task_id, "gone", {"choice": "b"})
    _judge_all(desk, "ann", _honest)
    assert desk.database.closure("batch") is not None


def test_a_batch_does_not_close_on_votes_that_will_never_count(make_desk: Any) -> None:
    """Gold items that were skipped come again, for without them the votes stay worth nothing."""
    desk = make_desk(n_pairs=4, n_gold=3, votes_per_prompt=1)
    skipped = 0
    while desk.database.closure("batch") is None:
        task = _next(desk, "ann")
        if task.response_a[0] not in "cr" and skipped < 2:
            desk.skip(task.task_id, "ann")
            skipped += 1
        else:
            desk.submit(task.task_id, "ann", _answer(_honest(task)))
    assert skipped == 2
    evidence = weigh_evidence(desk.database.batch("batch"), desk.database.judgements("batch"), seed=0)
    assert evidence.statistics["complete"]


def test_a_text_that_postgres_cannot_store_is_refused_in_words(make_desk: Any) -> None:
    desk = make_desk()
    with pytest.raises(InputError, match="NUL"):
        desk.skip(_next(desk, "ann").task_id, "ann", reason="no\x00")
    with pytest.raises(ValueError, match="NUL"):
        _answer("a", rationale="no\x00")


def test_clocks_that_differ_change_nothing_about_what_was_said_last(make_desk: Any) -> None:
    """Two processes serve a batch; the one that took the correction is a minute behind."""
    desk = make_desk(n_pairs=2, undo_minutes=60.0)
    behind = RatingDesk(desk.database, now=lambda: desk.books.now() - timedelta(minutes=1))
    task = _next(desk, "ann")
    desk.save_draft(task.task_id, "ann", {"choice": "a"})
    desk.submit(task.task_id, "ann", _answer("a"))
    back = behind.reopen("batch", "ann")
    assert back is not None
    behind.submit(back.task_id, "ann", _answer("b", revision=1))
    restarted = RatingDesk(desk.database, now=desk.books.now)
    seen = restarted.reopen("batch", "ann")
    assert seen is not None
    assert (seen.revision, seen.previous and seen.previous.choice) == (2, "b")
    assert restarted.submit(task.task_id, "ann", _answer("tie", revision=2)).revision == 2
    assert [judgement.choice for judgement in desk.database.judgements("batch") if judgement.revision == 2] == ["tie"]


def test_the_last_answer_can_be_undone_for_a_while(make_desk: Any, clock: Clock) -> None:
    desk = make_desk(n_pairs=1, undo_minutes=2.0)
    task = _next(desk, "ann")
    desk.submit(task.task_id, "ann", _answer("a"))
    assert desk.database.closure("batch") is None
    clock.advance(1.5)
    back = desk.reopen("batch", "ann")
    assert back is not None
    desk.submit(back.task_id, "ann", _answer("b", revision=1))
    clock.advance(1.5)
    assert desk.open_batches() == ["batch"], "the correction is the last answer now"
    clock.advance(1.0)
    assert desk.open_batches() == []
    closure = desk.database.closure("batch")
    assert closure is not None
    with pytest.raises(ClosedError):
        desk.reopen("batch", "ann")


@pytest.mark.parametrize("undo_minutes", [0.0, 60.0])
def test_items_on_which_raters_disagree_go_to_further_raters(make_desk: Any, undo_minutes: float) -> None:
    """Whether the batch is still open or closed already."""
    desk = make_desk(n_pairs=3, votes_per_prompt=2, undo_minutes=undo_minutes)
    _judge_all(desk, "ann", lambda task: "a" if task.response_a[0] == "c" else "b")
    _judge_all(desk, "bob", lambda task: "b" if task.response_a in ("c0", "r1", "r2") else "a")
    assert (desk.database.closure("batch") is not None) == (undo_minutes == 0.0)
    before = weigh_evidence(desk.database.batch("batch"), desk.database.judgements("batch"), seed=0)
    watch = _watch(desk)
    assert [row["item_id"] for row in watch.report("batch").review_queue] == ["item-0"]
    with pytest.raises(InputError, match="not in the review queue"):
        watch.adjudicate("batch", ["item-1"], votes=2, actor="mia", reason="look")
    assert watch.adjudicate("batch", ["item-0"], votes=2, actor="mia", reason="look") == 1
    assert watch.adjudicate("batch", ["item-0"], votes=2, actor="mia", reason="look") == 0, "asked for already"
    assert desk.open_batches("cleo") == ["batch"]
    for rater in ("cleo", "dan"):
        task = _next(desk, rater)
        assert desk.submit(task.task_id, rater, _answer(_honest(task))).revision == 0
        assert desk.submit(task.task_id, rater, _answer(_honest(task))).revision == 0
    assert watch.report("batch").adjudicated == {"item-0": (2, 2)}
    judgements = desk.database.judgements("batch")
    assert sorted(one.rater for one in judgements if one.adjudication) == ["cleo", "dan"]
    after = weigh_evidence(desk.database.batch("batch"), judgements, seed=0)
    assert after.outcomes == before.outcomes
    assert after.statistics["adjudication"][0]["adjudicated"] == {"first": 2}


def test_two_services_on_one_database_see_each_others_votes(make_desk: Any, clock: Clock) -> None:
    desk = make_desk(n_pairs=6, votes_per_prompt=2)
    other = RatingDesk(desk.database, now=clock)
    for turn in range(12):
        one = (desk, other)[turn % 2]
        rater = ("ann", "bob")[(turn // 2) % 2]
        task = one.next_task("batch", rater)
        assert task is not None
        answering = (other, desk)[turn % 2]
        answering.submit(task.task_id, rater, _answer())
    assert desk.progress("batch", "ann").votes == other.progress("batch", "ann").votes == 12
    assert desk.database.closure("batch") is not None


def test_a_write_that_fails_leaves_no_trace_in_memory(make_desk: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    desk = make_desk(n_pairs=1)
    task = _next(desk, "ann")
    with monkeypatch.context() as patch:
        patch.setattr(desk._intake, "close_when_due", lambda *_: (_ for _ in ()).throw(RuntimeError("killed")))
        with pytest.raises(RuntimeError, match="killed"):
            desk.submit(task.task_id, "ann", _answer())
    assert desk.database.judgements("batch") == []
    assert desk.progress("batch", "ann").judged == 0
    desk.submit(task.task_id, "ann", _answer())
    assert desk.progress("batch", "ann").votes == 1
