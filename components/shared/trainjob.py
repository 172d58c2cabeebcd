"""What a TrainJob of Kubeflow Trainer is: a training step's own entry point, on several nodes.

The settings, the object that they make, and what of the step's environment its nodes get; `trainjob_run` makes it and
follows it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

from pydantic import Field, model_validator

from components.shared.errors import InputError
from components.shared.files import digest_of
from components.shared.settings import StrictModel

__all__ = [
    "GRACE_SECONDS",
    "GROUP",
    "NODE",
    "VERSION",
    "Mount",
    "Toleration",
    "TrainJobSettings",
    "scratch_name",
    "step_environment",
    "step_pod",
    "train_job",
]

GROUP, VERSION = "trainer.kubeflow.org", "v1alpha1"
NODE = "node"
"""Name of the trainer's replicated job and of its container in Kubeflow Trainer's runtimes."""
GRACE_SECONDS = 60
_MANAGER = "plumbline.dev/step"
_SHARED_MEMORY = "/dev/shm"
_PRIORITY_LABEL = "plumbline.dev/priority-class"
"""No patch can set a pod's priority class; an admission policy of the cluster may read it from this label."""
_PASSED_ON = re.compile(r"^(MLFLOW|PLUMBLINE|AWS|HF|NCCL|GLOO)_")
_NOT_BY_VALUE = re.compile(r"PASSWORD|SECRET|TOKEN|KEY|COOKIE|DSN|DATABASE_URL|WEBHOOK|USERNAME")
_WITH_LOGIN = re.compile(r"://[^/@]*@")

_SECRETS = {
    "MLFLOW_TRACKING_USERNAME": "plumbline-mlflow",
    "MLFLOW_TRACKING_PASSWORD": "plumbline-mlflow",
    "AWS_ACCESS_KEY_ID": "plumbline-object-store",
    "AWS_SECRET_ACCESS_KEY": "plumbline-object-store",
}


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


class Mount(StrictModel):
    """A volume claim that pods share."""

    claim: str = Field(pattern=r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$")
    path: str = Field(pattern="^/")
    sub_path: str = ""


class TrainJobSettings(StrictModel):
    """Training on several nodes by Kubeflow Trainer; absent: in the step's own pod.

    What the profile of the environment says of training steps (image, queue, priority, node selector, tolerations, pull
    secrets, scratch folders, shared memory, claims, names of secrets and variables, account of the nodes) holds for the
    nodes too where nothing is said here.

    Attributes:
        runtime: Of torch: what a node is beyond what is said here; k8s/components/trainer has this one.
        runtime_kind: TrainingRuntime, of the namespace, or ClusterTrainingRuntime, as those that come with Trainer are.
        nodes: Pods.
        processes_per_node: Processes a pod, one a GPU.
        claim: Volume claim (ReadWriteMany) that the step and every node mount.
        folder: Where they mount it; inputs, checkpoints and results of the training lie below it.
        sub_path: Folder of the claim that they mount; empty: all of it.
        mounts: Further claims of the nodes, e.g. one of base models.
        service_account: Account of the nodes; empty: that of the runtime.
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
        variables: Names of variables of the step given by value, beside `MLFLOW_*` and its like; no secrets.
        secrets: By variable, the Secret that has a key of this name; a node that finds none goes without.
        grace_seconds: From a node's SIGTERM to its SIGKILL; its processes have all but 30 to end their step and save.
        timeout_seconds: A job that runs longer is ended.
    """

    runtime: str = Field(default="plumbline-torch", min_length=1)
    runtime_kind: Literal["TrainingRuntime", "ClusterTrainingRuntime"] = "TrainingRuntime"
    nodes: int = Field(ge=1)
    processes_per_node: int = Field(default=1, ge=1)
    claim: str = "plumbline-models"
    folder: str = Field(default="/models", pattern="^/")
    sub_path: str = ""
    mounts: list[Mount] = Field(default=[])
    service_account: str = ""
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
    variables: list[str] = Field(default=[])
    secrets: dict[str, str] = Field(default=_SECRETS)
    grace_seconds: int = Field(default=GRACE_SECONDS, ge=GRACE_SECONDS)
    timeout_seconds: int = Field(default=172_800, ge=60)

    @model_validator(mode="after")
    def _paths_differ(self) -> TrainJobSettings:
        paths = [self.folder, _SHARED_MEMORY, *self.scratch, *(mount.path for mount in self.mounts)]
        paths = [path.rstrip("/") for path in paths]
        if twice := sorted({path for path in paths if paths.count(path) > 1}):
            raise ValueError(
                f"{', '.join(twice)} would be mounted twice: folder, scratch, mounts and /dev/shm must differ"
            )
        return self


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
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "TrainJob",
        "metadata": metadata,
        "spec": {
            "runtimeRef": {"apiGroup": GROUP, "kind": settings.runtime_kind, "name": settings.runtime},
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


def step_environment(named: Collection[str] = ()) -> dict[str, str]:
    """What a node needs of the step's environment: where the services are. Credentials come from the Secrets.

    Args:
        named: Variables that are known to hold no credential; of others the name decides.
    """
    known = {k: v for k, v in os.environ.items() if _PASSED_ON.search(k) and not _NOT_BY_VALUE.search(k)}
    known |= {name: os.environ[name] for name in named if name in os.environ}
    return {name: value for name, value in known.items() if not _WITH_LOGIN.search(value)}


def step_pod() -> tuple[str, str] | None:
    """Name and uid of the step's pod, as KFP tells them; None elsewhere."""
    name, uid = os.environ.get("KFP_POD_NAME"), os.environ.get("KFP_POD_UID")
    return (name, uid) if name and uid else None


def _variables(environment: Mapping[str, str], secrets: Mapping[str, str]) -> list[dict[str, Any]]:
    by_value: list[dict[str, Any]] = [
        {"name": key, "value": value} for key, value in sorted(environment.items()) if key not in secrets
    ]
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
        "terminationGracePeriodSeconds": settings.grace_seconds,
        "volumes": _volumes(settings),
        "containers": [
            {
                "name": NODE,
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "capabilities": {"drop": ["ALL"]},
                    "readOnlyRootFilesystem": True,
                },
                "volumeMounts": _volume_mounts(settings),
            }
        ],
    }
    if settings.service_account:
        pod["serviceAccountName"] = settings.service_account
    if settings.node_selector:
        pod["nodeSelector"] = settings.node_selector
    if settings.tolerations:
        pod["tolerations"] = [one.model_dump(exclude_none=True) for one in settings.tolerations]
    if settings.pull_secrets:
        pod["imagePullSecrets"] = [{"name": name} for name in settings.pull_secrets]
    template: dict[str, Any] = {"spec": pod}
    if settings.priority:
        template["metadata"] = {"labels": {_PRIORITY_LABEL: settings.priority}}
    replicated = {"name": NODE, "template": {"spec": {"template": template}}}
    return {"manager": _MANAGER, "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": [replicated]}}}}


