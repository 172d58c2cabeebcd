"""What the cluster commands ask of Kubernetes itself: pods' logs, and whether a thing is there.

With the rights of the kubeconfig's user, or of the pod that runs the command. Nothing is ever changed.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from components.shared.errors import InputError, PlumblineError

__all__ = ["Kube", "KubeError", "step_logs"]

_TIMEOUT_SECONDS = 15
_RUN_LABEL = "pipeline/runid"
_NODE_NAME = "workflows.argoproj.io/node-name"
_CONTAINER = "main"


class KubeError(PlumblineError):
    """Kubernetes refused or does not answer.

    Attributes:
        status: HTTP status; None when there was no answer.
    """

    def __init__(self, problem: str, *, status: int | None, where: str, hint: str | None = None):
        super().__init__(problem, where=where, hint=hint)
        self.status = status


class Kube:
    """The Kubernetes API.

    Args:
        client: `kubernetes.client.ApiClient`, configured.
        namespace: Namespace that questions are about.
    """

    def __init__(self, client: Any, namespace: str) -> None:
        from kubernetes import client as k8s

        self.namespace = namespace
        self.core = k8s.CoreV1Api(client)
        self.storage = k8s.StorageV1Api(client)
        self.scheduling = k8s.SchedulingV1Api(client)
        self.custom = k8s.CustomObjectsApi(client)

    @classmethod
    def connect(cls, context: str | None, namespace: str | None) -> Kube:
        """By kubeconfig, else by the service account of the pod that this is.

        Raises:
            InputError: There is neither, or no such context.
        """
        from kubernetes import client, config

        settings: Any = client.Configuration()
        settings.retries = False  # before the client is made, which reads it then
        try:
            if context is None and _in_pod():
                config.load_incluster_config(client_configuration=settings)
                return cls(client.ApiClient(settings), namespace or _pod_namespace())
            file = os.environ.get("KUBECONFIG")  # read now: the library reads it once, when it is imported
            contexts: Any
            active: Any
            contexts, active = config.list_kube_config_contexts(file)
            chosen = next((one for one in contexts if one["name"] == context), None) if context else active
            if chosen is None:
                names = ", ".join(one["name"] for one in contexts)
                raise InputError("no such context.", where=f"--context {context}", hint=f"One of: {names}.")
            config.load_kube_config(file, context=chosen["name"], client_configuration=settings)
        except config.ConfigException as error:
            hint = "Set KUBECONFIG, or log in to the cluster so that `kubectl get pods` works."
            raise InputError(f"no cluster is configured: {error}", where="kubeconfig", hint=hint) from error
        return cls(client.ApiClient(settings), namespace or chosen["context"].get("namespace") or "default")

    def ask(self, call: Callable[..., Any], *arguments: Any, what: str, **options: Any) -> Any:
        """Makes a call.

        Raises:
            KubeError: It was refused, or did not work.
        """
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        try:
            return call(*arguments, _request_timeout=_TIMEOUT_SECONDS, **options)
        except ApiException as error:
            raise KubeError(
                f"Kubernetes answers {error.status} {error.reason}.", status=error.status, where=what
            ) from error
        except ValueError as error:  # the generated client cannot read it
            raise KubeError(f"Kubernetes' answer cannot be read: {error}.", status=None, where=what) from error
        except (HTTPError, OSError) as error:
            hint = "Does `kubectl get pods` work from here?"
            raise KubeError(
                f"Kubernetes does not answer: {type(error).__name__}.", status=None, where=what, hint=hint
            ) from error


def step_logs(kube: Kube, run_id: str, *, step: str | None, tail: int) -> list[dict[str, Any]]:
    """Logs of a run's steps.

    Args:
        kube: The cluster.
        run_id: KFP's id of the run.
        step: Only this step; None: the steps that failed, or, when none did, all.
        tail: Lines of each.

    Returns:
        `step`, `pod`, `phase` and `log` of each pod, oldest first.

    Raises:
        InputError: The run has no pods any more, or none of that step.
    """
    where = f"run {run_id}, namespace {kube.namespace}"
    label = f"{_RUN_LABEL}={run_id}"
    listed = kube.ask(kube.core.list_namespaced_pod, kube.namespace, what=where, label_selector=label).items
    pods = [(_step_of(pod), pod) for pod in sorted(listed, key=lambda one: one.metadata.creation_timestamp)]
    pods = [(name, pod) for name, pod in pods if name]
    if not pods:
        hint = "Check --namespace; pods that were cleaned up have no log: look at the step's run in MLflow."
        raise InputError("no pods of this run.", where=where, hint=hint)
    if step:
        chosen = [one for one in pods if one[0].replace("_", "-") == step.replace("_", "-")]
        if not chosen:
            names = ", ".join(dict.fromkeys(name for name, _ in pods))
            raise InputError(f"no pod of step {step!r}.", where=where, hint=f"There are: {names}.")
    else:
        chosen = [one for one in pods if one[1].status.phase == "Failed"] or pods
    return [
        {
            "step": name,
            "pod": pod.metadata.name,
            "phase": pod.status.phase,
            "log": _log(kube, pod.metadata.name, tail),
        }
        for name, pod in chosen
    ]


def _log(kube: Kube, pod: str, tail: int) -> str:
    try:
        options = {"container": _CONTAINER, "tail_lines": tail}
        return kube.ask(kube.core.read_namespaced_pod_log, pod, kube.namespace, what=f"log of pod {pod}", **options)
    except KubeError as error:  # not started, or its node is gone: the others' logs are still worth seeing
        return f"(no log: {error})"


def _step_of(pod: Any) -> str:
    """The step that a pod works for, from Argo's path of nodes; empty for KFP's own drivers."""
    path = (pod.metadata.annotations or {}).get(_NODE_NAME, "").split(".")
    names = [name for name in path[1:] if name != "root" and not name.startswith("executor")]
    return "" if not names or names[-1].endswith("-driver") else names[-1]


def _in_pod() -> bool:
    return "KUBERNETES_SERVICE_HOST" in os.environ and "KUBECONFIG" not in os.environ


def _pod_namespace() -> str:
    with open("/var/run/secrets/kubernetes.io/serviceaccount/namespace", encoding="utf-8") as file:
        return file.read().strip()
