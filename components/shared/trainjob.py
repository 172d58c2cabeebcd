"""A training step hands itself to Kubeflow Trainer: the same entry point, on several nodes.

    create the TrainJob > follow its log > wait for its end > its files are where it wrote them, in a shared folder

The step's pod stays and watches, so that the run ends as the training ends. SIGTERM deletes the TrainJob; should the
pod be deleted, the owner reference makes Kubernetes delete the job too. The API is the cluster's own, by the account of
the pod; `k8s/base/rbac.yaml` gives that account what is used here and no more.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Protocol

from pydantic import Field, model_validator

from components.shared.errors import InputError, PlumblineError
from components.shared.settings import StrictModel
from components.shared.termination import graceful_termination

__all__ = [
    "Cluster",
    "Toleration",
    "TrainJobError",
    "TrainJobSettings",
    "run_train_job",
    "step_environment",
    "step_pod",
    "train_job",
]

_logger = logging.getLogger(__name__)

_GROUP, _VERSION, _PLURAL = "trainer.kubeflow.org", "v1alpha1", "trainjobs"
_MANAGER = "plumbline.dev/step"
_CONTAINER = "node"
"""Name of the trainer's replicated job and of its container in Kubeflow Trainer's runtimes."""
_PRIORITY_LABEL = "plumbline.dev/priority-class"
"""No patch can set a pod's priority class; an admission policy of the cluster may read it from this label."""
_GRACE_SECONDS = 60
"""From a pod's SIGTERM to its SIGKILL; of these, torch's launcher gives its processes 30 to save."""
_WATCH_SECONDS = 60
_ANSWER_SECONDS = 20.0
"""A server that takes a connection and says nothing is away."""
_DELETE_SECONDS = 20.0
"""Less than what a pod that is told to end is given."""
_PATIENCE_SECONDS = 300.0
"""How long the API server may be away before the step gives up following; the job itself goes on and is deleted."""
_PASSED_ON = re.compile(r"^(MLFLOW|PLUMBLINE|AWS|HF|NCCL|GLOO)_")
_NOT_BY_VALUE = re.compile(r"PASSWORD|SECRET|TOKEN|KEY|COOKIE|DSN|DATABASE_URL|WEBHOOK|USERNAME")
_WITH_LOGIN = re.compile(r"://[^/@]*@")


_SECRETS = {
    "MLFLOW_TRACKING_USERNAME": "plumbline-mlflow",
    "MLFLOW_TRACKING_PASSWORD": "plumbline-mlflow",
    "AWS_ACCESS_KEY_ID": "plumbline-object-store",
    "AWS_SECRET_ACCESS_KEY": "plumbline-object-store",
}


class TrainJobError(PlumblineError):
    """The TrainJob could not be made, failed, or was lost sight of."""


class Toleration(StrictModel):
    """A taint that a pod bears, as in Kubernetes."""

    key: str | None = None
    operator: Literal["Equal", "Exists"] = "Equal"
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None

    @model_validator(mode="after")
    def _operator_fits(self) -> Toleration:
        if self.operator == "Exists" and self.value is not None:
            raise ValueError("operator Exists takes no value")
        if self.operator == "Equal" and not self.key:
            raise ValueError("operator Equal needs a key")
        return self


class TrainJobSettings(StrictModel):
    """Training on several nodes by Kubeflow Trainer; absent: in the step's own pod.

    What the profile of the environment says of training steps (image, queue, priority, node selector, tolerations, pull
    secrets, scratch folders, shared memory) holds for the nodes too where nothing is said here.

    Attributes:
        runtime: Of torch: what a node is beyond what is said here; k8s/components/trainer has this one.
        runtime_kind: TrainingRuntime, of the namespace, or ClusterTrainingRuntime, as those that come with Trainer are.
        nodes: Pods.
        processes_per_node: Processes a pod, one a GPU.
        claim: Volume claim (ReadWriteMany) that the step and every node mount.
        folder: Where they mount it; inputs, checkpoints and results of the training lie below it.
        image: Image of the nodes; empty: that of the training steps.
        gpus_per_node: `nvidia.com/gpu` of a node; 0 for none.
        cpu: CPU of a node, requested and limited.
        memory: Memory of a node, requested and limited.
        queue: Kueue LocalQueue that admits the job; empty for none.
        priority: Priority class, for Kueue and for the pods; empty for none.
        node_selector: Labels that a node must have.
        tolerations: Taints that the pods bear.
        pull_secrets: Secrets with the registry's login.
        scratch: Writable folders (emptyDir) and their sizes; all else of the image is read-only.
        shared_memory: Size of an in-memory /dev/shm; empty: up to half of the node's memory.
        secrets: By variable, the Secret that has a key of this name; a node that finds none goes without.
        timeout_seconds: A job that runs longer is ended.
    """

    runtime: str = Field(default="plumbline-torch", min_length=1)
    runtime_kind: Literal["TrainingRuntime", "ClusterTrainingRuntime"] = "TrainingRuntime"
    nodes: int = Field(ge=1)
    processes_per_node: int = Field(default=1, ge=1)
    claim: str = "plumbline-models"
    folder: str = Field(default="/models", pattern="^/")
    image: str = ""
    gpus_per_node: int = Field(default=0, ge=0)
    cpu: str = "8"
    memory: str = "64Gi"
    queue: str = ""
    priority: str = ""
    node_selector: dict[str, str] = Field(default={})
    tolerations: list[Toleration] = Field(default=[])
    pull_secrets: list[str] = Field(default=[])
    scratch: dict[str, str] = Field(default={"/tmp": "20Gi"}, min_length=1)
    shared_memory: str = ""
    secrets: dict[str, str] = Field(default=_SECRETS)
    timeout_seconds: int = Field(default=172_800, ge=60)


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


