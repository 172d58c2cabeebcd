"""What Plumbline asks of its manifests beyond their schemas: one function a rule, one line a breach."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tests.k8s.manifests import Manifest, Pod, containers, name_of, pods
from tests.k8s.pod_security import POD_SECURITY

__all__ = ["RULES", "breaches", "placeholders"]

_CLUSTER_WIDE = frozenset(
    {
        "Namespace",
        "PriorityClass",
        "WorkloadPriorityClass",
        "ClusterRole",
        "ClusterRoleBinding",
        "ValidatingAdmissionPolicy",
        "ValidatingAdmissionPolicyBinding",
    }
)
_SECRET_NAME = re.compile(r"PASSWORD|SECRET|TOKEN|ACCESS_KEY|WEBHOOK|DATABASE_URL|CREDENTIAL", re.IGNORECASE)
_NO_SECRET = re.compile(r"_PATH$|_FILE$", re.IGNORECASE)
_CREDENTIALS_IN_URL = re.compile(r"://[^/\s:@]+:[^/\s@]+@")
_PLACEHOLDER = re.compile(r"example\.(com|org|net)|sha256:0{64}|FILL IN")

_DISRUPTIVE = ("Deployment", "StatefulSet", "DaemonSet")


def namespace_restricted(manifests: Sequence[Manifest]) -> Iterator[str]:
    """Every namespace enforces `restricted` in a pinned version."""
    spaces = [manifest for manifest in manifests if manifest["kind"] == "Namespace"]
    if not spaces:
        yield "there is no Namespace"
    for space in spaces:
        labels = space["metadata"].get("labels") or {}
        for mode in ("enforce", "audit", "warn"):
            if labels.get(f"pod-security.kubernetes.io/{mode}") != "restricted":
                yield f"{name_of(space)}: {mode} is not restricted"
            if not re.fullmatch(r"v1\.\d+", labels.get(f"pod-security.kubernetes.io/{mode}-version", "")):
                yield f"{name_of(space)}: {mode}-version is not pinned"


def in_the_namespace(manifests: Sequence[Manifest]) -> Iterator[str]:
    """Nothing lands in whatever namespace kubectl happens to stand in."""
    spaces = {manifest["metadata"]["name"] for manifest in manifests if manifest["kind"] == "Namespace"}
    for manifest in manifests:
        if manifest["kind"] not in _CLUSTER_WIDE and manifest["metadata"].get("namespace") not in spaces:
            yield f"{name_of(manifest)}: namespace {manifest['metadata'].get('namespace')}"


def images_pinned(manifests: Sequence[Manifest]) -> Iterator[str]:
    """A tag other than `latest`, or a digest; and a registry."""
    for pod in pods(manifests):
        for container in containers(pod):
            image = container.get("image", "")
            if pod.kind == "TrainingRuntime" and not image:
                continue  # the job names it: `TrainJobSettings.image`
            name, _, digest = image.partition("@")
            tag = name.rpartition("/")[2].partition(":")[2]
            if not digest and tag in ("", "latest"):
                yield f"{pod.owner}: {container['name']}: image {image!r} has no tag of its own"
            elif digest and not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
                yield f"{pod.owner}: {container['name']}: image {image!r} has no sha256 digest"
            elif "/" not in name or "." not in name.partition("/")[0]:
                yield f"{pod.owner}: {container['name']}: image {image!r} names no registry"


def resources_bounded(manifests: Sequence[Manifest]) -> Iterator[str]:
    """Requests and limits of CPU and memory, on every container."""
    for pod in pods(manifests):
        for container in containers(pod):
            found = container.get("resources") or {}
            for kind in ("requests", "limits"):
                for resource in ("cpu", "memory"):
                    if not (found.get(kind) or {}).get(resource):
                        yield f"{pod.owner}: {container['name']}: no {kind}.{resource}"


def probes_where_it_serves(manifests: Sequence[Manifest]) -> Iterator[str]:
    """A container with a port says when it lives, is ready, and has started."""
    for pod in pods(manifests):
        for container in pod.spec.get("containers") or []:
            if container.get("ports"):
                for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                    if not container.get(probe):
                        yield f"{pod.owner}: {container['name']}: no {probe}"


def read_only_root(manifests: Sequence[Manifest]) -> Iterator[str]:
    """What a process may write is a volume that says how large it may grow."""
    for pod in pods(manifests):
        for container in containers(pod):
            if not (container.get("securityContext") or {}).get("readOnlyRootFilesystem"):
                yield f"{pod.owner}: {container['name']}: readOnlyRootFilesystem is not true"
        for volume in pod.spec.get("volumes") or []:
            if "emptyDir" in volume and not (volume["emptyDir"] or {}).get("sizeLimit"):
                yield f"{pod.owner}: volume {volume['name']}: no sizeLimit"


def tokens_where_needed(manifests: Sequence[Manifest]) -> Iterator[str]:
    """No pod of ours speaks to the API server, so none carries a token for it; nor does the account `default`."""
    for pod in pods(manifests):
        if pod.spec.get("automountServiceAccountToken") is not False:
            yield f"{pod.owner}: automountServiceAccountToken is not false"
    for manifest in manifests:
        if manifest["kind"] == "ServiceAccount" and "automountServiceAccountToken" not in manifest:
            yield f"{name_of(manifest)}: automountServiceAccountToken is not said"


def accounts_exist(manifests: Sequence[Manifest]) -> Iterator[str]:
    """Accounts that pods and bindings name are there."""
    there = {manifest["metadata"]["name"] for manifest in manifests if manifest["kind"] == "ServiceAccount"}
    for pod in pods(manifests):
        name = pod.spec.get("serviceAccountName")
        if name is not None and name not in there:
            yield f"{pod.owner}: no ServiceAccount {name}"
    for manifest in manifests:
        if manifest["kind"] == "RoleBinding":
            roles = {one["metadata"]["name"] for one in manifests if one["kind"] == "Role"}
            if manifest["roleRef"]["name"] not in roles:
                yield f"{name_of(manifest)}: no Role {manifest['roleRef']['name']}"
            for subject in manifest.get("subjects") or []:
                elsewhere = subject.get("namespace") not in (None, manifest["metadata"].get("namespace"))
                if not elsewhere and subject["name"] not in there:
                    yield f"{name_of(manifest)}: no ServiceAccount {subject['name']}"


def rbac_least(manifests: Sequence[Manifest]) -> Iterator[str]:
    """No wildcard, nothing cluster-wide, no way to more rights, and Secrets by name only."""
    for manifest in manifests:
        if manifest["kind"] in ("ClusterRole", "ClusterRoleBinding"):
            yield f"{name_of(manifest)}: cluster-wide"
        if manifest["kind"] not in ("Role", "ClusterRole"):
            continue
        for rule in manifest.get("rules") or []:
            if "*" in [*rule.get("apiGroups", []), *rule.get("resources", []), *rule.get("verbs", [])]:
                yield f"{name_of(manifest)}: wildcard"
            if set(rule.get("verbs", [])) & {"escalate", "bind", "impersonate"}:
                yield f"{name_of(manifest)}: verbs that give more rights"
            if "secrets" in rule.get("resources", []) and not rule.get("resourceNames"):
                yield f"{name_of(manifest)}: every Secret of the namespace"
            if {"pods/exec", "pods/attach"} & set(rule.get("resources", [])):
                yield f"{name_of(manifest)}: a shell in every pod"


def no_secret_literal(manifests: Sequence[Manifest]) -> Iterator[str]:
    """Secrets are named, never written: not as Secret, not as variable, not in a URL, not in a ConfigMap."""
    for manifest in manifests:
        if manifest["kind"] == "Secret":
            yield f"{name_of(manifest)}: a Secret in the overlay"
        if manifest["kind"] == "ConfigMap":
            keys = manifest.get("data") or {}
            yield from (f"{name_of(manifest)}: {key}" for key in keys if _names_a_secret(key))
        if _CREDENTIALS_IN_URL.search(json.dumps(manifest)):
            yield f"{name_of(manifest)}: an address with a password in it"
    for pod in pods(manifests):
        for container in containers(pod):
            for variable in container.get("env") or []:
                if "value" in variable and _names_a_secret(variable["name"]):
                    yield f"{pod.owner}: {container['name']}: {variable['name']} is written out"


def network_closed(manifests: Sequence[Manifest]) -> Iterator[str]:
    """All is denied, and each pod has a policy of its own; who serves says who may come in, and on which port."""
    policies = [manifest for manifest in manifests if manifest["kind"] == "NetworkPolicy"]
    if not any(_denies_all(policy["spec"]) for policy in policies):
        yield "no NetworkPolicy denies everything"
    for pod in pods(manifests):
        mine = [
            one["spec"] for one in policies if one["spec"]["podSelector"] and _selects(one["spec"]["podSelector"], pod)
        ]
        if not mine:
            yield f"{pod.owner}: no NetworkPolicy of its own"
        ports = {p["containerPort"] for c in pod.spec["containers"] for p in c.get("ports") or []}
        opened = {p.get("port") for spec in mine for rule in spec.get("ingress") or [] for p in rule.get("ports") or []}
        if ports - opened:
            yield f"{pod.owner}: no NetworkPolicy lets anybody in to {sorted(ports - opened)}"
    for policy in policies:
        yield from (f"{name_of(policy)}: {problem}" for problem in _openings(policy["spec"]))


def nodes_never_restart(manifests: Sequence[Manifest]) -> Iterator[str]:
    """A node that fails ends its training at once: the step that made it resumes all nodes from the last checkpoint."""
    for manifest in manifests:
        if manifest["kind"] != "TrainingRuntime":
            continue
        jobs = manifest["spec"]["template"]["spec"]
        if (jobs.get("failurePolicy") or {}).get("maxRestarts") != 0:
            yield f"{name_of(manifest)}: failurePolicy.maxRestarts is not 0"
        for job in jobs["replicatedJobs"]:
            if job["template"]["spec"].get("backoffLimit") != 0:
                yield f"{name_of(manifest)}: {job['name']}: backoffLimit is not 0"
            if job["template"]["spec"]["template"]["spec"].get("restartPolicy") != "Never":
                yield f"{name_of(manifest)}: {job['name']}: restartPolicy is not Never"


def disruption_bounded(manifests: Sequence[Manifest]) -> Iterator[str]:
    """What the autoscaler scales has a disruption budget, and the budget always lets one pod go."""
    scaled = {
        one["spec"]["scaleTargetRef"]["name"]: one for one in manifests if one["kind"] == "HorizontalPodAutoscaler"
    }
    budgets = [one["spec"] for one in manifests if one["kind"] == "PodDisruptionBudget"]
    for manifest in manifests:
        name = manifest["metadata"]["name"]
        if manifest["kind"] not in _DISRUPTIVE or name not in scaled:
            continue
        if "replicas" in manifest["spec"]:
            yield f"{name_of(manifest)}: replicas and an autoscaler fight over the number"
        labels = manifest["spec"]["template"]["metadata"]["labels"]
        mine = [budget for budget in budgets if budget["selector"]["matchLabels"].items() <= labels.items()]
        if not mine:
            yield f"{name_of(manifest)}: no PodDisruptionBudget"
        for budget in mine:
            if budget.get("minAvailable", 0) >= scaled[name]["spec"].get("minReplicas", 1):
                yield f"{name_of(manifest)}: its PodDisruptionBudget never lets a node be drained"


def references_exist(manifests: Sequence[Manifest]) -> Iterator[str]:
    """ConfigMaps, claims and selectors that are named are there."""
    there = {(manifest["kind"], manifest["metadata"]["name"]) for manifest in manifests}
    for pod in pods(manifests):
        for kind, name in _named_by(pod):
            if (kind, name) not in there:
                yield f"{pod.owner}: no {kind} {name}"
    for manifest in manifests:
        if manifest["kind"] == "Service":
            selector = manifest["spec"]["selector"]
            if not any(selector.items() <= pod.labels.items() for pod in pods(manifests)):
                yield f"{name_of(manifest)}: selects no pod"


def placeholders(manifests: Sequence[Manifest]) -> list[str]:
    """What must still be edited before the overlay is applied."""
    found = []
    for manifest in manifests:
        for match in sorted({found[0] for found in _PLACEHOLDER.finditer(json.dumps(manifest))}):
            found.append(f"{name_of(manifest)}: {match}")
    return found


def _names_a_secret(name: str) -> bool:
    return bool(_SECRET_NAME.search(name)) and not _NO_SECRET.search(name)


def _denies_all(spec: dict[str, Any]) -> bool:
    closed = set(spec.get("policyTypes") or []) == {"Ingress", "Egress"}
    return spec["podSelector"] == {} and closed and not spec.get("ingress") and not spec.get("egress")


def _selects(selector: dict[str, Any], pod: Pod) -> bool:
    if not (selector.get("matchLabels") or {}).items() <= pod.labels.items():
        return False
    return all(
        one["operator"] == "Exists" and one["key"] in pod.labels for one in selector.get("matchExpressions") or []
    )


def _openings(spec: dict[str, Any]) -> Iterator[str]:
    """Openings that are wider than they look."""
    for direction, peers in (("ingress", "from"), ("egress", "to")):
        for rule in spec.get(direction) or []:
            if not rule.get(peers):
                yield f"{direction} for everybody"
            among_themselves = all(peer.get("podSelector") == spec["podSelector"] for peer in rule.get(peers) or [])
            if not rule.get("ports") and not among_themselves:
                yield f"{direction} on every port"
            for peer in rule.get(peers) or []:
                block = peer.get("ipBlock")
                if block and block["cidr"] in ("0.0.0.0/0", "::/0") and not block.get("except"):
                    yield f"{direction}: the cloud's metadata service too"


def _named_by(pod: Pod) -> Iterator[tuple[str, str]]:
    for volume in pod.spec.get("volumes") or []:
        if "configMap" in volume:
            yield "ConfigMap", volume["configMap"]["name"]
        if "persistentVolumeClaim" in volume:
            yield "PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]
    for container in containers(pod):
        for source in container.get("envFrom") or []:
            if "configMapRef" in source:
                yield "ConfigMap", source["configMapRef"]["name"]
        for variable in container.get("env") or []:
            reference = (variable.get("valueFrom") or {}).get("configMapKeyRef")
            if reference:
                yield "ConfigMap", reference["name"]


RULES: dict[str, Callable[[Sequence[Manifest]], list[str]]] = POD_SECURITY | {
    rule.__name__.replace("_", "-"): (lambda manifests, rule=rule: list(rule(manifests)))
    for rule in (
        namespace_restricted,
        in_the_namespace,
        images_pinned,
        resources_bounded,
        probes_where_it_serves,
        read_only_root,
        tokens_where_needed,
        accounts_exist,
        rbac_least,
        no_secret_literal,
        network_closed,
        nodes_never_restart,
        disruption_bounded,
        references_exist,
    )
}
"""Every rule by name."""


def breaches(manifests: Sequence[Manifest]) -> dict[str, list[str]]:
    """The rules that the manifests break, and where."""
    return {name: found for name, rule in RULES.items() if (found := rule(manifests))}
