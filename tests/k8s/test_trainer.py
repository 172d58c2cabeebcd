"""A node of a training: the runtime of k8s/components/trainer with what a TrainJob lays over it, merged by kubectl."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.shared.trainjob import TrainJobSettings, train_job
from tests.k8s.manifests import K8S, Manifest, load, name_of
from tests.k8s.rules import breaches
from tests.k8s.schemas import schema_problems

_RUNTIME = "TrainingRuntime/plumbline-torch"


def _make_settings(**overrides: Any) -> TrainJobSettings:
    return TrainJobSettings(**{"nodes": 2, "image": "registry.example.com/train:1", **overrides})


def _merged(overlay: list[Manifest], settings: TrainJobSettings, folder: Path) -> Manifest:
    """The Job of a node as Trainer makes it: a strategic merge, then the job's image and amounts."""
    (runtime,) = [one for one in overlay if name_of(one) == _RUNTIME]
    (replicated,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    job = train_job("a-job", settings, ["python3"], environment={})
    (patch,) = job["spec"]["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    assert patch["name"] == replicated["name"]
    assert job["spec"]["runtimeRef"] == {
        "apiGroup": "trainer.kubeflow.org",
        "kind": runtime["kind"],
        "name": runtime["metadata"]["name"],
    }
    whole = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "a-job", "namespace": "plumbline"}}
    (folder / "job.yaml").write_text(yaml.safe_dump(whole | {"spec": replicated["template"]["spec"]}))
    (folder / "patch.json").write_text(json.dumps({"spec": patch["template"]["spec"]}))
    command = "kubectl patch --local -f job.yaml --type strategic --patch-file patch.json -o json"
    merged = subprocess.run(command.split(), cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert merged.returncode == 0, merged.stderr
    found = json.loads(merged.stdout)
    (container,) = found["spec"]["template"]["spec"]["containers"]
    container |= {"image": settings.image, "resources": job["spec"]["trainer"]["resourcesPerNode"]}
    labels = found["spec"]["template"].setdefault("metadata", {}).setdefault("labels", {})
    labels |= {"jobset.sigs.k8s.io/jobset-name": "a-job"}
    return found


@pytest.mark.parametrize(
    "settings",
    [
        _make_settings(),
        _make_settings(scratch={"/tmp": "200Gi", "/var/cache/triton": "5Gi"}, shared_memory="16Gi", priority="high"),
    ],
    ids=["default", "placed"],
)
def test_a_node_keeps_every_rule_once_the_job_is_laid_over_the_runtime(
    settings: TrainJobSettings, overlays: dict[str, list[Manifest]], tmp_path: Path
) -> None:
    node = _merged(overlays["dev+"], settings, tmp_path)
    assert schema_problems(node) == []
    assert breaches([*overlays["dev+"], node]) == {}
    pod = node["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    paths = [mount["mountPath"] for mount in container["volumeMounts"]]
    assert len(paths) == len(set(paths)), "the API server refuses a path that is mounted twice"
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert (pod["restartPolicy"], node["spec"]["backoffLimit"]) == ("Never", 0)
    assert pod["serviceAccountName"] == "plumbline-training-nodes"
    assert pod["automountServiceAccountToken"] is False
    sizes = {volume["name"]: volume["emptyDir"]["sizeLimit"] for volume in pod["volumes"] if "emptyDir" in volume}
    assert sizes["plumbline-scratch-tmp"] == settings.scratch["/tmp"]
    assert sizes["plumbline-shm"] == (settings.shared_memory or "2Gi")


def test_the_job_that_the_docs_make_by_hand_fits_the_schema_and_names_what_is_there(
    overlays: dict[str, list[Manifest]],
) -> None:
    text = (K8S.parent / "docs" / "ppo-scale.md").read_text()
    (job,) = [one for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL) for one in load(block)]
    assert schema_problems(job) == []
    there = {name_of(one): one for one in overlays["prod+"]}
    runtime = there[f"{job['spec']['runtimeRef']['kind']}/{job['spec']['runtimeRef']['name']}"]
    (patch,) = job["spec"]["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    (replicated,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    assert patch["name"] == replicated["name"]
    volumes = patch["template"]["spec"]["template"]["spec"]["volumes"]
    known = {volume["name"] for volume in replicated["template"]["spec"]["template"]["spec"]["volumes"]}
    assert {volume["name"] for volume in volumes} - known == {"shared"}
    assert f"PersistentVolumeClaim/{volumes[0]['persistentVolumeClaim']['claimName']}" in there


def test_the_account_of_the_nodes_is_bound_to_nothing(overlays: dict[str, list[Manifest]]) -> None:
    bindings = [one for one in overlays["prod+"] if one["kind"].endswith("RoleBinding")]
    named = {subject["name"] for binding in bindings for subject in binding["subjects"]}
    assert named
    assert "plumbline-training-nodes" not in named


def test_the_overlays_do_without_trainer(overlays: dict[str, list[Manifest]]) -> None:
    """A cluster that has no Kubeflow Trainer would refuse the whole overlay for one unknown kind."""
    for name in ("dev", "prod"):
        assert _RUNTIME not in {name_of(one) for one in overlays[name]}
        assert _RUNTIME in {name_of(one) for one in overlays[f"{name}+"]}
