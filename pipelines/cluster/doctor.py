"""What a cluster has and lacks for Plumbline: one line a check, with what to do about it.

Every check runs, whatever others say, so that a person mends everything at once. `unknown` is not a pass: it says what
could not be looked at from here, and why. The first step of every run (`prerequisites`) looks at the services again,
from inside the cluster.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

from components.shared.errors import InputError, PlumblineError
from components.shared.trainjob import GROUP, VERSION, TrainJobSettings
from pipelines.cluster.kube import Kube, KubeError
from pipelines.placement import EnvironmentSource, Profile, StepResources
from pipelines.settings import RunSettings

__all__ = ["Line", "examine", "quantity"]

_QUEUES = ("kueue.x-k8s.io", "v1beta2", "localqueues")
"""As in k8s/base/queue.yaml: Kueue serves it since 0.15, and nothing older since 0.20."""
_DEFAULT_CLASS = "storageclass.kubernetes.io/is-default-class"
_SUFFIXES = {"n": Decimal("1e-9"), "u": Decimal("1e-6"), "m": Decimal("0.001"), "k": Decimal(10**3), "": Decimal(1)}
_SUFFIXES |= {letter: Decimal(1000 ** (number + 2)) for number, letter in enumerate("MGTPE")}
_SUFFIXES |= {f"{letter}i": Decimal(1024 ** (number + 1)) for number, letter in enumerate("KMGTPE")}
_QUANTITY = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)([a-zA-Z]*)")


@dataclass(frozen=True)
class Line:
    """What a check found.

    Attributes:
        check: What was looked at.
        result: `unknown`: it could not be looked at from here.
        found: What is there.
        fix: What to do; empty where nothing is to be done.
    """

    check: str
    result: Literal["pass", "fail", "unknown"]
    found: str
    fix: str = ""


def examine(
    profile: Profile,
    *,
    connect: Callable[[], Any],
    context: str | None = None,
    settings: RunSettings | None = None,
    kube: Kube | None = None,
) -> list[Line]:
    """Runs every check.

    Args:
        profile: What the environment shall have.
        connect: Makes the connection to Kubeflow Pipelines.
        context: Of the kubeconfig.
        settings: A run, whose wishes are added to the profile's.
        kube: A connection to Kubernetes; None: by kubeconfig.
    """
    return [
        *_kfp(connect, profile.namespace),
        *_kubernetes(profile, context, settings, kube),
        *_images(profile, settings),
        _service("object storage", "PLUMBLINE_CHECKPOINTS", _check_bucket),
        _service("MLflow", "MLFLOW_TRACKING_URI", _check_mlflow),
        _service("evidence database", "PLUMBLINE_DATABASE_URL", _check_database),
        _service("ledger anchor", "PLUMBLINE_LEDGER_ANCHOR", _check_anchor),
    ]


def quantity(text: str) -> Decimal:
    """A Kubernetes quantity as a number: `250m` is 0.25, `1Gi` is 1073741824."""
    match = _QUANTITY.fullmatch(text)
    if match is None or match[2] not in _SUFFIXES:
        raise InputError(f"{text!r} is no Kubernetes quantity.", hint="E.g. 500m, 4, 16Gi.")
    return Decimal(match[1]) * _SUFFIXES[match[2]]


# --- Kubeflow Pipelines ----------------------------------------------------------------------------------------------


def _kfp(connect: Callable[[], Any], namespace: str | None) -> Iterator[Line]:
    try:
        kfp = connect()
        health = kfp.read(kfp.health.healthz_service_get_healthz, what="health")
        kfp.settle_namespace(namespace)
    except PlumblineError as error:
        yield _failed("Kubeflow Pipelines", error)
        return
    several = bool(health.multi_user)
    yield Line("Kubeflow Pipelines", "pass", f"answers, for {'several users' if several else 'one user'}")
    if several and not kfp.connection.namespace:
        fix = "Give --namespace, or name one in the profile."
        yield Line("your namespace", "fail", "the server has several users, and the profile names none", fix)
        return
    try:
        kfp.read(kfp.runs.run_service_list_runs, what="list runs", page_size=1, **kfp.scope())
        yield Line("right to list runs", "pass", "given")
    except PlumblineError as error:
        yield _failed("right to list runs", error)


# --- Kubernetes ------------------------------------------------------------------------------------------------------


def _kubernetes(
    profile: Profile, context: str | None, settings: RunSettings | None, kube: Kube | None
) -> Iterator[Line]:
    try:
        kube = kube or Kube.connect(context, profile.namespace)
        kube.ask(kube.core.read_namespace, kube.namespace, what=f"namespace {kube.namespace}")
    except KubeError as error:
        if error.status == 404 and kube:
            fix = "kubectl apply -k k8s/overlays/<dev or prod> makes it and what belongs in it."
            yield Line("namespace", "fail", f"{kube.namespace} is not there", fix)
        else:
            yield _failed("Kubernetes", error)
        return
    except PlumblineError as error:
        yield _failed("Kubernetes", error)
        return
    yield Line("namespace", "pass", kube.namespace)
    accounts = profile.service_accounts
    for name in dict.fromkeys(filter(None, (accounts.training, accounts.promotion))):
        yield _exists(kube, f"service account {name}", kube.core.read_namespaced_service_account, name)
    for source in profile.config_maps:
        yield _has_keys(kube, "ConfigMap", kube.core.read_namespaced_config_map, source)
    for source in profile.secrets:
        yield _has_keys(kube, "Secret", kube.core.read_namespaced_secret, source)
    for name in profile.pull_secrets:
        yield _exists(kube, f"Secret {name} (registry)", kube.core.read_namespaced_secret, name)
    for name in dict.fromkeys(mount.claim for mount in profile.mounts):
        yield _bound(kube, name)
    yield _storage_class(kube, profile.storage_class)
    train = profile.resources("train", settings.execution.train if settings else StepResources()).resources
    if train.queue:
        yield _queue(kube, train.queue)
    if train.priority:
        call = kube.scheduling.read_priority_class
        yield _exists(kube, f"priority class {train.priority}", call, train.priority, namespaced=False)
    for job in _train_jobs(settings):
        yield _runtime(kube, job)
    yield _nodes(kube, train)
    yield from _quota(kube, train)


def _exists(kube: Kube, check: str, call: Callable[..., Any], name: str, *, namespaced: bool = True) -> Line:
    place = (kube.namespace,) if namespaced else ()
    try:
        kube.ask(call, name, *place, what=check)
    except KubeError as error:
        return _absent(check, error, "It is in k8s/: kubectl apply -k k8s/overlays/<dev or prod>.")
    return Line(check, "pass", "there")


def _has_keys(kube: Kube, kind: str, call: Callable[..., Any], source: EnvironmentSource) -> Line:
    check = f"{kind} {source.name}"
    try:
        there = kube.ask(call, source.name, kube.namespace, what=check).data or {}
    except KubeError as error:
        if error.status == 404 and source.optional:
            return Line(check, "pass", f"not there; optional ({', '.join(source.variables)})")
        keys = ", ".join(source.variables)
        return _absent(check, error, f"Make it with the keys {keys}: docs/cluster.md has the commands.")
    missing = [name for name in source.variables if name not in there]  # one that is empty may be meant
    if missing and not source.optional:
        return Line(check, "fail", f"lacks {', '.join(missing)}", f"Add the key to the {kind}.")
    return Line(check, "pass", f"has {', '.join(name for name in source.variables if name not in missing) or 'no key'}")


def _bound(kube: Kube, name: str) -> Line:
    check = f"volume claim {name}"
    try:
        claim = kube.ask(kube.core.read_namespaced_persistent_volume_claim, name, kube.namespace, what=check)
    except KubeError as error:
        return _absent(check, error, "It is in k8s/: kubectl apply -k k8s/overlays/<dev or prod>.")
    if claim.status.phase == "Bound":
        return Line(check, "pass", f"bound, {', '.join(claim.spec.access_modes or [])}")
    if claim.status.phase == "Pending":
        fix = "kubectl describe pvc says why; a class that waits for its first consumer binds with the first run."
        return Line(check, "unknown", "pending", fix)
    return Line(check, "fail", f"{claim.status.phase}", "The volume behind it is gone: restore it, or make it anew.")


def _storage_class(kube: Kube, name: str | None) -> Line:
    check = "storage class"
    try:
        classes = kube.ask(kube.storage.list_storage_class, what=check).items
    except KubeError as error:
        return _absent(check, error, "")
    names = [one.metadata.name for one in classes]
    default = [one.metadata.name for one in classes if (one.metadata.annotations or {}).get(_DEFAULT_CLASS) == "true"]
    if name and name not in names:
        return Line(check, "fail", f"no {name}; there are {', '.join(names) or 'none'}", "Set storage_class.")
    if not name and not default:
        return Line(check, "fail", "none is the default", "Mark one as default, or set storage_class of the profile.")
    return Line(check, "pass", name or default[0])


def _queue(kube: Kube, name: str) -> Line:
    check = f"Kueue queue {name}"
    group, version, plural = _QUEUES
    try:
        call = kube.custom.get_namespaced_custom_object
        kube.ask(call, group, version, kube.namespace, plural, name, what=check)
    except KubeError as error:
        fix = "Install Kueue and apply k8s/, or remove `queue` from the profile: a pod of no queue would wait for ever."
        return _absent(check, error, fix)
    return Line(check, "pass", "there")


def _train_jobs(settings: RunSettings | None) -> list[TrainJobSettings]:
    """Of the run's stages that hand themselves to Kubeflow Trainer; one for each runtime."""
    jobs = [stage.trainjob for stage in (settings.sft, settings.reward_model, settings.ppo)] if settings else []
    return list({(job.runtime_kind, job.runtime): job for job in jobs if job}.values())


