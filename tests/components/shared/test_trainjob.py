"""A TrainJob over the Kubernetes API: made, followed, ended, whatever the API does meanwhile."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from small_cluster import SmallCluster, small_cluster

from components.shared import launch
from components.shared.errors import InputError
from components.shared.trainjob import TrainJobSettings, step_environment, train_job
from components.shared.trainjob_run import TrainJobError, TrainJobRun, run_train_job

ROOT = Path(__file__).parents[3]
SCHEMA = ROOT / "tests" / "k8s" / "schemas" / "trainer.kubeflow.org_v1alpha1_TrainJob.json"


PLACED = {
    "priority": "plumbline-training",
    "node_selector": {"pool": "gpu"},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
    "pull_secrets": ["plumbline-registry"],
    "scratch": {"/tmp": "200Gi", "/var/cache/triton": "5Gi"},
    "shared_memory": "16Gi",
}


def _make_job(code: str = "print('trained')", **overrides: Any) -> dict[str, Any]:
    settings = TrainJobSettings(**{"nodes": 2, "image": "registry.example.com/train:1", **overrides})
    return train_job("job", settings, [sys.executable, "-c", code], environment={"A": "b"}, owner=("pod", "uid"))


def test_the_object_fits_the_schema_of_the_trainer_and_a_wrong_one_does_not() -> None:
    validator = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text()))
    job = _make_job(gpus_per_node=8, queue="plumbline", **PLACED)
    assert [error.message for error in validator.iter_errors(job)] == []
    job["spec"]["trainer"]["nodes"] = 2
    assert [error.message for error in validator.iter_errors(job)] != []


def test_the_nodes_run_restricted_mount_the_shared_folder_and_name_their_secrets() -> None:
    job = _make_job(claim="share", folder="/shared", gpus_per_node=2)
    patch = job["spec"]["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"][0]
    pod = patch["template"]["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["containers"][0]["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == "share"
    assert job["spec"]["trainer"]["resourcesPerNode"]["limits"]["nvidia.com/gpu"] == "2"
    assert job["metadata"]["ownerReferences"][0]["uid"] == "uid"
    named = {one["name"] for one in job["spec"]["trainer"]["env"] if "valueFrom" in one}
    assert named == set(TrainJobSettings(nodes=1, image="x").secrets)


def test_the_nodes_are_placed_and_have_scratch_folders_over_a_root_that_is_read_only() -> None:
    job = _make_job(**PLACED)
    patch = job["spec"]["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"][0]
    template = patch["template"]["spec"]["template"]
    pod, (node,) = template["spec"], template["spec"]["containers"]
    assert pod["nodeSelector"] == {"pool": "gpu"}
    assert pod["tolerations"] == PLACED["tolerations"]
    assert pod["imagePullSecrets"] == [{"name": "plumbline-registry"}]
    assert node["securityContext"]["readOnlyRootFilesystem"] is True
    mounted = {one["mountPath"]: one["name"] for one in node["volumeMounts"]}
    volumes = {one["name"]: one.get("emptyDir") for one in pod["volumes"]}
    assert volumes[mounted["/tmp"]] == {"sizeLimit": "200Gi"}
    assert volumes[mounted["/var/cache/triton"]] == {"sizeLimit": "5Gi"}
    assert volumes[mounted["/dev/shm"]] == {"medium": "Memory", "sizeLimit": "16Gi"}
    assert set(mounted.values()) == set(volumes)
    assert job["metadata"]["labels"]["kueue.x-k8s.io/priority-class"] == "plumbline-training"
    assert template["metadata"]["labels"] == {"plumbline.dev/priority-class": "plumbline-training"}


def _pod(job: dict[str, Any]) -> dict[str, Any]:
    (patch,) = job["spec"]["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    return patch["template"]["spec"]["template"]["spec"]


def test_scratch_folders_of_like_names_have_volumes_of_their_own() -> None:
    paths = ["/tmp", "/var/cache/x", "/var/cache-x", "/var/cache_x", "/var/Cache/x", "/" + "deep/" * 20]
    pod = _pod(_make_job(scratch=dict.fromkeys(paths, "1Gi")))
    mounted = {one["mountPath"]: one["name"] for one in pod["containers"][0]["volumeMounts"]}
    names = [mounted[path] for path in paths]
    assert len(set(names)) == len(paths)
    assert all(re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", name) for name in names)
    assert mounted["/tmp"] == "plumbline-scratch-tmp"  # as the runtime calls it


def test_claims_are_mounted_where_and_as_deep_as_the_step_mounts_them() -> None:
    mounts = [
        {"claim": "plumbline-models", "path": "/cache", "sub_path": "hub"},
        {"claim": "data", "path": "/data"},
    ]
    pod = _pod(_make_job(folder="/models", sub_path="team-a", mounts=mounts))
    claims = {one["name"]: one["persistentVolumeClaim"]["claimName"] for one in pod["volumes"] if "emptyDir" not in one}
    assert sorted(claims.values()) == ["data", "plumbline-models"], "one volume a claim"
    found = {
        one["mountPath"]: (claims[one["name"]], one.get("subPath"))
        for one in pod["containers"][0]["volumeMounts"]
        if one["name"] in claims
    }
    assert found == {
        "/models": ("plumbline-models", "team-a"),
        "/cache": ("plumbline-models", "hub"),
        "/data": ("data", None),
    }


def test_a_path_that_would_be_mounted_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="/models would be mounted twice"):
        _make_job(mounts=[{"claim": "data", "path": "/models/"}])
    with pytest.raises(ValueError, match="/dev/shm would be mounted twice"):
        _make_job(scratch={"/tmp": "1Gi", "/dev/shm": "1Gi"})


def test_the_nodes_run_as_the_account_of_the_runtime_unless_the_settings_name_another() -> None:
    assert "serviceAccountName" not in _pod(_make_job())
    assert _pod(_make_job(service_account="with-an-identity"))["serviceAccountName"] == "with-an-identity"


def test_nodes_have_the_time_to_save_that_the_settings_give() -> None:
    settings = TrainJobSettings(nodes=2, image="x", grace_seconds=900)
    assert _pod(_make_job(grace_seconds=900))["terminationGracePeriodSeconds"] == 900
    assert launch._node_environment(settings)["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] == "870"
    with pytest.raises(ValueError, match="grace_seconds"):
        _make_job(grace_seconds=20)  # less than torch's launcher needs to end


def test_a_variable_that_comes_from_a_secret_is_not_given_by_value_too() -> None:
    job = _make_job(secrets={"A": "plumbline-a"})
    assert [one for one in job["spec"]["trainer"]["env"] if one["name"] == "A"] == [
        {"name": "A", "valueFrom": {"secretKeyRef": {"name": "plumbline-a", "key": "A", "optional": True}}}
    ]


def test_a_job_without_an_image_is_refused() -> None:
    with pytest.raises(InputError, match="no image is named"):
        _make_job(image="")


def test_no_credential_travels_by_value(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_PASSWORD", "AWS_SECRET_ACCESS_KEY", "PLUMBLINE_DATABASE_URL", "HF_TOKEN"):
        monkeypatch.setenv(name, "hidden")
    monkeypatch.setenv("PLUMBLINE_KFP_COOKIE", "hidden")
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "https://user:hidden@mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow")
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "eth1")
    assert "hidden" not in str(step_environment().values())
    assert step_environment()["NCCL_SOCKET_IFNAME"] == "eth1"
    assert step_environment()["MLFLOW_TRACKING_URI"] == "http://mlflow"


def test_variables_that_the_settings_name_reach_the_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("TOKENIZERS_PARALLELISM", "false"), ("SSL_CERT_FILE", "/ca"), ("PROXY", "http://u:p@proxy")):
        monkeypatch.setenv(name, value)
    named = step_environment(["TOKENIZERS_PARALLELISM", "SSL_CERT_FILE", "PROXY", "ABSENT"])
    assert (named["TOKENIZERS_PARALLELISM"], named["SSL_CERT_FILE"]) == ("false", "/ca")
    assert {"PROXY", "ABSENT"} & set(named) == set()
    assert "SSL_CERT_FILE" not in step_environment()


def test_a_log_whose_stream_ends_is_followed_again_and_each_line_is_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The container is late (400), then the stream breaks off in a line; the server ends every stream at once."""
    code = "import time\nfor i in range(8): print('line', i, flush=True); time.sleep(0.4)"
    faults = [("LOG", 400), ("LOG", "cut")]
    with small_cluster(faults=faults) as cluster, caplog.at_level(logging.INFO):
        run_train_job(_make_job(code, nodes=1), cluster=cluster)
    told = [int(line) for line in re.findall(r"node-0-0: line (\d)", caplog.text)]
    assert told == list(range(8))
    assert cluster.calls.count("LOG") > 3


