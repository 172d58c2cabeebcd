"""The rating desk: who gets what, what is taken, and that many at once change nothing about it."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from sqlalchemy import text
from tiny_panels import make_batch, make_gold_item, make_item

from components.human_eval import books
from components.human_eval.answers import DIMENSIONS, FLAGS, RaterAnswer
from components.human_eval.batch import Batch
from components.human_eval.database import open_database
from components.human_eval.desk import RatingDesk
from components.human_eval.evidence import SEVERITY_1, UNSAFE, weigh_evidence
from components.human_eval.rater_quality import preferred
from components.human_eval.rating import AnsweredError, ClosedError, GoneError, Task, UnknownTaskError
from components.human_eval.turns import Turn, Turns, make_plan
from components.shared.errors import InputError
from components.shared.ledger_table import open_engine


class Clock:
    """A clock that stands still until it is told to go on; every look at it is a microsecond later."""

    def __init__(self) -> None:
        self.time = datetime(2026, 1, 1, tzinfo=UTC)
        self._lock = threading.Lock()

    def __call__(self) -> datetime:
        with self._lock:
            self.time += timedelta(microseconds=1)
            return self.time

    def advance(self, minutes: float) -> None:
        self.time += timedelta(minutes=minutes)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make_desk(empty_database_url: str, clock: Clock) -> Iterator[Callable[..., RatingDesk]]:
    """Makes a desk on a batch of pairs and gold items, on either database."""

    def make(n_pairs: int = 4, n_gold: int = 0, **settings: Any) -> RatingDesk:
        database = open_database(empty_database_url)
        items = [make_item(number) for number in range(n_pairs)] + [make_gold_item(900 + n) for n in range(n_gold)]
        gold = {"gold_items": n_gold, "gold_min_count": min(3, n_gold)} if n_gold else {}
        database.open_batch(
            make_batch(items, **{"repeat_share": 0.0, "practice_items": 0, "undo_minutes": 0.0, **gold, **settings})
        )
        return RatingDesk(database, now=clock)

    yield make
    open_engine(empty_database_url).dispose()


def _answer(choice: str = "a", **more: Any) -> RaterAnswer:
    return RaterAnswer.model_validate({"choice": choice, **more})


def _next(desk: RatingDesk, rater: str) -> Task:
    task = desk.next_task("batch", rater)
    assert task is not None
    return task


def _judge_all(desk: RatingDesk, rater: str, choose: Callable[[Task], str] = lambda task: "a") -> list[Task]:
    """Judges until nothing is left; returns the tasks in order."""
    done = []
    while desk.database.closure("batch") is None:
        task = desk.next_task("batch", rater)
        if task is None:
            break
        desk.submit(task.task_id, rater, _answer(choose(task)))
        done.append(task)
    return done


def _knows_gold(task: Task) -> str:
    return "a" if task.response_a in ("good", "c0") or task.response_b == "bad" else "b"


def _honest(task: Task) -> str:
    """Right about gold items, and of the same mind when an item comes again, swapped."""
    return "a" if task.response_a.startswith(("good", "c")) else "b"


def _texts(task: Task) -> tuple[str, str]:
    return task.response_a, task.response_b


def test_an_item_is_held_for_its_rater_and_the_same_after_a_reload(make_desk: Any) -> None:
    desk = make_desk()
    assert _next(desk, "ann") == _next(desk, "ann")


def test_never_more_votes_on_a_pair_than_asked_for_and_each_by_another_rater(make_desk: Any) -> None:
    desk = make_desk(n_pairs=5, votes_per_prompt=2)
    for rater in ("ann", "bob", "cleo", "dan"):
        _judge_all(desk, rater)
    judgements = desk.database.judgements("batch")
    assert Counter(judgement.item_id for judgement in judgements) == {f"item-{n}": 2 for n in range(5)}
    assert len({(judgement.item_id, judgement.rater) for judgement in judgements}) == 10


def test_a_lease_keeps_others_away_until_it_runs_out(make_desk: Any, clock: Clock) -> None:
    desk = make_desk(n_pairs=1, lease_minutes=10)
    held = _next(desk, "ann")
    assert desk.next_task("batch", "bob") is None
    assert desk.progress("batch", "bob").waiting
    clock.advance(11)
    assert _next(desk, "bob").prompt == held.prompt
    with pytest.raises(GoneError, match="went to others"):
        desk.submit(held.task_id, "ann", _answer())
    with pytest.raises(GoneError):
        desk.save_draft(held.task_id, "ann", {})


def test_a_late_answer_that_nobody_else_took_is_taken(make_desk: Any, clock: Clock) -> None:
    desk = make_desk(n_pairs=1, lease_minutes=10)
    held = _next(desk, "ann")
    clock.advance(60)
    desk.submit(held.task_id, "ann", _answer())
    assert len(desk.database.judgements("batch")) == 1


def test_a_draft_is_shown_again_and_keeps_the_item(make_desk: Any, clock: Clock) -> None:
    desk = make_desk(n_pairs=1, lease_minutes=10)
    held = _next(desk, "ann")
    for _ in range(5):
        clock.advance(6)
        desk.save_draft(held.task_id, "ann", {"rationale": "A says more"})
    assert desk.next_task("batch", "bob") is None
    assert _next(desk, "ann").draft == {"rationale": "A says more"}
    desk.submit(held.task_id, "ann", _answer())
    with open_engine(str(desk.database._engine.url.render_as_string(hide_password=False))).connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM evidence_drafts")).scalar() == 0


def test_positions_are_drawn_for_each_rater_and_stored_as_shown(make_desk: Any) -> None:
    desk = make_desk(n_pairs=30, votes_per_prompt=4)
    shown: Counter[bool] = Counter()
    for rater in ("ann", "bob", "cleo", "dan"):
        likes_first = {
            task.task_id: task for task in _judge_all(desk, rater, lambda t: "a" if t.response_a[0] == "c" else "b")
        }
        shown.update(task.response_a.startswith("r") for task in likes_first.values())
    assert 0.35 < shown[True] / shown.total() < 0.65
    assert {preferred(judgement) for judgement in desk.database.judgements("batch")} == {"first"}


def test_the_same_request_twice_is_one_judgement_and_another_answer_is_refused(make_desk: Any) -> None:
    desk = make_desk()
    task = _next(desk, "ann")
    first = desk.submit(task.task_id, "ann", _answer("a"))
    assert desk.submit(task.task_id, "ann", _answer("a")) == first
    with pytest.raises(AnsweredError, match="another answer"):
        desk.submit(task.task_id, "ann", _answer("b"))
    with pytest.raises(AnsweredError, match="answered elsewhere"):
        desk.submit(task.task_id, "ann", _answer("b", revision=2))
    assert len(desk.database.judgements("batch")) == 1


def test_nobody_answers_for_another_rater(make_desk: Any) -> None:
    desk = make_desk()
    task = _next(desk, "ann")
    with pytest.raises(UnknownTaskError, match="not handed to you"):
        desk.submit(task.task_id, "bob", _answer())


def test_undo_goes_back_step_by_step_and_supersedes(make_desk: Any) -> None:
    desk = make_desk(n_pairs=5)
    one = _next(desk, "ann")
    desk.submit(one.task_id, "ann", _answer("a"))
    two = _next(desk, "ann")
    desk.submit(two.task_id, "ann", _answer("b"))
    back = desk.reopen("batch", "ann")
    assert back is not None
    assert (back.task_id, back.revision, back.previous) == (two.task_id, 1, _answer("b"))
    further = desk.reopen("batch", "ann", before=back.task_id)
    assert further is not None
    assert further.task_id == one.task_id
    assert desk.reopen("batch", "ann", before=further.task_id) is None
    desk.submit(further.task_id, "ann", _answer("tie", revision=1))
    rows = desk.database.judgements("batch")
    assert [(row.choice, row.revision) for row in rows] == [("a", 0), ("b", 0), ("tie", 1)]
    assert rows[2].supersedes == rows[0].judgement_id
    assert desk.progress("batch", "ann").votes == 2


def test_a_skip_is_recorded_goes_to_others_and_can_be_undone(make_desk: Any) -> None:
    desk = make_desk(n_pairs=2)
    task = _next(desk, "ann")
    desk.skip(task.task_id, "ann", reason="not my field")
    assert _next(desk, "ann").task_id != task.task_id
    progress = desk.progress("batch", "ann")
    assert (progress.skipped, progress.judged) == (1, 0)
    back = desk.reopen("batch", "ann")
    assert back is not None
    assert (back.task_id, back.revision, back.previous) == (task.task_id, 0, None)
    desk.submit(back.task_id, "ann", _answer())
    assert desk.progress("batch", "ann").skipped == 0
    with pytest.raises(AnsweredError, match="judged this item"):
        desk.skip(task.task_id, "ann")


def test_an_undone_skip_that_others_took_is_gone(make_desk: Any) -> None:
    desk = make_desk(n_pairs=1)
    desk.skip(_next(desk, "ann").task_id, "ann")
    _next(desk, "bob")
    with pytest.raises(GoneError):
        desk.reopen("batch", "ann")


def test_practice_comes_first_is_commented_and_does_not_count(make_desk: Any) -> None:
    desk = make_desk(n_pairs=3, n_gold=6, practice_items=2)
    answers = []
    for choose in ("good", "bad"):
        task = _next(desk, "ann")
        assert task.practice
        with pytest.raises(AnsweredError, match="cannot be skipped"):
            desk.skip(task.task_id, "ann")
        choice = "a" if task.response_a == choose else "b"
        feedback = desk.submit(task.task_id, "ann", _answer(choice)).feedback
        assert feedback is not None
        answers.append(feedback.correct)
        better = task.response_a if feedback.better == "a" else task.response_b
        assert better == "good"
    assert answers == [True, False]
    assert not _next(desk, "ann").practice
    assert desk.database.judgements("batch") == []
    progress = desk.progress("batch", "ann")
    assert (progress.practice_done, progress.practice_total, progress.judged) == (2, 2, 0)


def test_gold_items_that_were_practised_on_check_nobody(make_desk: Any) -> None:
    desk = make_desk(n_pairs=40, n_gold=6, practice_items=2)
    for rater in ("ann", "bob"):
        _judge_all(desk, rater, _knows_gold)
    gold = {judgement.item_id for judgement in desk.database.judgements("batch") if judgement.kind == "gold"}
    assert gold
    assert not gold & set(desk.plan("batch").practice)


def test_a_rater_gets_enough_gold_items_for_the_votes_to_count(make_desk: Any) -> None:
    desk = make_desk(n_pairs=6, n_gold=8, votes_per_prompt=2)
    for rater in ("ann", "bob"):
        _judge_all(desk, rater, _knows_gold)
    kinds = Counter((judgement.rater, judgement.kind) for judgement in desk.database.judgements("batch"))
    assert kinds["ann", "gold"] >= 3
    assert kinds["bob", "gold"] >= 3
    evidence = weigh_evidence(desk.database.batch("batch"), desk.database.judgements("batch"), seed=0)
    assert evidence.statistics["complete"]
    assert all(rater["counted"] for rater in evidence.statistics["raters"].values())


def test_a_task_looks_the_same_whether_it_is_a_check_or_not(make_desk: Any) -> None:
    desk = make_desk(n_pairs=30, n_gold=8, repeat_share=0.4)
    progress, kinds = [], []
    while (task := desk.next_task("batch", "ann")) is not None:
        progress.append(desk.progress("batch", "ann"))
        kinds.append(len(task.task_id))
        desk.submit(task.task_id, "ann", _answer(_honest(task)))
        if desk.database.closure("batch"):
            break
    steps = [before.remaining - after.remaining for before, after in pairwise(progress)]
    judged = [judgement.kind for judgement in desk.database.judgements("batch")]
    assert Counter(judged)["repeat"] > 3
    assert Counter(judged)["gold"] >= 3
    assert set(kinds) == {32}
    # Each item, whatever it is, brings the end nearer by one; only with the last pair gold items fall away.
    assert sum(step != 1 for step in steps) <= 1


def test_repeats_are_swapped_and_do_not_follow_their_vote(make_desk: Any) -> None:
    desk = make_desk(n_pairs=40, repeat_share=0.5)
    shown: dict[str, list[tuple[int, str]]] = {}
    for place, task in enumerate(_judge_all(desk, "ann", _honest)):
        shown.setdefault(str(task.prompt), []).append((place, task.response_a))
    twice = [seen for seen in shown.values() if len(seen) == 2]
    assert len(twice) > 8
    assert all(one[1] != other[1] for one, other in twice)
    assert sum(other[0] - one[0] > 8 for one, other in twice) > len(twice) / 2
    assert all(len(seen) <= 2 for seen in shown.values())


def test_a_complete_batch_closes_and_takes_nothing(make_desk: Any) -> None:
    desk = make_desk(n_pairs=2)
    tasks = _judge_all(desk, "ann")
    closure = desk.database.closure("batch")
    assert closure is not None
    assert closure.actor == "rating desk"
    assert desk.open_batches() == []
    for action in (
        lambda: desk.next_task("batch", "bob"),
        lambda: desk.reopen("batch", "ann"),
        lambda: desk.skip(tasks[0].task_id, "ann"),
        lambda: desk.save_draft(tasks[0].task_id, "ann", {}),
        lambda: desk.submit(tasks[0].task_id, "ann", _answer("b", revision=1)),
    ):
        with pytest.raises(ClosedError, match="closed"):
            action()


def test_a_batch_that_a_manager_closed_takes_nothing(make_desk: Any) -> None:
    desk = make_desk()
    task = _next(desk, "ann")
    desk.database.close("batch", actor="manager", reason="enough seen")
    with pytest.raises(ClosedError):
        desk.submit(task.task_id, "ann", _answer())


def test_a_batch_stays_open_while_a_rater_owes_the_checks(make_desk: Any) -> None:
    desk = make_desk(n_pairs=1, n_gold=6)
    task = _next(desk, "ann")
    while task.response_a not in ("c0", "r0"):
        desk.submit(task.task_id, "ann", _answer(_knows_gold(task)))
        task = _next(desk, "ann")
    desk.submit(task.task_id, "ann", _answer())
    assert desk.database.closure("batch") is None
    assert len(_judge_all(desk, "ann", _knows_gold)) >= 1
    assert desk.database.closure("batch") is not None


def test_batches_of_panels_are_not_for_people(make_desk: Any) -> None:
    desk = make_desk(panel="tiny_panels:CandidateFans")
    assert desk.open_batches() == []
    with pytest.raises(InputError, match="judged by a panel"):
        desk.next_task("batch", "ann")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"choice": "both_bad"}, "why both answers are bad"),
        ({"choice": "both_bad", "rationale": "  "}, "why both answers are bad"),
        ({"choice": "a", "flags_b": ["unsafe"]}, "what is unsafe"),
        ({"choice": "a", "flags_a": ["rude"]}, "flags_a"),
        ({"choice": "c"}, "choice"),
        ({"choice": "a", "rubric": {"colour": "a"}}, "rubric"),
        ({"choice": "a", "rationale": "x" * 4001}, "4000"),
    ],
)
def test_answers_that_lack_a_reason_or_make_no_sense_are_refused(answer: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RaterAnswer.model_validate(answer)


def test_everything_that_was_answered_is_stored(make_desk: Any) -> None:
    desk = make_desk()
    task = _next(desk, "ann")
    rubric = dict.fromkeys(DIMENSIONS, "tie") | {"helpful": "b"}
    answer = _answer("both_bad", flags_a=[SEVERITY_1, UNSAFE, UNSAFE], rationale=" no ", rubric=rubric)
    desk.submit(task.task_id, "ann", answer, rater_kind="simulated")
    (stored,) = desk.database.judgements("batch")
    assert (stored.choice, stored.flags_a, stored.flags_b) == ("both_bad", [UNSAFE, SEVERITY_1], [])
    assert (stored.rationale, stored.rubric, stored.rater_kind) == ("no", rubric, "simulated")
    assert set(FLAGS) == {UNSAFE, SEVERITY_1}


def test_rubric_preferences_are_counted_by_role_whatever_the_side(make_desk: Any) -> None:
    desk = make_desk(n_pairs=12)
    while desk.database.closure("batch") is None and (task := desk.next_task("batch", "ann")):
        candidate = "a" if task.response_a.startswith("c") else "b"
        desk.submit(task.task_id, "ann", _answer("tie", rubric={"helpful": candidate, "style": "tie"}))
    evidence = weigh_evidence(desk.database.batch("batch"), desk.database.judgements("batch"), seed=0)
    rubric = evidence.statistics["comparisons"]["candidate_vs_reference"]["rubric"]
    assert rubric == {"helpful": {"win_rate": 1.0, "n_votes": 12}, "style": {"win_rate": 0.5, "n_votes": 12}}


@pytest.mark.parametrize("seed", range(3))
def test_many_raters_at_once_get_what_one_after_another_would(make_desk: Any, seed: int) -> None:
    """Threads with connections of their own: votes complete, distinct, never too many; no item twice."""
    desk = make_desk(n_pairs=12, n_gold=6, votes_per_prompt=3, repeat_share=0.3, practice_items=1)
    faults: list[Exception] = []

    def work(rater: str) -> None:
        rng = random.Random(f"{seed} {rater}")
        try:
            idle = 0
            while idle < 200 and desk.database.closure("batch") is None:
                task = desk.next_task("batch", rater)
                if task is None:
                    idle += 1
                    continue
                if not task.practice and rng.random() < 0.05 and rater != "r0":
                    desk.skip(task.task_id, rater)
                    continue
                opinion = random.Random(f"{seed} {rater} {task.prompt}").choice([_honest(task), "tie"])
                desk.submit(task.task_id, rater, _answer(_honest(task) if "good" in _texts(task) else opinion))
        except ClosedError:
            return
        except Exception as error:  # noqa: BLE001 (told to the main thread)
            faults.append(error)

    threads = [threading.Thread(target=work, args=(f"r{number}",)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    judgements = desk.database.judgements("batch")
    votes = [judgement for judgement in judgements if judgement.kind == "vote"]
    assert Counter(vote.item_id for vote in votes) == {f"item-{number}": 3 for number in range(12)}
    assert len({(vote.item_id, vote.rater) for vote in votes}) == 36
    assert len({(one.item_id, one.rater, one.kind) for one in judgements}) == len(judgements)


def test_two_who_ask_for_the_last_vote_at_once_do_not_both_get_it(make_desk: Any) -> None:
    desk = make_desk(n_pairs=1)
    barrier, got = threading.Barrier(4), []

    def ask(rater: str) -> None:
        barrier.wait()
        got.append(desk.next_task("batch", rater))

    threads = [threading.Thread(target=ask, args=(f"r{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(task is not None for task in got) == 1


def test_gold_items_come_early_and_at_places_that_differ_between_raters() -> None:
    batch = _wide_batch()
    plan = make_plan("batch", batch.settings, batch.items)
    places = {rater: _gold_places(plan, rater, 80) for rater in ("ann", "bob", "cleo", "dan")}
    for found in places.values():
        assert sum(place < 4 * plan.gold_needed for place in found) == plan.gold_needed
    assert len({tuple(found) for found in places.values()}) == 4


def _wide_batch() -> Batch:
    items = [make_item(number) for number in range(200)] + [make_gold_item(900 + n) for n in range(20)]
    return make_batch(items, gold_items=20, repeat_share=0.1)


def _gold_places(plan: Any, rater: str, n: int) -> list[int]:
    judged: list[Turn] = []
    practised: set[str] = set()
    while len(judged) < n:
        turn = Turns(plan, rater, judged, practised=frozenset(practised)).next()
        assert turn is not None
        if turn.kind == "practice":
            practised.add(turn.item_id)
        else:
            judged.append(turn)
    return [place for place, turn in enumerate(judged) if turn.kind == "gold"]


def test_a_book_whose_first_reading_failed_is_read_again_from_the_start(make_desk: Any, monkeypatch: Any) -> None:
    desk = make_desk(n_pairs=2)
    _judge_all(desk, "ann")
    restarted, whole = RatingDesk(desk.database, now=desk.books.now), books.all_rows

    def broken(*_: Any) -> Any:
        raise OSError("the connection broke")

    monkeypatch.setattr(books, "all_rows", broken)
    with pytest.raises(OSError, match="broke"):
        restarted.progress("batch", "bob")
    monkeypatch.setattr(books, "all_rows", whole)
    assert restarted.progress("batch", "bob") == desk.progress("batch", "bob")
