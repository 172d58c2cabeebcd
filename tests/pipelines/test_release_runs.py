"""What starts a release run: a command that outlives its starter, or Kubeflow Pipelines."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from components.review.settings import KfpTrigger, ReleaseTrigger
from components.shared.errors import InputError, PlumblineError
from components.shared.files import write_json
from components.shared.release_orders import ReleaseOrder, make_order, open_orders
from pipelines.checkpoint import checkpoint_arguments
from pipelines.release_runs import CommandStart, KfpStart, _inherited, _kept_alive, make_start
from pipelines.settings import load_run_settings
from pipelines.workspace import RunFolder, Workspace

_ROLES = ("candidate", "evaluation", "dataset", "reward_model", "heldout_reward_model", "history")


def _make_order(**overrides: Any) -> ReleaseOrder:
    values: dict[str, Any] = {
        "batch_id": "b",
        "model": "demo",
        "version": "3",
        "mode": "candidate",
        "run": "r",
        "policy": "production",
        "seed": 4,
        "settings": {"panel": "people", "n_prompts": 7},
        "artifacts": {role: {"uri": f"s3://bucket/{role}", "digest": f"digest of {role}"} for role in _ROLES},
    }
    return make_order(**{**values, **overrides})


def test_a_command_is_told_what_to_judge_and_goes_on_without_its_starter(tmp_path: Path) -> None:
    script = "import sys, time; time.sleep(0.2); print(*sys.argv[1:], flush=True)"
    order = _make_order()
    CommandStart([sys.executable, "-c", script], log=tmp_path / "log")(order, 2)
    told = f"--model-name demo --version 3 --order {order.order_id} --attempt 2\n"
    for _ in range(200):
        if (tmp_path / "log").read_text() == told:
            return
        time.sleep(0.05)
    assert (tmp_path / "log").read_text() == told


def test_a_command_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no-such-command"):
        CommandStart(["/no-such-command"], log=tmp_path / "log")(_make_order(), 1)


def test_the_settings_choose_what_starts_a_run(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    assert isinstance(make_start(ReleaseTrigger(), workspace), CommandStart)
    assert isinstance(make_start(ReleaseTrigger(kfp=KfpTrigger()), workspace), KfpStart)
    with pytest.raises(ValueError, match="not both"):
        ReleaseTrigger(command=("x",), kfp=KfpTrigger())


class _Api:
    """As much of Kubeflow Pipelines' v2beta1 API as a submission touches."""

    def __init__(self) -> None:
        self.pipelines = {"plumbline-release": "p1", "plumbline-release-live": "p2"}
        self.runs: list[dict[str, Any]] = []
        self.states: dict[str, str] = {}
        self.status = 200

    def answer(self, method: str, path: str, query: str, body: dict[str, Any]) -> dict[str, Any]:
        parts = path.removeprefix("/apis/v2beta1/").split("/")
        match (method, parts):
            case ("GET", ["pipelines", "names", name]):
                return {"pipeline_id": self.pipelines[name], "display_name": name}
            case ("GET", ["pipelines", pipeline, "versions"]):
                assert "created_at+desc" in query or "created_at%20desc" in query
                return {"pipeline_versions": [{"pipeline_id": pipeline, "pipeline_version_id": f"{pipeline}-newest"}]}
            case ("GET", ["experiments"]):
                return {"experiments": [{"experiment_id": "e1", "display_name": "plumbline"}]}
            case ("GET", ["runs", run_id]):
                return {"run_id": run_id, "display_name": run_id, "state": self.states[run_id]}
            case ("POST", ["runs"]):
                self.runs.append(body)
                return {"run_id": "run-1", **body}
        return {}


@pytest.fixture
def api() -> Iterator[tuple[str, _Api]]:
    """A server of it on loopback."""
    fake = _Api()

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            size = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(size)) if size else {}
            url = urlsplit(self.path)
            try:
                content, status = json.dumps(fake.answer(self.command, url.path, url.query, body)).encode(), fake.status
            except KeyError:
                content, status = b'{"message": "not found"}', 404
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = _answer

        def log_message(self, format: str, *args: object) -> None:
            """Keeps the test's output clean."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", fake
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _start(host: str, **overrides: str) -> KfpStart:
    return KfpStart(KfpTrigger(**{"host": host, "namespace": "ns", "service_account": "promoter", **overrides}))


def test_the_newest_version_of_the_pipeline_is_submitted_with_the_order(api: tuple[str, _Api]) -> None:
    host, fake = api
    order = _make_order()
    _start(host)(order, 2)
    (run,) = fake.runs
    assert run["pipeline_version_reference"] == {"pipeline_id": "p1", "pipeline_version_id": "p1-newest"}
    assert (run["experiment_id"], run["service_account"]) == ("e1", "promoter")
    given = run["runtime_config"]["parameters"]
    assert (given["order"], given["attempt"]) == (order.order_id, 2)
    assert given["candidate_uri"] == "s3://bucket/candidate"
    assert given["digests"]["history"] == "digest of history"
    assert given["human_eval_settings"]["n_prompts"] == 7


def test_a_live_model_has_its_own_pipeline(api: tuple[str, _Api]) -> None:
    host, fake = api
    _start(host)(_make_order(mode="live"), 1)
    assert fake.runs[0]["pipeline_version_reference"]["pipeline_id"] == "p2"


def test_a_pipeline_that_was_not_uploaded_is_named(api: tuple[str, _Api]) -> None:
    host, fake = api
    fake.pipelines.clear()
    with pytest.raises(InputError, match="plumbline-release"):
        _start(host)(_make_order(), 1)


def test_an_api_that_fails_is_an_error_that_the_watch_understands(api: tuple[str, _Api]) -> None:
    host, fake = api
    fake.status = 500
    with pytest.raises(PlumblineError):
        _start(host)(_make_order(), 1)
    with pytest.raises(PlumblineError, match="cannot be reached"):
        _start("http://127.0.0.1:9")(_make_order(), 1)


@pytest.mark.parametrize(
    ("state", "alive"), [("PENDING", True), ("RUNNING", True), ("SUCCEEDED", False), ("FAILED", False), (None, False)]
)
def test_the_cluster_is_asked_whether_a_run_is_going_on(api: tuple[str, _Api], state: str | None, alive: bool) -> None:
    host, fake = api
    fake.states = {"run-1": state} if state else {}
    assert _start(host).is_running("run-1") is alive


def test_a_run_on_this_machine_renews_its_time_while_its_process_lives(tmp_path: Path) -> None:
    root, order = Workspace(tmp_path), _make_order()
    with root.services():
        orders = open_orders()
    orders.record(order)
    orders.start(order.order_id, "service")
    orders.begin(order.order_id, 1, "run")
    begun = orders.state(order.order_id)
    with _kept_alive(root, order, 1, every_seconds=0.05):
        for _ in range(200):
            if orders.state(order.order_id).number > begun.number:
                break
            time.sleep(0.05)
    assert (orders.state(order.order_id).expires_at or "") > (begun.expires_at or "")


def test_the_checkpoint_that_a_release_run_offers_can_be_taken_from_that_run(tmp_path: Path) -> None:
    made = {role: f"/runs/{role}" for role in (*_ROLES, "sft", "checkpoints", "evidence", "decision")}
    write_json(tmp_path / "artifacts.json", made)
    inherited = _inherited(RunFolder(tmp_path), _make_order())
    assert not {"evidence", "decision"} & set(inherited), "those are the release run's own"
    arguments = checkpoint_arguments(load_run_settings("demo"), step=10, artifacts=inherited)
    assert arguments["checkpoints_uri"] == "/runs/checkpoints"