def test_a_job_is_followed_to_its_end_and_its_log_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with small_cluster() as cluster, caplog.at_level(logging.INFO):
        run_train_job(_make_job("import time; print('trained'); time.sleep(1.5)"), cluster=cluster)
        assert cluster.deleted == ["job"]
    assert "trained" in caplog.text


def test_a_job_that_fails_says_so() -> None:
    with small_cluster() as cluster, pytest.raises(TrainJobError, match=r"FailedJobs.*exit status 3"):
        run_train_job(_make_job("raise SystemExit(3)"), cluster=cluster)
    assert cluster.deleted == ["job"]


@pytest.mark.parametrize(
    ("status", "hint"), [(401, "token"), (403, "plumbline-trainjobs"), (404, "Trainer 2.2"), (422, "2.2")]
)
def test_what_the_cluster_refuses_is_told_with_what_to_do(status: int, hint: str) -> None:
    with (
        small_cluster(faults=[("POST", status)]) as cluster,
        pytest.raises(TrainJobError, match=f"fault {status}") as told,
    ):
        run_train_job(_make_job(), cluster=cluster)
    assert hint in str(told.value)
    assert cluster.created == []


@pytest.mark.parametrize("status", [403, 422])
def test_a_runtime_that_is_missing_is_told_as_that(status: int) -> None:
    said = "denied the request: specified trainingRuntime must be created before the TrainJob is created"
    with small_cluster(faults=[("POST", (status, said))]) as cluster, pytest.raises(TrainJobError) as told:
        run_train_job(_make_job(), cluster=cluster)
    assert "k8s/components/trainer" in str(told.value)