def _runtime(kube: Kube, job: TrainJobSettings) -> Line:
    check = f"{job.runtime_kind} {job.runtime}"
    plural = f"{job.runtime_kind.lower()}s"
    try:
        if job.runtime_kind == "TrainingRuntime":
            call = kube.custom.get_namespaced_custom_object
            kube.ask(call, GROUP, VERSION, kube.namespace, plural, job.runtime, what=check)
        else:
            kube.ask(kube.custom.get_cluster_custom_object, GROUP, VERSION, plural, job.runtime, what=check)
    except KubeError as error:
        fix = (
            "Install Kubeflow Trainer 2, add k8s/components/trainer to the overlay, or name another `trainjob.runtime`."
        )
        return _absent(check, error, fix)
    return Line(check, "pass", "there")


def _nodes(kube: Kube, train: StepResources) -> Line:
    """Whether a node could take a training step at all, if it were empty."""
    check = "nodes for a training step"
    try:
        nodes = kube.ask(kube.core.list_node, what=check).items
    except KubeError as error:
        return _absent(check, error, "")
    needed = _needs(train)
    selected = [node for node in nodes if _is_selected(node, train)]
    fitting = [
        node
        for node in selected
        if all(
            quantity(str((node.status.allocatable or {}).get(name, "0"))) >= amount for name, amount in needed.items()
        )
    ]
    asked = ", ".join(f"{name} {amount.normalize():f}" for name, amount in needed.items()) or "nothing"
    if fitting:
        return Line(check, "pass", f"{len(fitting)} of {len(nodes)} nodes fit ({asked})")
    found = f"of {len(nodes)} nodes {len(selected)} have the labels, none has room for {asked}"
    fix = (
        "Add such a node (GPU nodes need the device plugin), or lower train in the profile. An autoscaler may add one."
    )
    return Line(check, "fail", found, fix)


