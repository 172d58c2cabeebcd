"""Labels from other tools: who imported them is on record before the first one counts, on every database."""

from __future__ import annotations

import pytest
from sqlalchemy import create_engine, text
from tiny_panels import make_batch, make_item

from components.human_eval.answers import RaterAnswer
from components.human_eval.database import EvidenceDatabase, open_database
from components.human_eval.desk import RatingDesk
from components.human_eval.imports import find_imports, record_import, tell_imports
from components.human_eval.rating import ForeignLabelError
from components.shared.accounts import account
from components.shared.errors import InputError, PlumblineError

ANSWER = RaterAnswer(choice="a")


@pytest.fixture
def desk(empty_database_url: str) -> RatingDesk:
    database = open_database(empty_database_url)
    database.open_batch(make_batch([make_item(0), make_item(1)], panel="people", practice_items=0, repeat_share=0.0))
    return RatingDesk(database)


def _import(database: EvidenceDatabase, actor: str = "mia", **overrides: object) -> str:
    return record_import(
        database, "batch", actor=actor, **{"source": "labels.json", "digest": "d" * 64, "labels": 2, **overrides}
    )


def test_a_judgement_says_by_which_import_it_came_and_the_import_by_whom(desk: RatingDesk, empty_database_url: str):
    name = _import(desk.database)
    desk.take_label("batch", "item-0", "rater-x", ANSWER, swapped=False, import_id=name)
    (judgement,) = desk.database.judgements("batch")
    (found,) = tell_imports(find_imports(desk.database, "batch"), [judgement])
    assert judgement.import_id == name
    assert (found["actor"], found["source"], found["labels"], found["judgements"]) == ("mia", "labels.json", 2, 1)
    assert found["written_by"] == account()
    with create_engine(empty_database_url).connect() as connection:
        for statement in ("UPDATE evidence_imports SET actor = 'max'", "DELETE FROM evidence_imports"):
            with pytest.raises(Exception, match="append-only"):
                connection.execute(text(statement))
            connection.rollback()


def test_the_same_file_again_is_the_same_import_and_another_person_is_another(desk: RatingDesk) -> None:
    first = _import(desk.database)
    assert _import(desk.database) == first
    assert _import(desk.database, "max") != first
    assert {found.actor for found in find_imports(desk.database, "batch").values()} == {"mia", "max"}


def test_an_import_by_nobody_is_refused(desk: RatingDesk) -> None:
    with pytest.raises(InputError, match="imported by somebody"):
        _import(desk.database, " ")


def test_a_judgement_of_an_import_that_nobody_recorded_is_no_evidence(desk: RatingDesk) -> None:
    desk.take_label("batch", "item-0", "rater-x", ANSWER, swapped=False, import_id="invented")
    with pytest.raises(PlumblineError, match="an import that is not recorded: invented"):
        tell_imports(find_imports(desk.database, "batch"), desk.database.judgements("batch"))


def test_a_file_does_not_speak_for_a_rater_who_judges_here(desk: RatingDesk) -> None:
    """Else a manager could make the honest raters fail their checks, and so take their votes away."""
    task = desk.next_task("batch", "rater-honest")
    assert task is not None
    desk.submit(task.task_id, "rater-honest", ANSWER)
    other = next(name for name in ("item-0", "item-1") if name != desk.database.judgements("batch")[0].item_id)
    name = _import(desk.database)
    with pytest.raises(ForeignLabelError, match="this rater judges in the batch here"):
        desk.take_label("batch", other, "rater-honest", ANSWER, swapped=False, import_id=name)
    assert desk.take_label("batch", other, "rater-elsewhere", ANSWER, swapped=False, import_id=name)
    assert not desk.take_label("batch", other, "rater-elsewhere", ANSWER, swapped=False, import_id=name)