def train_job(
    name: str,
    settings: TrainJobSettings,
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    owner: tuple[str, str] | None = None,
) -> dict[str, Any]:
    """The TrainJob object.

    Args:
        name: Of the job.
        settings: Where and how large.
        command: What each node runs; Trainer sets torch's `PET_` variables, which `torchrun` reads.
        environment: Variables of each node.
        owner: (name, uid) of the step's pod; with it the job goes when the pod goes.

    Raises:
        InputError: No image is named.
    """
    if not settings.image:
        raise InputError(
            "no image is named for the nodes.",
            where="trainjob.image",
            hint="Give one, or train.image in the profile of the environment.",
        )
    metadata: dict[str, Any] = {"name": name, "labels": {"app.kubernetes.io/part-of": "plumbline"}}
    if settings.queue:
        metadata["labels"]["kueue.x-k8s.io/queue-name"] = settings.queue
    if settings.priority:
        metadata["labels"]["kueue.x-k8s.io/priority-class"] = settings.priority
    if owner is not None:
        reference = {"apiVersion": "v1", "kind": "Pod", "name": owner[0], "uid": owner[1]}
        metadata["ownerReferences"] = [reference]
    amounts = {"cpu": settings.cpu, "memory": settings.memory}
    if settings.gpus_per_node:
        amounts["nvidia.com/gpu"] = str(settings.gpus_per_node)
    return {
        "apiVersion": f"{_GROUP}/{_VERSION}",
        "kind": "TrainJob",
        "metadata": metadata,
        "spec": {
            "runtimeRef": {"apiGroup": _GROUP, "kind": settings.runtime_kind, "name": settings.runtime},
            "activeDeadlineSeconds": settings.timeout_seconds,
            "trainer": {
                "image": settings.image,
                "command": list(command),
                "numNodes": settings.nodes,
                "numProcPerNode": settings.processes_per_node,
                "resourcesPerNode": {"requests": amounts, "limits": amounts},
                "env": _variables(environment, settings.secrets),
            },
            "runtimePatches": [_patch(settings)],
        },
    }


def run_train_job(job: dict[str, Any], *, cluster: Cluster | None = None, patience: float = _PATIENCE_SECONDS) -> None:
    """Creates the job, follows it to its end, and takes it away.

    Args:
        job: See `train_job`. One of this name that is there already is followed: the answer to its creation was lost.
        cluster: The cluster's API; that of this pod if None.
        patience: Seconds that the API server may be away.

    Raises:
        TrainJobError: The API refused, the job failed, or it was deleted by somebody else.
        SystemExit: 143 after SIGTERM, once the job is deleted.
    """
    cluster = cluster or _InCluster()
    name = job["metadata"]["name"]
    with graceful_termination() as termination:
        try:
            _create(cluster, job, patience)
            with _followed_log(cluster, name):
                _await_end(cluster, name, patience)
        finally:
            termination.deferred = True  # a second signal must not keep the job from being deleted
            _delete(cluster, name)
            if termination.requested:
                termination.exit()


def step_environment() -> dict[str, str]:
    """What a node needs of the step's environment: where the services are. Credentials come from the Secrets."""
    known = {key: value for key, value in os.environ.items() if _PASSED_ON.search(key)}
    return {k: v for k, v in known.items() if not (_NOT_BY_VALUE.search(k) or _WITH_LOGIN.search(v))}