def _is_selected(node: Any, train: StepResources) -> bool:
    """Whether the pod may go there: labels fit, and every hard taint is tolerated."""
    labels = node.metadata.labels or {}
    if any(labels.get(key) != value for key, value in (train.node_selector or {}).items()):
        return False
    hard = [taint for taint in node.spec.taints or [] if taint.effect in ("NoSchedule", "NoExecute")]
    return all(any(_tolerates(one, taint) for one in train.tolerations or []) for taint in hard)


def _tolerates(toleration: Any, taint: Any) -> bool:
    if toleration.effect not in (None, taint.effect):
        return False
    if toleration.operator == "Exists":
        return toleration.key in (None, taint.key)
    return toleration.key == taint.key and (toleration.value or "") == (taint.value or "")


def _quota(kube: Kube, train: StepResources) -> Iterator[Line]:
    """Whether each quota of the namespace has room left for one training step."""
    try:
        quotas = kube.ask(kube.core.list_namespaced_resource_quota, kube.namespace, what="quota").items
    except KubeError as error:
        yield _absent("quota", error, "")
        return
    if not quotas:
        yield Line("quota", "pass", "the namespace has none")
    for one in quotas:
        hard, used = one.status.hard or {}, one.status.used or {}
        left = {key: quantity(str(most)) - quantity(str(used.get(key, "0"))) for key, most in hard.items()}
        short = [
            f"{key} (left {left[key].normalize():f})"
            for key, amount in _counted(train).items()
            if key in left and left[key] < amount
        ]
        check = f"quota {one.metadata.name}"
        if short:
            fix = "Wait for other runs to end, or ask for more: kubectl describe resourcequota."
            yield Line(check, "fail", f"too little for a training step: {', '.join(short)}", fix)
        else:
            yield Line(check, "pass", "has room for a training step")


