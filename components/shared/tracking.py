"""MLflow tracking: one run per step, under the one run of the pipeline.

Which run is the parent is environment, not a parameter, so that it never changes a cache key:

- `MLFLOW_RUN_ID` set: Kubeflow Pipelines opened a run for this task, and the step joins it;
- otherwise the step opens a run of its own under the run tagged with `PLUMBLINE_RUN_ID` (opened by whichever is first);
- no `MLFLOW_TRACKING_URI`: metrics go to the log, and training goes on.

A tracking server that is down, slow or refuses never costs a trained model, nor much time: the failure is logged and
the step goes on. What could not be sent waits, and goes with the next that can, with the time at which it was measured;
after three failures in a row the step asks again once a minute only. What is still unsent when the step ends is counted
in the log, where the metrics stand one by one.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from components.shared.errors import PlumblineError
from components.shared.full_disk import full_disk
from components.shared.progress import announce, stop_asked
from components.shared.termination import EXIT_TERMINATED
from components.shared.usage import Usage, UsageMeter

__all__ = [
    "StageRun",
    "attach_to_pipeline_run",
    "close_pipeline_run",
    "failed_step",
    "last_successful_run",
    "pipeline_run",
    "pipeline_run_id",
    "pipeline_usage",
    "stage_run",
    "tag_pipeline_run",
]

logger = logging.getLogger(__name__)

_RUN_TAG = "plumbline.run_id"
_STAGE_TAG = "plumbline.stage"
_ERROR_TAG = "plumbline.error"
_PARAM_LIMIT = 6000  # MLflow cuts longer values
_FAILURES_BORNE = 3
_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
"""MLflow's own defaults, 7 retries with backoff and 120 s, hold a step up for minutes at every call."""


_PAUSE_SECONDS = 60.0
"""After so many failures in a row, the time until the server is asked again."""
_BATCH = {"metrics": 1000, "params": 100, "tags": 100}
"""MLflow's limits for one request."""
_KEPT = 100_000
"""Rows that wait for the server; beyond that the oldest go, and stand in the log only."""
_REFUSED = "INVALID_PARAMETER_VALUE"
"""MLflow's code for what it will never take, such as another value of a parameter that is logged already."""

_Open = Callable[[], tuple[Any, str]]