def step_pod() -> tuple[str, str] | None:
    """Name and uid of the step's pod, as KFP tells them; None elsewhere."""
    name, uid = os.environ.get("KFP_POD_NAME"), os.environ.get("KFP_POD_UID")
    return (name, uid) if name and uid else None


def _variables(environment: Mapping[str, str], secrets: Mapping[str, str]) -> list[dict[str, Any]]:
    by_value: list[dict[str, Any]] = [{"name": key, "value": value} for key, value in sorted(environment.items())]
    references = {key: {"name": name, "key": key, "optional": True} for key, name in sorted(secrets.items())}
    return by_value + [{"name": key, "valueFrom": {"secretKeyRef": one}} for key, one in references.items()]


def _patch(settings: TrainJobSettings) -> dict[str, Any]:
    """What the runtime's pods get, as far as Trainer lets a patch say it: docs/trainjob.md has what it does not."""
    pod: dict[str, Any] = {
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 65532,
            "runAsGroup": 65532,
            "fsGroup": 65532,
            "fsGroupChangePolicy": "OnRootMismatch",  # not file by file, on a claim full of models
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "terminationGracePeriodSeconds": _GRACE_SECONDS,
        "volumes": _volumes(settings),
        "containers": [
            {
                "name": _CONTAINER,
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "capabilities": {"drop": ["ALL"]},
                    "readOnlyRootFilesystem": True,
                },
                "volumeMounts": [
                    {"name": "plumbline-shared", "mountPath": settings.folder},
                    {"name": "plumbline-shm", "mountPath": "/dev/shm"},
                    *({"name": _scratch_name(path), "mountPath": path} for path in settings.scratch),
                ],
            }
        ],
    }
    if settings.node_selector:
        pod["nodeSelector"] = settings.node_selector
    if settings.tolerations:
        pod["tolerations"] = [one.model_dump(exclude_none=True) for one in settings.tolerations]
    if settings.pull_secrets:
        pod["imagePullSecrets"] = [{"name": name} for name in settings.pull_secrets]
    template: dict[str, Any] = {"spec": pod}
    if settings.priority:
        template["metadata"] = {"labels": {_PRIORITY_LABEL: settings.priority}}
    replicated = {"name": _CONTAINER, "template": {"spec": {"template": template}}}
    return {"manager": _MANAGER, "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": [replicated]}}}}


def _volumes(settings: TrainJobSettings) -> list[dict[str, Any]]:
    memory = {"medium": "Memory"} | ({"sizeLimit": settings.shared_memory} if settings.shared_memory else {})
    return [
        {"name": "plumbline-shared", "persistentVolumeClaim": {"claimName": settings.claim}},
        {"name": "plumbline-shm", "emptyDir": memory},
        *({"name": _scratch_name(path), "emptyDir": {"sizeLimit": size}} for path, size in settings.scratch.items()),
    ]


def _scratch_name(path: str) -> str:
    return f"plumbline-scratch{re.sub('[^a-z0-9]+', '-', path.rstrip('/').lower())}"


def _create(cluster: Cluster, job: dict[str, Any], patience: float) -> None:
    """Creates the job; where the answer is lost, the job may be there when it is asked for again."""
    from kubernetes.client import ApiException
    from urllib3.exceptions import HTTPError

    name, begun = job["metadata"]["name"], time.monotonic()
    where = (_GROUP, _VERSION, cluster.namespace, _PLURAL)
    while True:
        try:
            cluster.objects.create_namespaced_custom_object(*where, job, _request_timeout=_ANSWER_SECONDS)
            return
        except ApiException as error:
            if error.status == 409:
                _logger.warning("TrainJob %s is there already; it is followed.", name)
                return
            if not _may_pass(error):
                raise _refused(error, f"create TrainJob {name}") from error
            _be_patient(error, name, begun, patience)
        except (HTTPError, OSError) as error:
            _be_patient(error, name, begun, patience)


def _may_pass(error: Any) -> bool:
    """Whether the API may answer otherwise in a moment."""
    return error.status is None or error.status >= 500 or error.status in (410, 429)


