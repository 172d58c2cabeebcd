"""Submitting and watching runs, against a server that speaks KFP's API and goes wrong in every usual way."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import kfp_server_api as api
import pytest
from kfp_server import KFPServer, run_kfp_server

from components.shared.errors import InputError, PlumblineError
from pipelines.cluster import runs
from pipelines.cluster.compilation import compiled
from pipelines.cluster.connection import KFP, AnswerLostError, ApiError, Connection, NotFoundError
from pipelines.settings import RunSettings, load_run_settings


def _settings(profile: str = "dev") -> RunSettings:
    return load_run_settings("demo").executed(profile=profile)


def _submit(kfp: KFP, pipeline: str = "soak") -> Any:
    return runs.submit(kfp, _settings(), pipeline)


@pytest.mark.parametrize(("pipeline", "account"), [("rlhf", "plumbline-training"), ("soak", "plumbline-promotion")])
def test_a_run_has_the_service_account_of_its_kind(server: KFPServer, kfp: KFP, pipeline: str, account: str) -> None:
    state = _submit(kfp, pipeline)
    run = server.runs[state.run_id]
    assert run.service_account == account
    assert server.experiments[run.experiment_id].display_name == "plumbline-dev"
    version = server.versions[run.pipeline_version_reference.pipeline_version_id]
    assert version.display_name.startswith(f"plumbline-{pipeline}-")
    assert "platform_spec" in version.pipeline_spec, "resources and secrets travel with the pipeline"


def test_who_starts_a_training_run_asked_for_its_release_unless_the_settings_name_somebody(
    server: KFPServer, kfp: KFP
) -> None:
    def told(settings: RunSettings, pipeline: str) -> Any:
        run = server.runs[runs.submit(kfp, settings, pipeline, requested_by="mia").run_id]
        return run.runtime_config.parameters or {}

    assert told(_settings(), "rlhf") == {"requested_by": "mia"}
    assert told(_settings().asked_by("max"), "rlhf") == {}, "it stands in the pipeline"
    assert told(_settings(), "soak") == {}, "nobody asks for what is live already"


def test_the_same_content_is_uploaded_once(server: KFPServer, kfp: KFP) -> None:
    first, second = _submit(kfp), _submit(kfp)
    assert first.run_id != second.run_id
    assert first.name != second.name
    assert len(server.versions) == len(server.pipelines) == len(server.experiments) == 1


def test_a_namespace_is_sent_where_the_server_has_several_users(server: KFPServer) -> None:
    kfp = KFP(Connection(server.address, namespace="team-a", timeout_seconds=5))
    _submit(kfp)
    assert next(iter(server.experiments.values())).namespace == "team-a"
    assert next(iter(server.pipelines.values())).namespace == "team-a"


def test_a_server_with_several_users_gets_the_profiles_namespace_when_none_is_named(
    server: KFPServer, kfp: KFP
) -> None:
    server.multi_user = True
    _submit(kfp)
    assert next(iter(server.experiments.values())).namespace == "plumbline"
    assert next(iter(server.pipelines.values())).namespace == "plumbline"


def test_a_server_with_one_user_is_sent_no_namespace(server: KFPServer, kfp: KFP) -> None:
    _submit(kfp)
    assert next(iter(server.experiments.values())).namespace is None


def test_a_namespace_that_is_missing_is_what_the_refusal_advises(server: KFPServer, kfp: KFP) -> None:
    server.multi_user = True
    with pytest.raises(ApiError, match="give --namespace"):
        list(kfp.pages(kfp.runs.run_service_list_runs, "runs", what="runs"))


@pytest.mark.parametrize(
    ("status", "said"), [(401, "--token-file"), (403, "kubeflow-edit"), (409, "already"), (400, "KFP 2.x")]
)
def test_a_refusal_says_what_to_do_and_is_not_tried_again(server: KFPServer, kfp: KFP, status: int, said: str) -> None:
    server.fail("status", status=status, path="runs$", method="POST")
    with pytest.raises(ApiError) as caught:
        _submit(kfp)
    assert caught.value.status == status
    assert said in str(caught.value)
    assert len(server.calls("POST", "/runs$")) == 1


def test_the_token_of_the_file_is_sent_and_read_anew_at_every_call(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("old\n")
    with run_kfp_server(token="new") as server:
        kfp = KFP(Connection(server.address, token_file=str(token), timeout_seconds=5), pause_seconds=0.01)
        with pytest.raises(ApiError, match="answers 401"):
            runs.run_state(kfp, "x")
        token.write_text("new\n")
        with pytest.raises(NotFoundError):
            runs.run_state(kfp, "x")


def test_a_right_that_is_missing_is_said_with_the_servers_words(kfp: KFP, server: KFPServer) -> None:
    server.forbidden.append("/experiments")
    with pytest.raises(ApiError, match="not authorized") as caught:
        _submit(kfp)
    assert caught.value.status == 403


@pytest.mark.parametrize("kind", ["status", "cut", "cut_after"])
def test_what_only_reads_is_tried_again(server: KFPServer, kfp: KFP, kind: str) -> None:
    state = _submit(kfp)
    server.fail(kind, path=f"runs/{state.run_id}$", times=3)
    assert runs.run_state(kfp, state.run_id).state == "PENDING"


def test_a_server_that_stays_broken_is_given_up(server: KFPServer, kfp: KFP) -> None:
    server.fail("status", status=500, times=100)
    with pytest.raises(ApiError, match="answers 500") as caught:
        runs.run_state(kfp, "x")
    assert "kubectl logs" in str(caught.value)
    assert len(server.requests) == 4


def test_a_slow_server_is_not_waited_for_longer_than_the_limit(server: KFPServer) -> None:
    kfp = KFP(Connection(server.address, timeout_seconds=0.3), pause_seconds=0.01)
    server.fail("silence", seconds=2, times=100)
    with pytest.raises(AnswerLostError, match="no whole answer"):
        runs.run_state(kfp, "x")


def test_a_run_whose_answer_was_lost_is_found_and_not_started_twice(server: KFPServer, kfp: KFP) -> None:
    server.fail("cut_after", method="POST", path="/runs$")
    state = _submit(kfp)
    assert list(server.runs) == [state.run_id]


def test_a_run_that_never_reached_the_server_is_not_claimed_to_run(server: KFPServer, kfp: KFP) -> None:
    server.fail("cut", method="POST", path="/runs$")
    with pytest.raises(AnswerLostError):
        _submit(kfp)
    assert not server.runs


@pytest.mark.parametrize("path", ["upload_version$", "pipelines$", "experiments$"])
def test_preparations_whose_answer_was_lost_are_found_again(server: KFPServer, kfp: KFP, path: str) -> None:
    server.fail("cut_after", method="POST", path=path)
    state = _submit(kfp)
    assert list(server.runs) == [state.run_id]
    assert len(server.versions) == len(server.pipelines) == len(server.experiments) == 1


def test_two_who_submit_at_once_share_pipeline_version_and_experiment(server: KFPServer, tmp_path: Path) -> None:
    made = compiled(_settings(), "soak", tmp_path / "pipeline.yaml")
    found: list[tuple[str, str]] = []

    def one() -> None:
        kfp = KFP(Connection(server.address, timeout_seconds=30), pause_seconds=0.01)
        found.append((runs.ensure_version(kfp, made)[1].version_id, kfp.experiment("plumbline-dev")))

    threads = [threading.Thread(target=one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == len(server.versions) == len(server.pipelines) == len(server.experiments) == 1


def test_a_login_page_in_the_apis_place_is_recognised(server: KFPServer, kfp: KFP) -> None:
    server.fail("page", times=100)
    with pytest.raises(ApiError, match="login page"):
        runs.run_state(kfp, "x")


def test_nobody_there_is_said_with_the_address() -> None:
    kfp = KFP(Connection("http://127.0.0.1:1", timeout_seconds=1), pause_seconds=0.01)
    with pytest.raises(ApiError, match=r"http://127\.0\.0\.1:1.*cannot be reached") as caught:
        runs.run_state(kfp, "x")
    assert "port-forward" in str(caught.value)


def test_watching_tells_each_change_once_bears_a_server_that_is_away_and_ends_with_the_run(
    server: KFPServer, kfp: KFP
) -> None:
    run_id = _submit(kfp).run_id
    server.step(run_id, "live-models", "RUNNING", pod="p1")
    told: list[tuple[str, str]] = []

    def tell(state: runs.RunState, changed: list[runs.StepState]) -> None:
        told.extend((step.name, step.state) for step in changed)
        if state.state == "PENDING" and ("live-models", "SUCCEEDED") not in told:
            server.step(run_id, "live-models", "SUCCEEDED", seconds=3)
            server.fail("status", status=503, times=9)  # more than one question's repetitions
        else:
            server.step(run_id, "evaluation", "FAILED", error="exit 1", pod="p2")
            server.step(run_id, "exit-handler-1", "FAILED")
            server.end(run_id, "FAILED")

    ended = runs.watch(kfp, run_id, tell=tell, every_seconds=0.01)
    assert ended.state == "FAILED"
    assert told.count(("live-models", "RUNNING")) == told.count(("live-models", "SUCCEEDED")) == 1
    assert ended.failed_step is not None
    assert (ended.failed_step.name, ended.failed_step.pod) == ("evaluation", "p2")
    assert ended.steps[0].seconds == 3


def test_a_step_that_is_tried_again_is_told_at_each_try_and_not_at_each_look(server: KFPServer, kfp: KFP) -> None:
    run_id = _submit(kfp).run_id
    server.step(run_id, "ppo", "FAILED", error="exit 137", pod="p1")
    server.runs[run_id].run_details.task_details += [
        api.V2beta1PipelineTaskDetail(display_name="ppo", state="RUNNING"),
        api.V2beta1PipelineTaskDetail(display_name="report", state="PENDING", create_time=datetime.now(UTC)),
    ]
    told: list[tuple[str, str]] = []
    with pytest.raises(PlumblineError, match="not ended"):
        runs.watch(
            kfp,
            run_id,
            tell=lambda _, changed: told.extend((step.name, step.state) for step in changed),
            every_seconds=0.01,
            timeout_seconds=0.3,
        )
    assert sorted(told) == [("ppo", "FAILED"), ("ppo", "RUNNING"), ("report", "PENDING")]


def test_watching_a_run_that_is_not_there_ends_at_once(kfp: KFP) -> None:
    with pytest.raises(NotFoundError):
        runs.watch(kfp, "nothing", tell=lambda *_: None, every_seconds=0.01)


def test_watching_ends_when_its_time_is_up_and_says_that_the_run_goes_on(kfp: KFP) -> None:
    run_id = _submit(kfp).run_id
    with pytest.raises(PlumblineError, match="It goes on"):
        runs.watch(kfp, run_id, tell=lambda *_: None, every_seconds=0.01, timeout_seconds=0.05)


def test_cancelling_asks_the_server_and_an_ended_run_cannot_be_cancelled(server: KFPServer, kfp: KFP) -> None:
    run_id = _submit(kfp).run_id
    assert runs.cancel(kfp, run_id).state == "CANCELING"
    server.end(run_id, "CANCELED")
    with pytest.raises(ApiError, match="already finished"):
        runs.cancel(kfp, run_id)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"host": None}, "KF_PIPELINES_ENDPOINT"),
        ({"host": "ftp://x"}, "not an http"),
        ({"host": "http://x", "token_file": "/absent"}, "no such file"),
    ],
)
def test_a_connection_that_cannot_be_is_refused(
    options: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("KF_PIPELINES_ENDPOINT", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match=said):
        Connection.find(**({"namespace": None} | options))