class StageRun:
    """What a step logs to. Every method is safe to call whether or not there is a tracking server."""

    def __init__(self, open_run: _Open | None = None) -> None:
        """Opens nothing yet.

        Args:
            open_run: Opens the run; returns MLflow's client and the run's id. None: there is no tracking server.
        """
        self.run_id: str | None = None
        self._open_run = open_run
        self._client: Any = None
        self._waiting: dict[str, list[Any]] = {kind: [] for kind in _BATCH}
        self._uploads: list[tuple[Path, str | None]] = []
        self._failures = 0
        self._asked_at = 0.0

    def log_metrics(self, metrics: Mapping[str, float | int | None], step: int | None = None) -> None:
        """Logs finite numbers; None is skipped, NaN and infinity are logged as a warning."""
        finite = {}
        for name, value in metrics.items():
            if value is not None and math.isfinite(value):
                finite[name] = float(value)
            elif value is not None:
                logger.warning("metric %s is %s at step %s", name, value, step)
        if self._open_run is None:
            logger.debug("metrics at step %s: %s", step, finite)
            return
        from mlflow.entities import Metric
        from mlflow.utils.time import get_current_time_millis

        now = get_current_time_millis()
        self._keep("metrics", [Metric(name, value, now, step or 0) for name, value in finite.items()])
        if not self._send():
            logger.info("metrics at step %s: %s", step, finite)

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Logs parameters; nested mappings become dotted names."""
        if self._open_run is None:
            return
        from mlflow.entities import Param

        self._keep("params", [Param(name, str(value)[:_PARAM_LIMIT]) for name, value in _flatten(params)])
        self._send()

    def log_artifact(self, path: str | Path, artifact_path: str | None = None) -> None:
        """Uploads a file, or a folder with all in it; one that cannot be sent now goes later, as it is by then."""
        if self._open_run is not None:
            self._uploads.append((Path(path), artifact_path))
            self._send()

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Sets tags on the step's run."""
        if self._open_run is None:
            return
        from mlflow.entities import RunTag

        self._keep("tags", [RunTag(name, value) for name, value in tags.items()])
        self._send()

    def end(self, status: str) -> None:
        """Sends what waits and closes the run; tried whatever failed before, so that a server that is back knows."""
        if self._open_run is None:
            return
        self._asked_at = -math.inf
        sent = self._send()
        waiting = {**self._waiting, "files": self._uploads}
        if not sent and (left := {kind: len(rows) for kind, rows in waiting.items() if rows}):
            logger.error("MLflow: %s of the step could not be sent; the metrics are in this log.", left)
        if self._client is not None and not os.environ.get("MLFLOW_RUN_ID"):  # a run that KFP opened is KFP's to close
            with _never_fatal("end the run"):
                self._client.set_terminated(self.run_id, status)

    def open(self) -> None:
        """Opens the run, if that can be done now."""
        if self._is_due():
            self._try("open a run", lambda: None)

    def _keep(self, kind: str, rows: list[Any]) -> None:
        waiting = self._waiting[kind]
        waiting.extend(rows)
        del waiting[: max(0, len(waiting) - _KEPT)]

    def _send(self) -> bool:
        """Sends what waits, oldest first; returns whether nothing waits any more."""
        for kind, rows in self._waiting.items():
            while rows:
                if not self._is_due():
                    return False
                part = rows[: _BATCH[kind]]
                if not self._try(f"log {kind}", partial(self._log, kind, part)):
                    return False
                del rows[: len(part)]
        return self._send_files()

    def _send_files(self) -> bool:
        """Uploads the files that wait; returns whether none does any more."""
        while self._uploads:
            path, _ = self._uploads[0]
            if not path.exists():
                logger.warning("MLflow: could not upload %s: it is not there.", path)
            elif not self._is_due() or not self._try(f"upload {path}", partial(self._upload, *self._uploads[0])):
                return False
            del self._uploads[0]
        return True

    def _upload(self, path: Path, artifact_path: str | None) -> None:
        upload = self._client.log_artifacts if path.is_dir() else self._client.log_artifact
        upload(self.run_id, str(path), artifact_path)

    def _log(self, kind: str, part: list[Any]) -> None:
        """Logs rows; what the server will never take is dropped."""
        from mlflow.exceptions import MlflowException

        try:
            self._client.log_batch(self.run_id, **{kind: part})
        except MlflowException as error:
            if error.error_code != _REFUSED:
                raise
            if len(part) > 1:  # the whole batch is refused for one row
                for row in part:
                    self._log(kind, [row])
                return
            logger.warning("MLflow: refused %s, which is dropped from its %s: %s", part[0].key, kind, error)

    def _is_due(self) -> bool:
        """Whether to ask the server now."""
        if self._open_run is None:
            return False
        return self._failures < _FAILURES_BORNE or time.monotonic() - self._asked_at >= _PAUSE_SECONDS

    def _try(self, what: str, ask: Callable[[], None]) -> bool:
        """Asks the server, of the run that is opened first if it is not yet; counts failures in a row."""
        done = False
        with _never_fatal(what):
            if self._client is None and self._open_run is not None:
                self._client, self.run_id = self._open_run()
            ask()
            done = True
        self._failures = 0 if done else self._failures + 1
        self._asked_at = time.monotonic()
        if self._failures == _FAILURES_BORNE:
            logger.warning(
                "MLflow: failed %d times in a row; it is asked again every %.0f s, and metrics go to the log.",
                _FAILURES_BORNE,
                _PAUSE_SECONDS,
            )
        return done


@contextlib.contextmanager
def stage_run(
    stage: str, *, settings: Mapping[str, Any] | None = None, seed: int | None = None, tells: bool = True
) -> Iterator[StageRun]:
    """Opens the step's MLflow run and closes it with the step's outcome; tells watchers when the step starts and ends.

    Args:
        stage: The step's name.
        settings: Its settings, logged as parameters.
        seed: Its seed.
        tells: Whether this process tells; of several that do one step together, one does.

    Yields:
        The run to log to.

    Raises:
        SystemExit: The pipeline was interrupted before this step: it does not start; status 143.
        PlumblineError: The disk is full, whatever library said so inside the block.
    """
    _configure_logging()
    if stop_asked():
        logger.warning("%s not started: the run was interrupted.", stage)
        raise SystemExit(EXIT_TERMINATED)
    if not tells:
        yield StageRun()
        return
    announce(stage, "started")
    run, meter = _stage_run(stage), UsageMeter()
    run.log_params({**(settings or {}), **({} if seed is None else {"seed": seed})})
    try:
        with _system_metrics(run):
            yield run
    except BaseException as error:
        told = full_disk(error) or error
        run.log_metrics(meter.read().as_metrics())
        announce(stage, "failed", error=str(told) or type(told).__name__)
        run.set_tags({_ERROR_TAG: "".join(traceback.format_exception_only(told)).strip()[:5000]})
        run.end("FAILED")
        if told is error:
            raise
        raise told from error
    run.log_metrics(meter.read().as_metrics())
    run.end("FINISHED")
    announce(stage, "finished")


