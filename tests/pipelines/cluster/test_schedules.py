"""Schedules against a server that speaks KFP's API: declarative, at most one at a time, never none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from kfp_server import KFPServer

from components.shared.errors import InputError
from pipelines.cluster import schedules
from pipelines.cluster.connection import KFP, ApiError
from pipelines.cluster.schedules import Schedule, load_schedule


def _make_schedule(**overrides: Any) -> Schedule:
    values = {"name": "weekly", "pipeline": "soak", "settings": "demo", "profile": "dev", "cron": "0 0 2 * * 1"}
    return Schedule.model_validate(values | overrides)


def _only(server: KFPServer) -> Any:
    (one,) = server.recurring.values()
    return one


def test_a_new_schedule_runs_once_at_a_time_catches_nothing_up_and_has_the_training_account(
    server: KFPServer, kfp: KFP
) -> None:
    applied = schedules.apply(kfp, _make_schedule(pipeline="rlhf"))
    assert applied.change == "created"
    made = _only(server)
    assert (made.max_concurrency, made.no_catchup, made.mode) == ("1", True, "ENABLE")
    assert made.service_account == "plumbline-training"
    assert made.trigger.cron_schedule.cron == "0 0 2 * * 1"
    assert applied.when == "at 02:00:00 UTC, on Monday"
    assert len(applied.next_times) == 3


def test_soak_runs_with_the_rights_of_promotion(server: KFPServer, kfp: KFP) -> None:
    schedules.apply(kfp, _make_schedule(pipeline="soak"))
    assert _only(server).service_account == "plumbline-promotion"


def test_applying_the_same_file_twice_changes_nothing(server: KFPServer, kfp: KFP) -> None:
    first = schedules.apply(kfp, _make_schedule())
    server.requests.clear()
    second = schedules.apply(kfp, _make_schedule())
    assert second.change == "unchanged"
    assert second.recurring_run_id == first.recurring_run_id
    assert not [call for call in server.requests if not call.startswith("GET")]


def test_an_account_that_the_server_chose_is_no_change(server: KFPServer, kfp: KFP) -> None:
    schedules.apply(kfp, _make_schedule(profile="local"))
    assert _only(server).service_account == "pipeline-runner", "the server's default: the profile names none"
    assert schedules.apply(kfp, _make_schedule(profile="local")).change == "unchanged"


def test_a_schedule_is_in_the_profiles_namespace_where_the_server_has_several_users(
    server: KFPServer, kfp: KFP
) -> None:
    server.multi_user = True
    schedules.apply(kfp, _make_schedule())
    assert next(iter(server.experiments.values())).namespace == "plumbline"


@pytest.mark.parametrize(
    "change", [{"cron": "0 0 3 * * 1"}, {"settings": "gpu-example"}, {"parameters": {"seed": 7}}, {"profile": "local"}]
)
def test_a_changed_file_replaces_the_schedule_and_the_new_one_stands_before_the_old_one_goes(
    server: KFPServer, kfp: KFP, change: dict[str, Any]
) -> None:
    before = schedules.apply(kfp, _make_schedule())
    server.requests.clear()
    after = schedules.apply(kfp, _make_schedule(**change))
    assert after.change == "replaced"
    assert list(server.recurring) == [after.recurring_run_id] != [before.recurring_run_id]
    writes = [call for call in server.requests if "recurringruns" in call and not call.startswith("GET")]
    assert [call.split()[0] for call in writes] == ["POST", "DELETE"]


def test_what_somebody_deleted_or_changed_by_hand_is_put_right(server: KFPServer, kfp: KFP) -> None:
    schedules.apply(kfp, _make_schedule())
    _only(server).max_concurrency = "5"
    assert schedules.apply(kfp, _make_schedule()).change == "replaced"
    assert _only(server).max_concurrency == "1"
    server.recurring.clear()
    assert schedules.apply(kfp, _make_schedule()).change == "created"


def test_pause_and_resume_and_the_file_has_the_last_word(server: KFPServer, kfp: KFP) -> None:
    schedules.apply(kfp, _make_schedule())
    schedules.switch(kfp, "weekly", enabled=False)
    assert _only(server).mode == "DISABLE"
    assert schedules.apply(kfp, _make_schedule()).change == "resumed"
    paused = schedules.apply(kfp, _make_schedule(enabled=False))
    assert (paused.change, paused.next_times) == ("paused", [])
    assert schedules.apply(kfp, _make_schedule(enabled=False)).change == "unchanged"


@pytest.mark.parametrize("kind", ["status", "cut"])
def test_when_the_new_one_cannot_be_made_the_old_one_stays(server: KFPServer, kfp: KFP, kind: str) -> None:
    before = schedules.apply(kfp, _make_schedule())
    server.fail(kind, method="POST", path="recurringruns$", status=500)
    with pytest.raises(ApiError):
        schedules.apply(kfp, _make_schedule(cron="0 0 3 * * 1"))
    assert list(server.recurring) == [before.recurring_run_id]


def test_a_creation_whose_answer_was_lost_is_found_again_and_not_repeated(server: KFPServer, kfp: KFP) -> None:
    server.fail("cut_after", method="POST", path="recurringruns$")
    applied = schedules.apply(kfp, _make_schedule())
    assert list(server.recurring) == [applied.recurring_run_id]
    assert len(server.calls("POST", "recurringruns$")) == 1


def test_an_apply_that_died_between_making_and_deleting_is_tidied_up_by_the_next(server: KFPServer, kfp: KFP) -> None:
    schedules.apply(kfp, _make_schedule())
    server.fail("status", method="DELETE", status=500, times=10)
    with pytest.raises(ApiError):
        schedules.apply(kfp, _make_schedule(cron="0 0 3 * * 1"))
    assert len(server.recurring) == 2, "two for a while, but never none"
    server._faults.clear()
    assert schedules.apply(kfp, _make_schedule(cron="0 0 3 * * 1")).change == "tidied"
    assert _only(server).trigger.cron_schedule.cron == "0 0 3 * * 1"


def test_somebody_elses_recurring_run_of_the_same_name_is_left_alone(server: KFPServer, kfp: KFP) -> None:
    schedules.apply(kfp, _make_schedule())
    theirs = _only(server)
    theirs.description = "made in the UI"
    schedules.apply(kfp, _make_schedule())
    schedules.delete(kfp, "weekly")
    assert list(server.recurring.values()) == [theirs]


def test_list_goes_through_every_page_and_delete_takes_the_named_one_only(server: KFPServer, kfp: KFP) -> None:
    for number in range(5):
        schedules.apply(kfp, _make_schedule(name=f"s{number}"))
    assert {one["name"] for one in schedules.list_schedules(kfp)} == {"s0", "s1", "s2", "s3", "s4"}
    schedules.delete(kfp, "s3")
    assert "s3" not in {one["name"] for one in schedules.list_schedules(kfp)}
    with pytest.raises(InputError, match="no such schedule"):
        schedules.delete(kfp, "s3")


def test_a_parameter_that_the_pipeline_does_not_have_is_refused_before_anything_is_made(
    server: KFPServer, kfp: KFP
) -> None:
    with pytest.raises(InputError, match="no parameter sed"):
        schedules.apply(kfp, _make_schedule(parameters={"sed": 1}))
    assert not server.recurring


def test_a_schedule_file_names_its_faults(tmp_path: Path) -> None:
    path = tmp_path / "schedule.yaml"
    path.write_text("name: weekly\npipeline: rlfh\nsettings: demo\ncron: 0 2 * * 1\n")
    with pytest.raises(InputError) as caught:
        load_schedule(path)
    assert "pipeline: no such pipeline" in str(caught.value)
    assert "The first field is seconds: write '0 0 2 * * 1'" in str(caught.value)


def test_settings_and_profile_are_found_beside_the_schedules_file(tmp_path: Path, server: KFPServer, kfp: KFP) -> None:
    shipped = Path(__file__).resolve().parents[3] / "pipelines" / "run_settings" / "demo.yaml"
    (tmp_path / "my-run.yaml").write_text(shipped.read_text())
    (tmp_path / "my-dev.yaml").write_text("extends: dev\nexperiment: mine\n")
    path = tmp_path / "weekly.yaml"
    path.write_text("{name: weekly, pipeline: soak, settings: my-run.yaml, profile: my-dev.yaml, cron: 0 0 2 * * 1}")
    schedules.apply(kfp, load_schedule(path))
    assert next(iter(server.experiments.values())).display_name == "mine"


def test_the_shipped_example_applies(server: KFPServer, kfp: KFP) -> None:
    example = Path(__file__).resolve().parents[3] / "pipelines" / "schedules" / "retraining.yaml"
    applied = schedules.apply(kfp, load_schedule(example))
    assert applied.change == "created"
    assert applied.version.startswith("plumbline-retraining-")
    assert _only(server).service_account == "plumbline-training"