def _counted(train: StepResources) -> dict[str, Decimal]:
    """What a quota may count of a training step, by the quota's names."""
    needs = _needs(train)
    limits = {
        f"limits.{name}": quantity(value) for name, value in (("cpu", train.cpu), ("memory", train.memory)) if value
    }
    return {"pods": Decimal(1), **needs, **{f"requests.{name}": amount for name, amount in needs.items()}, **limits}


def _needs(train: StepResources) -> dict[str, Decimal]:
    """What the scheduler must find: requests, or the limits where none are given."""
    asked = {"cpu": train.cpu_request or train.cpu, "memory": train.memory_request or train.memory}
    needs = {name: quantity(value) for name, value in asked.items() if value}
    if train.accelerator and train.accelerator_count:
        needs[train.accelerator] = Decimal(train.accelerator_count)
    return needs


# --- images and services ---------------------------------------------------------------------------------------------


def _images(profile: Profile, settings: RunSettings | None) -> Iterator[Line]:
    from components.shared.images import LIGHT_IMAGE, TRAIN_IMAGE

    execution = settings.execution if settings else None
    kinds: list[tuple[Literal["light", "train"], str]] = [("light", LIGHT_IMAGE), ("train", TRAIN_IMAGE)]
    for kind, own in kinds:
        place = profile.resources(kind, getattr(execution, kind) if execution else StepResources())
        try:
            image = place.image(kind, default=own)
        except PlumblineError as error:
            yield _failed(f"{kind} image", error)
            continue
        if _has_registry(image):
            yield Line(f"{kind} image", "pass", image)
        else:
            fix = f"Name yours as {kind}.image of the profile, unless every node has it already (kind load, say)."
            yield Line(f"{kind} image", "unknown", f"{image} names no registry: nodes ask docker.io", fix)


def _has_registry(image: str) -> bool:
    """Whether the name begins with a host, as container runtimes tell one from a folder."""
    host, slash, _ = image.partition("/")
    return bool(slash) and ("." in host or ":" in host or host == "localhost")


def _service(name: str, variable: str, check: Callable[[], str]) -> Line:
    """A service, by the address and login of this process's environment."""
    if not os.environ.get(variable):
        fix = (
            f"Set {variable} (and its login) as the steps have it, to look from here; the first step looks in any case."
        )
        return Line(name, "unknown", f"{variable} is not set here", fix)
    try:
        return Line(name, "pass", check())
    except PlumblineError as error:
        return _failed(name, error)


def _check_bucket() -> str:
    from components.prerequisites.checks import check_checkpoints

    return check_checkpoints(os.environ["PLUMBLINE_CHECKPOINTS"], 0)


def _check_mlflow() -> str:
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient
    from sqlalchemy.exc import SQLAlchemyError

    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    try:
        MlflowClient().search_experiments(max_results=1)
    except (MlflowException, SQLAlchemyError, OSError) as error:
        hint = "Check address and login; a server that answers 403 to a service name needs --allowed-hosts."
        raise PlumblineError(f"does not answer: {error}", where="MLFLOW_TRACKING_URI", hint=hint) from error
    return "answers"


def _check_anchor() -> str:
    from components.prerequisites.checks import check_ledger_anchor

    return check_ledger_anchor()


def _check_database() -> str:
    from components.prerequisites.checks import check_database

    return check_database()


def _failed(check: str, error: PlumblineError) -> Line:
    problem = f"{error.where}: {error.problem}" if error.where else error.problem
    return Line(check, "fail", problem, error.hint or "")


def _absent(check: str, error: KubeError, fix: str) -> Line:
    if error.status == 404:
        return Line(check, "fail", "not there", fix)
    if error.status == 403:
        return Line(check, "unknown", "you may not look", "Ask somebody who may.")
    return _failed(check, error)