def pipeline_run() -> str:
    """The pipeline run that this step belongs to; empty outside one."""
    return os.environ.get("PLUMBLINE_RUN_ID", "")


def pipeline_run_id() -> str | None:
    """MLflow id of the pipeline's run, opened if it does not exist yet; None without a tracking server."""
    name = os.environ.get("PLUMBLINE_RUN_ID")
    if not (os.environ.get("MLFLOW_TRACKING_URI") and name):
        return None
    client, experiment = _client_and_experiment()
    found = client.search_runs([experiment], f"tags.`{_RUN_TAG}` = '{name}' and tags.`{_STAGE_TAG}` = 'pipeline'")
    if found:
        return found[0].info.run_id
    tags = {_RUN_TAG: name, _STAGE_TAG: "pipeline", "mlflow.runName": name}
    return client.create_run(experiment, tags=tags).info.run_id


def tag_pipeline_run(tags: Mapping[str, str]) -> None:
    """Sets tags on the pipeline's run; best effort, as all tracking."""
    with _never_fatal("tag the pipeline's run"):
        if (parent := pipeline_run_id()) is not None:
            client, _ = _client_and_experiment()
            for name, value in tags.items():
                client.set_tag(parent, name, value)


def attach_to_pipeline_run(file: str | Path, name: str) -> None:
    """Keeps a file with the pipeline's run, under a name; best effort, as all tracking."""
    with _never_fatal(f"keep {name} with the pipeline's run"):
        if (parent := pipeline_run_id()) is not None:
            client, _ = _client_and_experiment()
            client.log_text(parent, Path(file).read_text(encoding="utf-8"), name)


