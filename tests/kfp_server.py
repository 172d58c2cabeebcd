"""A Kubeflow Pipelines API server in this process: the v2beta1 REST API over HTTP, for tests of the cluster commands.

What it takes and gives are `kfp_server_api`'s own model classes, generated from the published OpenAPI: requests are
parsed into them and answers serialised from them, with that package's own code. It keeps what it is told, pages its
listings, filters by name, knows one user (`token`), and refuses what the real server refuses. `fail` makes the next
matching request go wrong: an error status, silence, an answer that is cut off before or after the work was done.
"""

from __future__ import annotations

import email
import email.policy
import itertools
import json
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

import kfp_server_api as api
import yaml

__all__ = ["Fault", "KFPServer", "run_kfp_server"]

_CODEC = api.ApiClient(api.Configuration(host="http://unused"))
_CODES = {400: 3, 401: 16, 403: 7, 404: 5, 409: 6, 500: 13, 503: 14}  # gRPC's, as the gateway maps them


class Refusal(Exception):
    """An answer with an error status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass
class Fault:
    """What goes wrong with a request.

    Attributes:
        kind: `status`: that error status; `silence`: no answer for `seconds`; `cut`: the connection breaks before the
            work is done; `cut_after`: the work is done, and the answer breaks off; `page`: a login page, status 200.
        method: Of the requests that it hits.
        path: Regular expression of their path.
        times: How many of them.
    """

    kind: Literal["status", "silence", "cut", "cut_after", "page"]
    path: str = ""
    method: str = ""
    status: int = 503
    seconds: float = 0.0
    times: int = 1


@dataclass
class KFPServer:
    """The server's state, and how to get at it from a test.

    Attributes:
        token: Bearer token that it asks for; empty: none.
        forbidden: Regular expressions of paths that the user may not use.
        largest_page: Longest page of a listing.
        requests: Every request, as `METHOD path`.
    """

    token: str = ""
    forbidden: list[str] = field(default_factory=list)
    largest_page: int = 2
    multi_user: bool = False
    experiments: dict[str, Any] = field(default_factory=dict)
    pipelines: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, Any] = field(default_factory=dict)
    runs: dict[str, Any] = field(default_factory=dict)
    recurring: dict[str, Any] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    address: str = ""
    _faults: list[Fault] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _clock: Any = field(default_factory=itertools.count)

    def fail(self, kind: Any, **options: Any) -> None:
        """The next matching request goes wrong."""
        self._faults.append(Fault(kind, **options))

    def step(self, run_id: str, name: str, state: str, *, error: str = "", pod: str = "", seconds: float = 0.0) -> None:
        """Puts a step of a run into a state, as the workflow controller would."""
        run = self.runs[run_id]
        details = run.run_details.task_details
        task = next((one for one in details if one.display_name == name), None)
        if task is None:
            children = [api.PipelineTaskDetailChildTask(pod_name=pod)] if pod else []
            task = api.V2beta1PipelineTaskDetail(
                run_id=run_id, task_id=str(uuid.uuid4()), display_name=name, child_tasks=children
            )
            task.create_time = task.start_time = self._now()
            details.append(task)
        task.state = state
        if state not in ("PENDING", "RUNNING"):
            task.end_time = task.start_time + timedelta(seconds=seconds)
        if error:
            task.error = api.GoogleRpcStatus(code=2, message=error)

    def end(self, run_id: str, state: str, error: str = "") -> None:
        """Ends a run."""
        run = self.runs[run_id]
        run.state, run.finished_at = state, self._now()
        if error:
            run.error = api.GoogleRpcStatus(code=2, message=error)

    def calls(self, method: str, path: str = "") -> list[str]:
        """The requests so far that match."""
        return [one for one in self.requests if one.startswith(method) and re.search(path, one)]

    # --- the API -----------------------------------------------------------------------------------------------------

    def answer(self, method: str, path: str, query: dict[str, str], body: bytes, content_type: str) -> Any:
        """Does what a request asks for and returns the model to answer with."""
        with self._lock:
            for verb, pattern, action in self._routes():
                match = re.fullmatch(pattern, path)
                if verb == method and match:
                    return action(match, query, _parsed(body, content_type))
        raise Refusal(404, f"no such method: {method} {path}")

    def _routes(self) -> list[tuple[str, str, Callable[..., Any]]]:
        base = "/apis/v2beta1"
        one = "([^/:]+)"
        return [
            ("GET", f"{base}/healthz", lambda *_: api.V2beta1GetHealthzResponse(multi_user=self.multi_user)),
            ("GET", f"{base}/experiments", self._listing(self.experiments, api.V2beta1ListExperimentsResponse)),
            ("POST", f"{base}/experiments", self._make_experiment),
            ("GET", f"{base}/pipelines", self._listing(self.pipelines, api.V2beta1ListPipelinesResponse)),
            ("POST", f"{base}/pipelines", self._make_pipeline),
            ("GET", f"{base}/pipelines/names/{one}", self._pipeline_by_name),
            ("POST", f"{base}/pipelines/upload_version", self._upload_version),
            ("GET", f"{base}/pipelines/{one}/versions", self._list_versions),
            ("GET", f"{base}/runs", self._listing(self.runs, api.V2beta1ListRunsResponse)),
            ("POST", f"{base}/runs", self._make_run),
            ("GET", f"{base}/runs/{one}", lambda match, *_: self._get(self.runs, match[1], "Run")),
            ("POST", f"{base}/runs/{one}:terminate", self._terminate),
            ("GET", f"{base}/recurringruns", self._listing(self.recurring, api.V2beta1ListRecurringRunsResponse)),
            ("POST", f"{base}/recurringruns", self._make_recurring),
            ("POST", f"{base}/recurringruns/{one}:enable", lambda match, *_: self._mode(match[1], "ENABLE")),
            ("POST", f"{base}/recurringruns/{one}:disable", lambda match, *_: self._mode(match[1], "DISABLE")),
            ("DELETE", f"{base}/recurringruns/{one}", self._delete_recurring),
        ]

    def _require_namespace(self, namespace: str | None, what: str) -> None:
        """A server with several users takes nothing that is in no namespace."""
        if self.multi_user and not namespace:
            raise Refusal(
                403 if what == "Pipeline" else 400, f"{what} cannot have an empty namespace in multi-user mode"
            )

    def _make_experiment(self, _match: Any, _query: Any, body: bytes) -> Any:
        made = _model(body, "V2beta1Experiment")
        self._require_namespace(made.namespace, "Experiment")
        if any(one.display_name == made.display_name for one in self.experiments.values()):
            raise Refusal(409, f"Experiment {made.display_name} already exists")
        made.experiment_id, made.created_at = str(uuid.uuid4()), self._now()
        self.experiments[made.experiment_id] = made
        return made

    def _make_pipeline(self, _match: Any, _query: Any, body: bytes) -> Any:
        made = _model(body, "V2beta1Pipeline")
        self._require_namespace(made.namespace, "Pipeline")
        if any(one.name == made.name for one in self.pipelines.values()):
            raise Refusal(409, f"The name {made.name} already exists. Please specify a new name.")
        made.pipeline_id, made.created_at = str(uuid.uuid4()), self._now()
        self.pipelines[made.pipeline_id] = made
        return made

    def _pipeline_by_name(self, match: Any, *_: Any) -> Any:
        found = next((one for one in self.pipelines.values() if one.name == match[1]), None)
        if found is None:
            raise Refusal(404, f"Pipeline {match[1]} not found")
        return found

    def _upload_version(self, _match: Any, query: dict[str, str], body: bytes) -> Any:
        pipeline = self._get(self.pipelines, query.get("pipelineid", ""), "Pipeline")
        name = query["name"]
        if any((v.pipeline_id, v.display_name) == (pipeline.pipeline_id, name) for v in self.versions.values()):
            raise Refusal(409, f"Pipeline version {name} already exists")
        documents = list(yaml.safe_load_all(body))
        if not documents or "pipelineInfo" not in documents[0]:
            raise Refusal(400, "Invalid input error: unknown template format")
        spec = {"pipeline_spec": documents[0]} | ({"platform_spec": documents[1]} if len(documents) > 1 else {})
        made = api.V2beta1PipelineVersion(
            pipeline_id=pipeline.pipeline_id,
            pipeline_version_id=str(uuid.uuid4()),
            display_name=name,
            name=name,
            created_at=self._now(),
            pipeline_spec=spec,
        )
        self.versions[made.pipeline_version_id] = made
        return made

    def _list_versions(self, match: Any, query: dict[str, str], _body: bytes) -> Any:
        mine = {key: one for key, one in self.versions.items() if one.pipeline_id == match[1]}
        return self._listing(mine, api.V2beta1ListPipelineVersionsResponse)(match, query, b"")

    def _make_run(self, _match: Any, _query: Any, body: bytes) -> Any:
        made = _model(body, "V2beta1Run")
        self._check_target(made)
        made.run_id, made.state, made.created_at = str(uuid.uuid4()), "PENDING", self._now()
        made.finished_at = datetime(1970, 1, 1, tzinfo=UTC)  # what the real server says of a run that goes on
        made.run_details = api.V2beta1RunDetails(task_details=[])
        made.service_account = made.service_account or "pipeline-runner"
        self.runs[made.run_id] = made
        return made

    def _terminate(self, match: Any, *_: Any) -> Any:
        run = self._get(self.runs, match[1], "Run")
        if run.state not in ("PENDING", "RUNNING"):
            raise Refusal(400, "Failed to terminate a run. Run is already finished")
        run.state = "CANCELING"
        return {}

    def _make_recurring(self, _match: Any, _query: Any, body: bytes) -> Any:
        made = _model(body, "V2beta1RecurringRun")
        self._check_target(made)
        cron = made.trigger.cron_schedule.cron if made.trigger and made.trigger.cron_schedule else ""
        if len(cron.split()) != 6:
            raise Refusal(400, f"Schedule cron is not a supported format: {cron!r}")
        if not 1 <= int(made.max_concurrency or 0) <= 10:
            raise Refusal(400, "The max concurrency of the job is out of range. Support 1-10.")
        made.recurring_run_id, made.created_at = str(uuid.uuid4()), self._now()
        made.service_account = made.service_account or "pipeline-runner"
        made.status = "ENABLED" if made.mode == "ENABLE" else "DISABLED"
        self.recurring[made.recurring_run_id] = made
        return made

    def _mode(self, key: str, mode: str) -> Any:
        one = self._get(self.recurring, key, "RecurringRun")
        one.mode, one.status = mode, f"{mode}D"
        return {}

    def _delete_recurring(self, match: Any, *_: Any) -> Any:
        self._get(self.recurring, match[1], "RecurringRun")
        del self.recurring[match[1]]
        return {}

    def _check_target(self, made: Any) -> None:
        self._get(self.experiments, made.experiment_id or "", "Experiment")
        reference = made.pipeline_version_reference
        version = self._get(self.versions, reference.pipeline_version_id if reference else "", "PipelineVersion")
        root = version.pipeline_spec["pipeline_spec"]["root"]
        known = root.get("inputDefinitions", {}).get("parameters", {})
        for name in made.runtime_config.parameters or {}:
            if name not in known:
                raise Refusal(400, f"Parameter {name} is not in the pipeline")

    def _get(self, store: dict[str, Any], key: str, kind: str) -> Any:
        if key not in store:
            raise Refusal(404, f"{kind} {key} not found.")
        return store[key]

    def _listing(self, store: dict[str, Any], response: Any) -> Callable[..., Any]:
        """Pages of a store, oldest first, filtered by display name."""
        items = next(name for name in response.openapi_types if name not in ("next_page_token", "total_size"))

        def answer(_match: Any, query: dict[str, str], _body: bytes) -> Any:
            found = list(store.values())
            if items != "pipeline_versions":
                self._require_namespace(query.get("namespace"), "Listing")
            for predicate in json.loads(query.get("filter") or "{}").get("predicates", []):
                if (predicate["operation"], predicate["key"]) != ("EQUALS", "display_name"):
                    raise Refusal(400, f"Invalid filter {predicate}")
                found = [one for one in found if one.display_name == predicate["stringValue"]]
            start = int(query.get("page_token") or 0)
            stop = start + min(int(query.get("page_size") or 20), self.largest_page)
            following = str(stop) if stop < len(found) else None
            return response(**{items: found[start:stop]}, next_page_token=following, total_size=len(found))

        return answer

    def _now(self) -> datetime:
        """Strictly later at every call."""
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=next(self._clock))

    def take_fault(self, method: str, path: str) -> Fault | None:
        with self._lock:
            for fault in self._faults:
                if fault.times and fault.method in ("", method) and re.search(fault.path, path):
                    fault.times -= 1
                    return fault
        return None


@contextmanager
def run_kfp_server(**options: Any) -> Iterator[KFPServer]:
    """A server on the loopback."""
    state = KFPServer(**options)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            parts = urlsplit(self.path)
            query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            state.requests.append(f"{self.command} {parts.path}")
            fault = state.take_fault(self.command, parts.path)
            if fault and fault.kind == "silence":
                time.sleep(fault.seconds)
            if fault and fault.kind == "cut":
                self.close_connection = True
                return
            if fault and fault.kind == "page":
                self._send(200, b"<html><form>Sign in</form></html>", "text/html")
                return
            try:
                if fault and fault.kind == "status":
                    raise Refusal(fault.status, "injected")
                self._check_user(parts.path)
                kind = self.headers.get("Content-Type") or ""
                made = state.answer(self.command, parts.path, query, body, kind)
                status, answer = 200, made if isinstance(made, dict) else _CODEC.sanitize_for_serialization(made)
            except Refusal as refusal:
                status = refusal.status
                answer = {"error": str(refusal), "code": _CODES.get(status, 2), "message": str(refusal), "details": []}
            self._send(
                status, json.dumps(answer).encode(), "application/json", cut=bool(fault) and fault.kind == "cut_after"
            )

        def _check_user(self, path: str) -> None:
            if state.token and self.headers.get("authorization") != f"Bearer {state.token}":
                raise Refusal(401, "Request header error: there is no user identity header")
            if any(re.search(pattern, path) for pattern in state.forbidden):
                raise Refusal(403, "User 'x' is not authorized with reason: (request: create in namespace plumbline)")

        def _send(self, status: int, body: bytes, kind: str, *, cut: bool = False) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if cut else body)
            self.close_connection = self.close_connection or cut

        do_GET = do_POST = do_DELETE = _serve

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()


def _parsed(body: bytes, content_type: str) -> bytes:
    """The body, or of a form its file."""
    if not content_type.startswith("multipart/form-data"):
        return body
    message = email.message_from_bytes(
        f"Content-Type: {content_type}\r\n\r\n".encode() + body, policy=email.policy.HTTP
    )
    part = next(
        (one for one in message.iter_parts() if one.get_param("name", header="content-disposition") == "uploadfile"),
        None,
    )
    if part is None:
        raise Refusal(400, "Invalid input error: Failed to read pipeline: no file `uploadfile`")
    return part.get_payload(decode=True)


def _model(body: bytes, kind: str) -> Any:
    """The body as the generated model; what the model does not know or allow is refused."""

    class Response:
        data = body.decode()

    try:
        made = _CODEC.deserialize(Response, kind)
    except (ValueError, TypeError) as error:
        raise Refusal(400, f"Invalid input error: {error}") from error
    unknown = set(json.loads(body)) - set(made.attribute_map.values())
    if unknown:
        raise Refusal(400, f"proto: unknown field {sorted(unknown)}")
    return made