def _volumes(settings: TrainJobSettings) -> list[dict[str, Any]]:
    memory = {"medium": "Memory"} | ({"sizeLimit": settings.shared_memory} if settings.shared_memory else {})
    claims = [
        {"name": name, "persistentVolumeClaim": {"claimName": claim}} for claim, name in _claim_names(settings).items()
    ]
    scratch = [
        {"name": _node_scratch(path), "emptyDir": {"sizeLimit": size}} for path, size in settings.scratch.items()
    ]
    return [*claims, {"name": "plumbline-shm", "emptyDir": memory}, *scratch]


def _volume_mounts(settings: TrainJobSettings) -> list[dict[str, Any]]:
    names = _claim_names(settings)
    shared = Mount(claim=settings.claim, path=settings.folder, sub_path=settings.sub_path)
    claims: list[dict[str, Any]] = [
        {"name": names[one.claim], "mountPath": one.path} | ({"subPath": one.sub_path} if one.sub_path else {})
        for one in (shared, *settings.mounts)
    ]
    scratch = [{"name": _node_scratch(path), "mountPath": path} for path in settings.scratch]
    return [*claims, {"name": "plumbline-shm", "mountPath": _SHARED_MEMORY}, *scratch]


def _claim_names(settings: TrainJobSettings) -> dict[str, str]:
    """A volume for each claim, however often it is mounted."""
    further = dict.fromkeys(one.claim for one in settings.mounts if one.claim != settings.claim)
    return {settings.claim: "plumbline-shared"} | {
        claim: f"plumbline-claim-{number}" for number, claim in enumerate(further)
    }


def _node_scratch(path: str) -> str:
    return f"plumbline-{scratch_name(path)}"


def scratch_name(path: str) -> str:
    """Name of the volume for a scratch folder, as Kubernetes takes it; two folders never have the same."""
    slug = re.sub("[^a-z0-9]+", "-", path.strip("/").lower()).strip("-")
    if f"/{slug.replace('-', '/')}" == path.rstrip("/") and len(slug) < 40:
        return f"scratch-{slug}"
    return f"scratch-{slug[:30].strip('-')}-{digest_of(path.rstrip('/'))[:8]}"