def _await_end(cluster: Cluster, name: str, patience: float) -> None:
    """Returns when the job is complete; a watch that is cut is taken up again."""
    from kubernetes.client import ApiException
    from urllib3.exceptions import HTTPError

    seen = time.monotonic()
    while True:
        try:
            where = (_GROUP, _VERSION, cluster.namespace, _PLURAL)
            found = cluster.objects.get_namespaced_custom_object(*where, name, _request_timeout=_ANSWER_SECONDS)
            seen = time.monotonic()
            if _has_ended(found, name):
                return
            for changed in _changes(cluster, found, name):
                seen = time.monotonic()
                if _has_ended(changed, name):
                    return
        except ApiException as error:
            if error.status == 404:
                raise TrainJobError(
                    "was deleted before it ended.", where=f"TrainJob {name}", hint="Run again: it resumes."
                ) from error
            if not _may_pass(error):
                raise _refused(error, f"watch TrainJob {name}") from error
            _be_patient(error, name, seen, patience)
        except (HTTPError, OSError, ValueError) as error:  # cut, or cut in the middle of a line
            _be_patient(error, name, seen, patience)


def _changes(cluster: Cluster, found: dict[str, Any], name: str) -> Iterator[dict[str, Any]]:
    from kubernetes.watch import Watch

    arguments = (_GROUP, _VERSION, cluster.namespace, _PLURAL)
    version = found.get("metadata", {}).get("resourceVersion")
    events: Any = Watch().stream(
        cluster.objects.list_namespaced_custom_object,
        *arguments,
        field_selector=f"metadata.name={name}",
        resource_version=version,
        timeout_seconds=_WATCH_SECONDS,
        _request_timeout=_WATCH_SECONDS + _ANSWER_SECONDS,
    )
    for event in events:
        if event["type"] == "DELETED":
            return  # the next look finds nothing, and says so
        yield event["object"]


def _has_ended(job: dict[str, Any], name: str) -> bool:
    """Whether the job is complete.

    Raises:
        TrainJobError: It failed.
    """
    for condition in job.get("status", {}).get("conditions") or []:
        if condition["status"] != "True":
            continue
        if condition["type"] == "Complete":
            return True
        if condition["type"] == "Failed":
            raise TrainJobError(
                f"failed ({condition.get('reason', 'no reason')}): {condition.get('message', '')}",
                where=f"TrainJob {name}",
                hint="The log above says why. Run again: training goes on from the last checkpoint.",
            )
    return False


def _be_patient(error: Exception, name: str, seen: float, patience: float) -> None:
    if time.monotonic() - seen > patience:
        raise TrainJobError(
            f"the cluster's API has not answered for {patience:.0f} s: {error}", where=f"TrainJob {name}"
        ) from error
    _logger.warning("TrainJob %s: lost sight of it (%s); looking again.", name, type(error).__name__)
    time.sleep(min(2.0, patience / 10))


def _delete(cluster: Cluster, name: str) -> None:
    """Deletes the job, trying for a while: one that is left trains on, and its checkpoints are nobody else's."""
    from kubernetes.client import ApiException
    from urllib3.exceptions import HTTPError

    where = (_GROUP, _VERSION, cluster.namespace, _PLURAL)
    until = time.monotonic() + _DELETE_SECONDS
    while True:
        try:
            cluster.objects.delete_namespaced_custom_object(*where, name, _request_timeout=_ANSWER_SECONDS)
            return
        except ApiException as error:
            if error.status == 404:
                return
            fault, again = f"{error.status} {error.reason}", _may_pass(error)
        except (HTTPError, OSError) as error:
            fault, again = str(error), True
        if not again or time.monotonic() > until:
            _logger.error(
                "TrainJob %s could not be deleted: %s. Delete it: kubectl delete trainjob %s", name, fault, name
            )
            return
        time.sleep(1.0)


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
    selector = f"jobset.sigs.k8s.io/jobset-name={name},batch.kubernetes.io/job-completion-index=0"
    followed: set[str] = set()
    while True:
        try:
            for pod in cluster.pods.list_namespaced_pod(
                cluster.namespace, label_selector=selector, _request_timeout=_ANSWER_SECONDS
            ).items:
                if pod.metadata.name not in followed and pod.status.phase in ("Running", "Succeeded", "Failed"):
                    _copy_log(cluster, pod.metadata.name)
                    followed.add(pod.metadata.name)
        except Exception as error:  # noqa: BLE001 (the log is a convenience: the job's end is told without it)
            _logger.debug("The log of %s: %s", name, error)
        if ended.wait(1.0):
            return


def _copy_log(cluster: Cluster, pod: str) -> None:
    log = cluster.pods.read_namespaced_pod_log(
        pod, cluster.namespace, container=_CONTAINER, follow=True, _preload_content=False
    )
    for line in log:
        _logger.info("%s: %s", pod, line.decode("utf-8", "replace").rstrip())


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
