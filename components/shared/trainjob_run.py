"""A TrainJob over the Kubernetes API: made, followed and ended, whatever becomes of the API or of the step meanwhile.

    an earlier try's job? > create > follow log and status > its end > delete > wait until nothing of it is left

The API is the cluster's own, by the account of the pod; `k8s/base/rbac.yaml` gives that account what is used here and
no more. A job belongs to the step's pod: Kubernetes deletes it when the pod is deleted. A pod that was evicted stays
as a failed object and its job trains on; the retry of the step finds it by its name, makes it its own, and follows.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Protocol

from components.shared.errors import PlumblineError
from components.shared.termination import graceful_termination
from components.shared.trainjob import GRACE_SECONDS, GROUP, NODE, VERSION

__all__ = ["Cluster", "TrainJobError", "TrainJobRun", "run_train_job"]

_logger = logging.getLogger(__name__)

_PLURAL = "trainjobs"
_JOBSET = "jobset.sigs.k8s.io/jobset-name"
"""Label of every pod of a job."""
_WATCH_SECONDS = 60
_ANSWER_SECONDS = 20.0
"""A server that takes a connection and says nothing is away."""
_TERMINATED_SECONDS = 20.0
"""What a pod that is told to end spends on its job's deletion: less than what it is given itself."""
_GOES_SECONDS = 60.0
"""How long the pods of a deleted job may take to go, beyond their grace."""
_SILENT_SECONDS = 600.0
"""A log that says nothing for so long is asked for again: its connection may be dead."""
_CLOCKS_DIFFER_SECONDS = 300
_STAMP = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z$")
_PATIENCE_SECONDS = 300.0
"""How long the API server may be away before the step gives up following and deletes the job."""


class TrainJobError(PlumblineError):
    """The TrainJob could not be made, failed, or was lost sight of."""


class Cluster(Protocol):
    """The part of the Kubernetes API that is used: `kubernetes.client`'s two classes, in one namespace."""

    namespace: str
    objects: Any
    pods: Any


class _InCluster:
    def __init__(self) -> None:
        from kubernetes import client, config

        try:
            config.load_incluster_config()
        except config.ConfigException as error:
            raise TrainJobError(
                f"this is no pod of a cluster: {error}.",
                where="trainjob",
                hint="Leave `trainjob` out of the settings to train in the step itself.",
            ) from error
        with open("/var/run/secrets/kubernetes.io/serviceaccount/namespace", encoding="utf-8") as file:
            self.namespace = file.read().strip()
        self.objects, self.pods = client.CustomObjectsApi(), client.CoreV1Api()


def run_train_job(job: dict[str, Any], *, cluster: Cluster | None = None, patience: float = _PATIENCE_SECONDS) -> None:
    """Creates the job, follows it to its end, and takes it away; see `TrainJobRun.follow`."""
    TrainJobRun(job, cluster=cluster, patience=patience).follow()