@pytest.mark.parametrize(
    "faults",
    [
        [("GET", 500), ("GET", 503)],
        [("WATCH", 410)],
        [("WATCH", 500), ("WATCH", 429)],
        [("WATCH", "cut"), ("WATCH", "cut")],
        [("POST", 503), ("POST", 429)],
        [("ANSWER", "lost")],
        [("DELETE", 500)],
    ],
    ids=["5xx", "gone", "watch refused", "watch cut", "creation refused", "creation not told", "deletion refused"],
)
def test_an_api_that_fails_for_a_while_costs_nothing(faults: list[tuple[str, Any]]) -> None:
    with small_cluster(faults=faults) as cluster:
        run_train_job(_make_job("import time; time.sleep(2)"), cluster=cluster, patience=10.0)
        assert cluster.faults == []
        assert cluster.deleted == ["job"]


def test_an_api_that_stays_away_is_given_up_and_the_job_is_deleted() -> None:
    with small_cluster() as cluster:
        cluster.when_made = lambda: cluster.faults.extend([("GET", 500)] * 100)
        with pytest.raises(TrainJobError, match="has not answered for 2 s"):
            run_train_job(_make_job("import time; time.sleep(60)"), cluster=cluster, patience=2.0)
        assert cluster.deleted == ["job"]


def test_an_api_that_is_away_from_the_start_is_waited_for_and_nothing_is_made_or_deleted() -> None:
    prepared: list[bool] = []
    with small_cluster(faults=[("GET", 500)] * 100) as cluster:
        run = TrainJobRun(_make_job(), cluster=cluster, patience=2.0)
        began = time.monotonic()
        with pytest.raises(TrainJobError, match="TrainJob job: the cluster's API has not answered for 2 s"):
            run.follow(lambda: prepared.append(True) or True)
        assert time.monotonic() - began >= 2.0
        assert set(cluster.calls) == {"GET"}
        assert len(cluster.calls) > 2
        assert (cluster.created, cluster.deleted, prepared) == ([], [], [])
    assert not run.is_gone, "nobody knows whether an earlier try's nodes still write"


def test_rights_that_are_taken_away_end_it_at_once() -> None:
    with small_cluster(faults=[("WATCH", 403)]) as cluster, pytest.raises(TrainJobError, match="403"):
        run_train_job(_make_job("import time; time.sleep(60)"), cluster=cluster)


def test_a_job_whose_creation_was_not_confirmed_is_followed_all_the_same() -> None:
    with small_cluster() as cluster:
        job = _make_job("import time; time.sleep(1)")
        cluster.jobs["job"] = job | {"metadata": {"name": "job", "resourceVersion": "1"}}
        threading.Thread(target=cluster.run, args=(cluster.jobs["job"],), daemon=True).start()
        run_train_job(job, cluster=cluster)
        assert cluster.created == []


def test_a_job_that_somebody_deletes_is_noticed() -> None:
    with small_cluster() as cluster:
        threading.Timer(1.0, lambda: _take_away(cluster)).start()
        with pytest.raises(TrainJobError, match="was deleted"):
            run_train_job(_make_job("import time; time.sleep(60)"), cluster=cluster)


def test_sigterm_deletes_the_job_and_ends_the_step_as_terminated() -> None:
    with small_cluster() as cluster:
        threading.Timer(1.5, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
        began = time.monotonic()
        with pytest.raises(SystemExit) as ended:
            run_train_job(_make_job("import time; time.sleep(60)"), cluster=cluster)
        assert ended.value.code == 143
        assert time.monotonic() - began < 15.0
        assert cluster.deleted == ["job"]
        assert len(cluster.nodes) == 2
        assert all(process.wait(timeout=10) != 0 for process in cluster.nodes)


def test_outside_a_cluster_it_says_so() -> None:
    with pytest.raises(TrainJobError, match="no pod of a cluster"):
        run_train_job(_make_job())


def test_the_account_of_training_may_do_what_is_done_here_and_no_more() -> None:
    roles = yaml.safe_load_all((ROOT / "k8s" / "base" / "rbac.yaml").read_text())
    (role,) = [one for one in roles if one["kind"] == "Role" and one["metadata"]["name"] == "plumbline-trainjobs"]
    granted = {(resource, verb) for rule in role["rules"] for resource in rule["resources"] for verb in rule["verbs"]}
    assert granted == {("trainjobs", verb) for verb in ("create", "get", "watch", "patch", "delete")} | {
        ("pods/log", "get")
    }


def _take_away(cluster: SmallCluster) -> None:
    with cluster.changed:
        cluster.jobs.clear()
        cluster.changed.notify_all()
    cluster.end()
