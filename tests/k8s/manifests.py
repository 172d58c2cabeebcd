"""Overlays as a cluster would get them: built with `kubectl kustomize`, and the pods that their workloads make."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

__all__ = [
    "COMPONENTS",
    "K8S",
    "OVERLAYS",
    "Manifest",
    "Pod",
    "build",
    "build_with_components",
    "containers",
    "load",
    "name_of",
    "pods",
]

K8S = Path(__file__).resolve().parents[2] / "k8s"
OVERLAYS = sorted(path.parent for path in (K8S / "overlays").glob("*/kustomization.yaml"))
COMPONENTS = sorted(path.parent for path in (K8S / "components").glob("*/kustomization.yaml"))
"""What an overlay may add, and none of ours does."""

Manifest = dict[str, Any]

_OLDEST_KUBECTL = (1, 27)
"""The kustomize of older ones does not know `labels`; Debian 12's 1.20 is too old."""
_POD_TEMPLATES = {
    "Pod": (),
    "Deployment": ("spec", "template"),
    "StatefulSet": ("spec", "template"),
    "DaemonSet": ("spec", "template"),
    "ReplicaSet": ("spec", "template"),
    "Job": ("spec", "template"),
    "CronJob": ("spec", "jobTemplate", "spec", "template"),
}


@dataclass(frozen=True)
class Pod:
    """A pod that a workload makes.

    Attributes:
        owner: Kind and name of the workload.
        kind: Kind of the workload.
        labels: Of the pod.
        annotations: Of the pod.
        spec: Of the pod.
    """

    owner: str
    kind: str
    labels: dict[str, str]
    annotations: dict[str, str]
    spec: dict[str, Any]


class KubectlError(Exception):
    """kubectl is missing, too old, or refuses."""


def build(overlay: Path) -> list[Manifest]:
    """What `kubectl kustomize` makes of an overlay.

    Raises:
        KubectlError: There is no kubectl, it is too old, or the overlay cannot be built.
    """
    found = subprocess.run([_kubectl(), "kustomize", str(overlay)], capture_output=True, text=True, timeout=60)
    if found.returncode:
        raise KubectlError(f"{overlay}: {found.stderr.strip()}")
    if found.stderr.strip():
        raise KubectlError(f"{overlay}: kustomize warns: {found.stderr.strip()}")
    return load(found.stdout)


def build_with_components(overlay: Path) -> list[Manifest]:
    """An overlay with every optional component, as somebody's own overlay takes them.

    Raises:
        KubectlError: See `build`.
    """
    with tempfile.TemporaryDirectory() as folder:
        there = Path(folder).resolve()
        mine = {"resources": [os.path.relpath(overlay.resolve(), there)]}
        mine["components"] = [os.path.relpath(component, there) for component in COMPONENTS]
        (there / "kustomization.yaml").write_text(yaml.safe_dump(mine), encoding="utf-8")
        return build(there)


def load(text: str) -> list[Manifest]:
    """The objects of a YAML stream."""
    return [document for document in yaml.safe_load_all(text) if document]


def name_of(manifest: Manifest) -> str:
    """Kind and name, for messages."""
    return f"{manifest.get('kind')}/{(manifest.get('metadata') or {}).get('name')}"


def pods(manifests: Sequence[Manifest]) -> list[Pod]:
    """The pods that the workloads among the manifests make, and those that a training runtime describes."""
    found = []
    for manifest in manifests:
        if manifest.get("kind") == "TrainingRuntime":
            found += _nodes(manifest)
        path = _POD_TEMPLATES.get(manifest.get("kind", ""))
        if path is None:
            continue
        template: Any = manifest
        for key in path:
            template = template[key]
        meta = template.get("metadata") or {}
        labels, annotations = meta.get("labels") or {}, meta.get("annotations") or {}
        found.append(Pod(name_of(manifest), manifest["kind"], labels, annotations, template["spec"]))
    return found


def _nodes(runtime: Manifest) -> Iterator[Pod]:
    """The pods of a runtime's JobSet, with the label that JobSet gives them."""
    for job in runtime["spec"]["template"]["spec"]["replicatedJobs"]:
        template = job["template"]["spec"]["template"]
        meta = template.get("metadata") or {}
        labels = {"jobset.sigs.k8s.io/jobset-name": "a-job"} | (meta.get("labels") or {})
        yield Pod(name_of(runtime), runtime["kind"], labels, meta.get("annotations") or {}, template["spec"])


def containers(pod: Pod) -> Iterator[dict[str, Any]]:
    """Every container of a pod: of any kind."""
    for kind in ("initContainers", "containers", "ephemeralContainers"):
        yield from pod.spec.get(kind) or []


def _kubectl() -> str:
    program = shutil.which("kubectl")
    if program is None:
        raise KubectlError("kubectl is not installed; any release since 1.27 will do (k8s/README.md).")
    told = subprocess.run([program, "version", "--client"], capture_output=True, text=True, timeout=60).stdout
    found = re.search(r"v(\d+)\.(\d+)\.", told)
    if found is None or tuple(map(int, found.groups())) < _OLDEST_KUBECTL:
        raise KubectlError(f"{program} is older than 1.27: {told.strip() or 'it tells no version'}")
    return program