class TrainJobRun:
    """One try at a TrainJob.

    Args:
        job: See `trainjob.train_job`.
        cluster: The cluster's API; that of this pod if None.
        patience: Seconds that the API server may be away.
        grace_seconds: Those of the job's pods.

    Attributes:
        is_gone: Whether nothing of the job is left on the cluster, so that nobody writes to its files any more.
    """

    def __init__(
        self,
        job: dict[str, Any],
        *,
        cluster: Cluster | None = None,
        patience: float = _PATIENCE_SECONDS,
        grace_seconds: float = GRACE_SECONDS,
    ) -> None:
        self.is_gone = False
        self._job = job
        self._name: str = job["metadata"]["name"]
        self._owners: list[dict[str, Any]] = job["metadata"].get("ownerReferences", [])
        self._is_mine = False
        self._cluster = cluster or _InCluster()
        self._patience = patience
        self._gone_seconds = grace_seconds + _GOES_SECONDS

    def follow(self, prepare: Callable[[], bool] = lambda: True) -> None:
        """Follows the job to its end, and takes it away.

        A job of this name that is there already is an earlier try's, or the answer to its creation was lost: it is
        followed. One that failed is taken away, and made anew.

        Args:
            prepare: Called before the job is made, when nothing of an earlier one is left on the cluster; returns
                whether there is still anything to do.

        Raises:
            TrainJobError: The API refused, the job failed, or it was deleted by somebody else.
            SystemExit: 143 after SIGTERM, once the job is deleted.
        """
        within = self._gone_seconds
        with graceful_termination() as termination:
            try:
                self._is_mine = self._takes_over()
                self.is_gone = not self._is_mine
                if not self._is_mine:
                    if not prepare():
                        return
                    self._is_mine, self.is_gone = True, False  # it may be, whatever the answer
                    self._create()
                with _followed_log(self._cluster, self._name):
                    self._await_end()
            except SystemExit:
                within = _TERMINATED_SECONDS
                raise
            finally:
                termination.deferred = True  # a second signal must not keep the job from being deleted
                if self._is_mine:
                    self.is_gone = self._is_deleted(within)
                if termination.requested:
                    termination.exit()

    def may_be_there(self, name: str) -> bool:
        """Whether the cluster has a job of that name, or does not say."""
        found, fault = self._tried(self._cluster.objects.get_namespaced_custom_object, name)
        return found is not None or fault is not None

    def _takes_over(self) -> bool:
        """Whether an earlier try's job is there, and this one's from now on; one that failed is taken away."""
        objects = self._cluster.objects
        while found := self._asked(objects.get_namespaced_custom_object, self._name, doing="look for"):
            if "deletionTimestamp" in found["metadata"] or _condition(found, "Failed"):
                _logger.warning("TrainJob %s of an earlier try is taken away, and made anew.", self._name)
                self._require_deleted()
                return False
            _logger.warning("TrainJob %s is there already; it is followed.", self._name)
            mine = {"metadata": {"ownerReferences": self._owners}}
            change = objects.patch_namespaced_custom_object
            if not self._owners or self._asked(change, self._name, mine, doing="take over") is not None:
                return True
        if self._has_pods():
            _logger.warning("TrainJob %s of an earlier try is gone, its pods are not; they are waited for.", self._name)
            self._require_deleted()
        return False

    def _create(self) -> None:
        """Creates the job; where the answer is lost, the job may be there when it is asked for again."""
        create = self._cluster.objects.create_namespaced_custom_object
        if self._asked(create, self._job, doing="create", unless=409) is None:
            _logger.warning("TrainJob %s is there already; it is followed.", self._name)

    def _await_end(self) -> None:
        """Returns when the job is complete; a watch that is cut is taken up again.

        Raises:
            TrainJobError: It failed, or is there no more.
        """
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        look, seen = self._cluster.objects.get_namespaced_custom_object, time.monotonic()
        while True:
            found = self._asked(look, self._name, doing="watch", since=seen)
            if found is None:
                raise TrainJobError(
                    "was deleted before it ended.", where=f"TrainJob {self._name}", hint="Run again: it resumes."
                )
            seen = time.monotonic()
            if self._has_ended(found):
                return
            try:
                for changed in self._changes(found):
                    seen = time.monotonic()
                    if self._has_ended(changed):
                        return
            except ApiException as error:
                if not _may_pass(error):
                    raise _refused(error, f"watch TrainJob {self._name}") from error
                self._be_patient(error, seen)
            except (HTTPError, OSError, ValueError) as error:  # cut, or cut in the middle of a line
                self._be_patient(error, seen)

    def _changes(self, found: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The job as it changes, for a while."""
        from kubernetes.watch import Watch

        events: Any = Watch().stream(
            self._cluster.objects.list_namespaced_custom_object,
            *self._where,
            field_selector=f"metadata.name={self._name}",
            resource_version=found.get("metadata", {}).get("resourceVersion"),
            timeout_seconds=_WATCH_SECONDS,
            _request_timeout=_WATCH_SECONDS + _ANSWER_SECONDS,
        )
        for event in events:
            if event["type"] == "DELETED":
                return  # the next look finds nothing, and says so
            yield event["object"]

    def _has_ended(self, job: dict[str, Any]) -> bool:
        """Whether the job is complete.

        Raises:
            TrainJobError: It failed.
        """
        if failed := _condition(job, "Failed"):
            raise TrainJobError(
                f"failed ({failed.get('reason', 'no reason')}): {failed.get('message', '')}",
                where=f"TrainJob {self._name}",
                hint="The log above says why. Run again: training goes on from the last checkpoint.",
            )
        return _condition(job, "Complete") is not None

    def _require_deleted(self) -> None:
        if not self._is_deleted(self._gone_seconds, whoever_owns=True):
            raise TrainJobError(
                f"an earlier try's is still there after {self._gone_seconds:.0f} s.",
                where=f"TrainJob {self._name}",
                hint="`kubectl describe` it and its pods; run again when it is gone.",
            )

    def _is_deleted(self, within: float, *, whoever_owns: bool = False) -> bool:
        """Deletes the job and waits for its pods to go; one that a later try has made its own is left alone.

        Trying for a while: a job that is left trains on, and its checkpoints are nobody else's.
        """
        objects, seen = self._cluster.objects, time.monotonic()
        until = seen + within
        while True:
            found, fault = self._tried(objects.get_namespaced_custom_object, self._name)
            if found is None and fault is None and not self._has_pods():
                return True
            if found is not None and not whoever_owns and _uids(found) != _uids(self._job):
                _logger.warning("TrainJob %s is followed by a later try of this step; it is left alone.", self._name)
                return False
            if fault is not None or (found is not None and "deletionTimestamp" not in found["metadata"]):
                told, fault = self._tried(objects.delete_namespaced_custom_object, self._name, body=_deletion(found))
                if told is None and fault is None and not self._has_pods():
                    return True
            now = time.monotonic()
            seen = now if fault is None else seen
            refused = fault is not None and not _may_pass(fault)
            if refused or now > until or now - seen > self._patience:
                why = fault or f"it is still there after {within:.0f} s"
                told_how = f"kubectl delete trainjob {self._name}"
                _logger.error("TrainJob %s could not be deleted: %s. Delete it: %s", self._name, why, told_how)
                return False
            time.sleep(0.5)

    def _has_pods(self) -> bool:
        """Whether pods of the job may run; who may not list them takes the word of the job's deletion for it."""
        try:
            found = self._cluster.pods.list_namespaced_pod(
                self._cluster.namespace, label_selector=f"{_JOBSET}={self._name}", _request_timeout=_ANSWER_SECONDS
            )
        except Exception as error:  # noqa: BLE001 (refused: a foreground deletion ends with the pods)
            _logger.debug("The pods of %s: %s", self._name, error)
            return _may_pass(error)
        return any(pod.status.phase in ("Pending", "Running") for pod in found.items)

    @property
    def _where(self) -> tuple[str, str, str, str]:
        return GROUP, VERSION, self._cluster.namespace, _PLURAL

    def _asked(
        self, call: Any, *arguments: Any, doing: str, unless: int = 404, since: float | None = None
    ) -> dict[str, Any] | None:
        """The API's answer; None where it is the status `unless`.

        Raises:
            TrainJobError: It refused, or has been away for too long.
        """
        since = time.monotonic() if since is None else since
        while True:
            answer, fault = self._tried(call, *arguments, unless=unless)
            if fault is None:
                return answer
            if not _may_pass(fault):
                raise _refused(fault, f"{doing} TrainJob {self._name}") from fault
            self._be_patient(fault, since)

    def _tried(self, call: Any, *arguments: Any, unless: int = 404, **options: Any) -> tuple[Any, Exception | None]:
        """The API's answer, None where it is the status `unless`; and what went wrong."""
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        try:
            return call(*self._where, *arguments, _request_timeout=_ANSWER_SECONDS, **options), None
        except ApiException as error:
            return None, None if error.status == unless else error
        except (HTTPError, OSError) as error:
            return None, error

    def _be_patient(self, error: Exception, seen: float) -> None:
        if time.monotonic() - seen > self._patience:
            raise TrainJobError(
                f"the cluster's API has not answered for {self._patience:.0f} s: {error}",
                where=f"TrainJob {self._name}",
            ) from error
        _logger.warning("TrainJob %s: lost sight of it (%s); looking again.", self._name, type(error).__name__)
        time.sleep(min(2.0, self._patience / 10))


def _condition(job: dict[str, Any], kind: str) -> dict[str, Any] | None:
    """The job's condition of that kind, if it holds."""
    conditions = job.get("status", {}).get("conditions") or []
    return next((one for one in conditions if one["type"] == kind and one["status"] == "True"), None)


def _uids(job: dict[str, Any]) -> list[str]:
    """Of the pods that own it."""
    return [owner["uid"] for owner in job["metadata"].get("ownerReferences") or []]


def _deletion(found: dict[str, Any] | None) -> Any:
    """From the pods up, so that the job is there until they are gone; and only of the object that was looked at."""
    from kubernetes.client import V1DeleteOptions, V1Preconditions

    options = V1DeleteOptions(propagation_policy="Foreground")
    if found is not None:
        meta = found["metadata"]
        options.preconditions = V1Preconditions(uid=meta.get("uid"), resource_version=meta.get("resourceVersion"))
    return options


def _may_pass(error: Exception) -> bool:
    """Whether the API may answer otherwise in a moment; 409: the object has changed since it was looked at."""
    status = getattr(error, "status", None)
    return status is None or status >= 500 or status in (409, 410, 429)


@contextmanager
def _followed_log(cluster: Cluster, name: str) -> Iterator[None]:
    """Within the block, the first node's log is this step's log too."""
    ended = threading.Event()
    follower = threading.Thread(target=_follow, args=(cluster, name, ended), daemon=True)
    follower.start()
    try:
        yield
    finally:
        ended.set()
        follower.join(timeout=5.0)


def _follow(cluster: Cluster, name: str, ended: threading.Event) -> None:
    selector = f"{_JOBSET}={name},batch.kubernetes.io/job-completion-index=0"
    logs: dict[str, _NodeLog] = {}
    while True:
        is_last = ended.is_set()
        try:
            for pod in cluster.pods.list_namespaced_pod(
                cluster.namespace, label_selector=selector, _request_timeout=_ANSWER_SECONDS
            ).items:
                logs.setdefault(pod.metadata.name, _NodeLog(pod.metadata.name)).tell(cluster, pod.status.phase)
        except Exception as error:  # noqa: BLE001 (the log is a convenience: the job's end is told without it)
            _logger.debug("The log of %s: %s", name, error)
        if is_last:
            return
        ended.wait(1.0)


class _NodeLog:
    """A pod's log, each line told once, however often its stream ends: a container starts late, or again."""

    def __init__(self, pod: str) -> None:
        self._pod = pod
        self._last = b""
        self._is_told = False

    def tell(self, cluster: Cluster, phase: str) -> None:
        """Tells what has come since the last time, and what comes, until the stream ends."""
        if self._is_told or phase not in ("Running", "Succeeded", "Failed"):
            return
        lines = cluster.pods.read_namespaced_pod_log(
            self._pod,
            cluster.namespace,
            container=NODE,
            follow=True,
            timestamps=True,
            since_seconds=self._since(),
            _preload_content=False,
            _request_timeout=(_ANSWER_SECONDS, _SILENT_SECONDS),
        )
        for line in lines:
            stamp, _, text = line.partition(b" ")
            if not line.endswith(b"\n") or not _STAMP.match(stamp) or stamp <= self._last:
                continue  # cut in its middle, so that it comes again; or told before
            self._last = stamp
            _logger.info("%s: %s", self._pod, text.decode("utf-8", "replace").rstrip())
        self._is_told = phase != "Running"

    def _since(self) -> int | None:
        """How far back to ask: a little further than what was told, by a clock that may differ."""
        if not self._last:
            return None
        told = datetime.fromisoformat(self._last.decode()[:19]).replace(tzinfo=UTC)
        return max(1, int((datetime.now(UTC) - told).total_seconds()) + _CLOCKS_DIFFER_SECONDS)


def _refused(error: Any, what: str) -> TrainJobError:
    said = re.search(r'"message":\s*"((?:[^"\\]|\\.)*)"', str(error.body or ""))
    hints = {
        401: "The pod's token is not accepted: does it have one?",
        403: "Give the step's account the Role plumbline-trainjobs (k8s/base/rbac.yaml).",
        404: "Is Kubeflow Trainer 2.2 or newer installed?",
        422: "The installed Trainer knows another version of the API; 2.2 or newer is needed.",
    }
    message = said[1] if said else error.reason
    hint = hints.get(error.status or 0, "Try again; `kubectl get events` may say more.")
    if "must be created before the TrainJob" in str(message):  # Trainer's webhook: 403 or 422
        hint = "The runtime is missing: take k8s/components/trainer into your overlay, or name another in `runtime`."
    return TrainJobError(f"the cluster refused to {what}: {error.status} {message}.", where="trainjob", hint=hint)