def last_successful_run(tag: str, value: str) -> dict[str, str] | None:
    """Tags of the newest pipeline run that has a tag and ended well; None if there is none.

    Unlike logging this is no best effort: whoever asks decides by the answer.

    Raises:
        PlumblineError: There is no tracking server, or it does not answer.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    if not os.environ.get("MLFLOW_TRACKING_URI"):
        raise PlumblineError(
            "no MLflow server is configured, which remembers earlier runs.", where="MLFLOW_TRACKING_URI"
        )
    quoted = value.replace("'", "")
    mine = f"tags.`{_STAGE_TAG}` = 'pipeline' and tags.`{tag}` = '{quoted}' and attributes.status = 'FINISHED'"
    try:
        client, experiment = _client_and_experiment()
        found = client.search_runs([experiment], mine, order_by=["attributes.start_time DESC"], max_results=1)
    except (MlflowException, SQLAlchemyError, OSError) as error:
        hint = "Check address, login and --allowed-hosts."
        raise PlumblineError(f"MLflow does not answer: {error}", where="MLFLOW_TRACKING_URI", hint=hint) from error
    return dict(found[0].data.tags) if found else None


def failed_step() -> tuple[str, str] | None:
    """The step whose last try failed, and its own words; of several the one that ended last. None if none is known.

    A step that was killed leaves its run open and says nothing.
    """
    name = pipeline_run()
    if not (os.environ.get("MLFLOW_TRACKING_URI") and name):
        return None
    with _never_fatal("look for the step that failed"):
        client, experiment = _client_and_experiment()
        mine = f"tags.`{_RUN_TAG}` = '{name}' and tags.`{_STAGE_TAG}` != 'pipeline'"
        runs = client.search_runs([experiment], mine, order_by=["attributes.start_time ASC"], max_results=1000)
        last = {run.data.tags[_STAGE_TAG]: run for run in runs}  # a later try stands for the step
        told = [run for run in last.values() if _ERROR_TAG in run.data.tags and run.info.status != "FINISHED"]
        silent = [run for run in last.values() if run.info.status in ("RUNNING", "KILLED")]
        if told:
            run = max(told, key=lambda one: one.info.end_time or one.info.start_time)
            return run.data.tags[_STAGE_TAG], run.data.tags[_ERROR_TAG]
        if silent:
            stage = silent[-1].data.tags[_STAGE_TAG]
            return stage, "the step ended without a word: killed, out of memory, evicted, or past its time limit"
    return None


def pipeline_usage() -> dict[str, list[Usage | None]]:
    """What the pipeline's steps used so far, an entry an attempt; None for one that was killed before it could tell.

    Returns:
        By step, in the order in which they started; empty without a tracking server.
    """
    found: dict[str, list[Usage | None]] = {}
    name = pipeline_run()
    if not (os.environ.get("MLFLOW_TRACKING_URI") and name):
        return found
    with _never_fatal("read what the steps used"):
        client, experiment = _client_and_experiment()
        mine = f"tags.`{_RUN_TAG}` = '{name}' and tags.`{_STAGE_TAG}` != 'pipeline'"
        runs = client.search_runs([experiment], mine, order_by=["attributes.start_time ASC"], max_results=1000)
        for run in runs:
            stage = run.data.tags[_STAGE_TAG]
            found.setdefault(stage, []).append(Usage.from_metrics(run.data.metrics))
    return found


def close_pipeline_run(status: str) -> None:
    """Ends the pipeline's MLflow run, and any of its steps' runs that a killed step left open.

    Args:
        status: `SUCCEEDED`, or how the pipeline failed.
    """
    with _never_fatal("close the pipeline's run"):
        parent = pipeline_run_id()
        if parent is None:
            return
        client, experiment = _client_and_experiment()
        children = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}'")
        for run in children:
            if run.info.status == "RUNNING":
                client.set_terminated(run.info.run_id, "KILLED")
        client.set_terminated(parent, "FINISHED" if status == "SUCCEEDED" else "FAILED")


def _stage_run(stage: str) -> StageRun:
    """The step's run, opened now or, where the server does not answer, as soon as it does."""
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        return StageRun()
    started = int(time.time() * 1000)

    def open_run() -> tuple[Any, str]:
        client, experiment = _client_and_experiment()
        if joined := os.environ.get("MLFLOW_RUN_ID"):
            return client, joined
        tags = {_STAGE_TAG: stage, "mlflow.runName": stage}
        if parent := pipeline_run_id():
            tags |= {"mlflow.parentRunId": parent, _RUN_TAG: os.environ["PLUMBLINE_RUN_ID"]}
        return client, client.create_run(experiment, start_time=started, tags=tags).info.run_id

    run = StageRun(open_run)
    if "MLFLOW_RUN_ID" in os.environ:
        run.set_tags({_STAGE_TAG: stage, **({_RUN_TAG: name} if (name := pipeline_run()) else {})})
    run.open()
    return run


def _client_and_experiment() -> tuple[Any, str]:
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    for name, value in _PATIENCE.items():
        os.environ.setdefault(name, value)
    client = MlflowClient()
    if given := os.environ.get("MLFLOW_EXPERIMENT_ID"):
        return client, given
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "plumbline")
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client, client.create_experiment(name)
        except MlflowException:  # another step created it between the two calls
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    return client, found.experiment_id


@contextlib.contextmanager
def _never_fatal(what: str) -> Iterator[None]:
    """A tracking failure is reported, and training goes on."""
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, RequestException, SQLAlchemyError, OSError) as error:
        logger.warning("MLflow: could not %s: %s", what, error)


@contextlib.contextmanager
def _system_metrics(run: StageRun) -> Iterator[None]:
    """Samples the machine into the step's run while it lasts, where MLflow's own variable asks for it."""
    wanted = os.environ.get("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "").lower() in ("true", "1")
    if not wanted or run.run_id is None:
        yield
        return
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    monitor = SystemMetricsMonitor(run.run_id, resume_logging="MLFLOW_RUN_ID" in os.environ)
    with _never_fatal("sample the machine"):
        monitor.start()
    try:
        yield
    finally:
        with _never_fatal("sample the machine"):
            monitor.finish()


def _flatten(params: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in params.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", json.dumps(value) if isinstance(value, list) else value


def _configure_logging() -> None:
    """One plain log line a record, unless the process has configured logging itself; libraries stay at warnings."""
    if not logging.getLogger().handlers:
        logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        logging.getLogger("components").setLevel(logging.INFO)
