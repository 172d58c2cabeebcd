"""The doctor, on a cluster that has everything, and on ones that lack something each."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml
from kfp_server import KFPServer
from kubernetes import client as k8s
from kubernetes_server import KubernetesServer, run_kubernetes_server

from components.shared.errors import InputError
from components.shared.trainjob import TrainJobSettings
from pipelines.cluster.connection import KFP
from pipelines.cluster.doctor import Line, examine, quantity
from pipelines.cluster.kube import Kube, KubeError, step_logs
from pipelines.placement import Profile, load_profile
from pipelines.settings import RunSettings, load_run_settings

_NAMESPACE = "plumbline"
_QUEUE = f"/apis/kueue.x-k8s.io/v1beta2/namespaces/{_NAMESPACE}/localqueues/plumbline"
_PRIORITY = "/apis/scheduling.k8s.io/v1/priorityclasses/plumbline-training"


def _named(name: str, **values: Any) -> k8s.V1ObjectMeta:
    return k8s.V1ObjectMeta(name=name, **values)


def _profile() -> Profile:
    prod = load_profile("prod").model_dump(exclude_none=True)
    for kind in ("light", "train"):
        prod[kind]["image"] = f"registry.example.com/{kind}@sha256:" + "0" * 64
    return Profile.model_validate(prod)


@pytest.fixture
def kubernetes() -> Iterator[KubernetesServer]:
    """A cluster that has all that the prod profile names."""
    with run_kubernetes_server() as server:
        profile = _profile()
        server.objects[f"/api/v1/namespaces/{_NAMESPACE}"] = k8s.V1Namespace(metadata=_named(_NAMESPACE))
        accounts = ("plumbline-training", "plumbline-promotion")
        server.put(_NAMESPACE, "serviceaccounts", *(k8s.V1ServiceAccount(metadata=_named(name)) for name in accounts))
        for kind, sources, model in (
            ("configmaps", profile.config_maps, k8s.V1ConfigMap),
            ("secrets", profile.secrets, k8s.V1Secret),
        ):
            keys: dict[str, dict[str, str]] = {}
            for source in sources:
                keys.setdefault(source.name, {}).update(dict.fromkeys(source.variables, "eA=="))
            server.put(_NAMESPACE, kind, *(model(metadata=_named(name), data=data) for name, data in keys.items()))
        server.put(_NAMESPACE, "secrets", k8s.V1Secret(metadata=_named("plumbline-registry")))
        claim = k8s.V1PersistentVolumeClaim(
            metadata=_named("plumbline-models"),
            spec=k8s.V1PersistentVolumeClaimSpec(access_modes=["ReadWriteMany"]),
            status=k8s.V1PersistentVolumeClaimStatus(phase="Bound"),
        )
        server.put(_NAMESPACE, "persistentvolumeclaims", claim)
        default = _named("fast", annotations={"storageclass.kubernetes.io/is-default-class": "true"})
        server.objects["/apis/storage.k8s.io/v1/storageclasses"] = [
            k8s.V1StorageClass(metadata=default, provisioner="x")
        ]
        server.objects[_QUEUE] = {"metadata": {"name": "plumbline"}}
        server.objects[_PRIORITY] = k8s.V1PriorityClass(metadata=_named("plumbline-training"), value=1)
        server.objects["/api/v1/nodes"] = [_node()]
        server.objects[f"/api/v1/namespaces/{_NAMESPACE}/resourcequotas"] = [_quota("4")]
        yield server


def _node(**overrides: Any) -> k8s.V1Node:
    values: dict[str, Any] = {
        "labels": {"nvidia.com/gpu.present": "true"},
        "taints": [k8s.V1Taint(key="nvidia.com/gpu", effect="NoSchedule", value="present")],
        "allocatable": {"cpu": "15800m", "memory": "120Gi", "nvidia.com/gpu": "1"},
    } | overrides
    return k8s.V1Node(
        metadata=_named("gpu-1", labels=values["labels"]),
        spec=k8s.V1NodeSpec(taints=values["taints"]),
        status=k8s.V1NodeStatus(allocatable=values["allocatable"]),
    )


def _quota(gpus: str = "4", **hard: str) -> k8s.V1ResourceQuota:
    hard = {"requests.nvidia.com/gpu": gpus, "requests.memory": "500Gi", "requests.storage": "1Ei"} | hard
    used = {"requests.nvidia.com/gpu": "3", "requests.memory": "64Gi", "requests.storage": "1e3"}
    return k8s.V1ResourceQuota(metadata=_named("training"), status=k8s.V1ResourceQuotaStatus(hard=hard, used=used))


@pytest.fixture
def kube(kubernetes: KubernetesServer) -> Kube:
    return Kube(k8s.ApiClient(k8s.Configuration(host=kubernetes.address)), _NAMESPACE)


@pytest.fixture
def look(
    kfp: KFP, kube: Kube, mlflow_store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., dict[str, Line]]:
    """Examines the cluster; the lines by check."""
    monkeypatch.setenv("PLUMBLINE_DATABASE_URL", f"sqlite:///{tmp_path / 'evidence.db'}")
    monkeypatch.setenv("PLUMBLINE_CHECKPOINTS", str(tmp_path))
    monkeypatch.setenv("PLUMBLINE_LEDGER_ANCHOR", str(tmp_path / "anchors"))

    def lines(profile: Profile | None = None, settings: RunSettings | None = None) -> dict[str, Line]:
        found = examine(profile or _profile(), connect=lambda: kfp, kube=kube, settings=settings)
        return {line.check: line for line in found}

    return lines


def test_a_cluster_that_has_everything_passes_every_line(look: Callable[..., dict[str, Line]]) -> None:
    found = look()
    assert {check: line for check, line in found.items() if line.result != "pass"} == {}
    assert len(found) >= 18


def _without(path: str) -> Callable[[KubernetesServer], None]:
    return lambda server: server.objects.pop(f"/api/v1/namespaces/{_NAMESPACE}/{path}")


def _changed(path: str, value: Any) -> Callable[[KubernetesServer], None]:
    return lambda server: server.objects.update({path: value})


_BROKEN: dict[str, tuple[Callable[[KubernetesServer], Any], str, str]] = {
    "no account": (_without("serviceaccounts/plumbline-promotion"), "service account plumbline-promotion", "not there"),
    "no secret": (_without("secrets/plumbline-database"), "Secret plumbline-database", "not there"),
    "no key": (
        _changed(
            f"/api/v1/namespaces/{_NAMESPACE}/secrets/plumbline-mlflow",
            k8s.V1Secret(metadata=_named("plumbline-mlflow"), data={"MLFLOW_TRACKING_USERNAME": "eA=="}),
        ),
        "Secret plumbline-mlflow",
        "lacks MLFLOW_TRACKING_PASSWORD",
    ),
    "no registry login": (_without("secrets/plumbline-registry"), "Secret plumbline-registry (registry)", "not there"),
    "no claim": (
        _without("persistentvolumeclaims/plumbline-models"),
        "volume claim plumbline-models",
        "not there",
    ),
    "no queue": (lambda server: server.objects.pop(_QUEUE), "Kueue queue plumbline", "not there"),
    "no priority": (
        lambda server: server.objects.pop(_PRIORITY),
        "priority class plumbline-training",
        "not there",
    ),
    "no default class": (
        _changed("/apis/storage.k8s.io/v1/storageclasses", []),
        "storage class",
        "none is the default",
    ),
    "no gpu": (
        _changed("/api/v1/nodes", [_node(allocatable={"cpu": "64", "memory": "900Gi"})]),
        "nodes for a training step",
        "1 have the labels, none has room",
    ),
    "small node": (
        _changed("/api/v1/nodes", [_node(allocatable={"cpu": "15", "memory": "63Gi", "nvidia.com/gpu": "1"})]),
        "nodes for a training step",
        "none has room",
    ),
    "other labels": (_changed("/api/v1/nodes", [_node(labels={})]), "nodes for a training step", "0 have the labels"),
    "another taint": (
        _changed("/api/v1/nodes", [_node(taints=[k8s.V1Taint(key="reserved", effect="NoExecute")])]),
        "nodes for a training step",
        "0 have the labels",
    ),
    "quota used up": (
        _changed(f"/api/v1/namespaces/{_NAMESPACE}/resourcequotas", [_quota("3")]),
        "quota training",
        "nvidia.com/gpu (left 0)",
    ),
    "limits used up": (
        _changed(f"/api/v1/namespaces/{_NAMESPACE}/resourcequotas", [_quota(**{"limits.memory": "64Gi"})]),
        "quota training",
        "limits.memory (left 68719476736)",
    ),
    "no more pods": (
        _changed(f"/api/v1/namespaces/{_NAMESPACE}/resourcequotas", [_quota(pods="0")]),
        "quota training",
        "pods (left 0)",
    ),
}


@pytest.mark.parametrize("fault", list(_BROKEN))
def test_what_is_missing_fails_its_own_line_with_what_to_do(
    fault: str, kubernetes: KubernetesServer, look: Callable[..., dict[str, Line]]
) -> None:
    change, check, said = _BROKEN[fault]
    change(kubernetes)
    failed = {name: line for name, line in look().items() if line.result == "fail"}
    assert list(failed) == [check]
    assert said in failed[check].found
    assert failed[check].fix


@pytest.mark.parametrize(
    ("kind", "base"),
    [
        ("TrainingRuntime", f"namespaces/{_NAMESPACE}/trainingruntimes"),
        ("ClusterTrainingRuntime", "clustertrainingruntimes"),
    ],
)
def test_the_runtime_of_a_stage_on_several_nodes_is_looked_for(
    kind: str, base: str, kubernetes: KubernetesServer, look: Callable[..., dict[str, Line]]
) -> None:
    settings = load_run_settings("gpu-example")
    job = TrainJobSettings(nodes=2, runtime_kind=kind)  # pyright: ignore[reportArgumentType]
    stages = {name: getattr(settings, name).model_copy(update={"trainjob": job}) for name in ("sft", "ppo")}
    settings = settings.model_copy(update=stages)

    missing = look(settings=settings)[f"{kind} plumbline-torch"]
    assert (missing.result, missing.found) == ("fail", "not there")
    assert "k8s/components/trainer" in missing.fix

    kubernetes.objects[f"/apis/trainer.kubeflow.org/v1alpha1/{base}/plumbline-torch"] = {"metadata": {}}
    assert look(settings=settings)[f"{kind} plumbline-torch"].result == "pass"


def test_an_optional_secret_may_be_missing(kubernetes: KubernetesServer, look: Callable[..., dict[str, Line]]) -> None:
    kubernetes.objects.pop(f"/api/v1/namespaces/{_NAMESPACE}/secrets/plumbline-notice")
    assert look()["Secret plumbline-notice"].result == "pass"


def test_an_empty_login_is_one_for_a_server_without_logins(
    kubernetes: KubernetesServer, look: Callable[..., dict[str, Line]]
) -> None:
    empty = {"MLFLOW_TRACKING_USERNAME": "", "MLFLOW_TRACKING_PASSWORD": ""}  # as k8s/secrets.example.yaml says
    secret = k8s.V1Secret(metadata=_named("plumbline-mlflow"), data=empty)
    kubernetes.objects[f"/api/v1/namespaces/{_NAMESPACE}/secrets/plumbline-mlflow"] = secret
    assert look()["Secret plumbline-mlflow"].result == "pass"


def test_the_queue_is_asked_for_in_the_version_that_the_manifests_have() -> None:
    manifest = Path(__file__).resolve().parents[3] / "k8s" / "base" / "queue.yaml"
    queue = next(one for one in yaml.safe_load_all(manifest.read_text()) if one["kind"] == "LocalQueue")
    assert _QUEUE.startswith(f"/apis/{queue['apiVersion']}/")


def test_an_image_that_names_no_registry_is_no_pass(look: Callable[..., dict[str, Line]]) -> None:
    dev = load_profile("dev").model_dump(exclude_none=True)
    found = look(Profile.model_validate(dev))["train image"]
    assert (found.result, "docker.io" in found.found) == ("unknown", True)
    dev["train"]["image"] = "registry.example.com:5000/train:1"
    assert look(Profile.model_validate(dev))["train image"].result == "pass"


def test_an_answer_that_makes_no_sense_fails_its_line_and_no_other(
    kubernetes: KubernetesServer, look: Callable[..., dict[str, Line]]
) -> None:
    broken = {"items": [{"metadata": {"name": "n"}, "spec": {"taints": [{"key": "k"}]}}]}  # a taint has an effect
    kubernetes.objects["/api/v1/nodes"] = broken
    found = look()
    assert found["nodes for a training step"].result == "fail"
    assert found["quota training"].result == "pass"


def test_a_cluster_that_hangs_up_is_asked_once(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as door:
        callers: list[int] = []

        def hang_up() -> None:
            with contextlib.suppress(OSError):
                while True:
                    caller, _ = door.accept()
                    callers.append(1)
                    caller.close()

        threading.Thread(target=hang_up, daemon=True).start()
        server = KubernetesServer(address=f"http://127.0.0.1:{door.getsockname()[1]}")
        config = server.kubeconfig(tmp_path / "kubeconfig", namespace="x")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("KUBECONFIG", str(config))
            kube = Kube.connect(None, None)
        with pytest.raises(KubeError, match="does not answer"):
            kube.ask(kube.core.list_node, what="nodes")
        assert len(callers) == 1


def test_what_one_may_not_look_at_is_unknown_and_no_pass(
    kubernetes: KubernetesServer, look: Callable[..., dict[str, Line]]
) -> None:
    kubernetes.forbidden += ["/secrets/", "/nodes"]
    found = look()
    assert found["Secret plumbline-database"].result == "unknown"
    assert found["nodes for a training step"].result == "unknown"


def test_a_namespace_that_is_not_there_is_one_line_and_the_services_are_looked_at_all_the_same(
    kubernetes: KubernetesServer, look: Callable[..., dict[str, Line]]
) -> None:
    kubernetes.objects.pop(f"/api/v1/namespaces/{_NAMESPACE}")
    found = look()
    assert found["namespace"].result == "fail"
    assert "kubectl apply -k" in found["namespace"].fix
    assert found["MLflow"].result == "pass"


def test_kfp_that_refuses_or_has_several_users_is_said(server: KFPServer, look: Callable[..., dict[str, Line]]) -> None:
    server.multi_user = True
    assert "--namespace" in look(_profile().model_copy(update={"namespace": None}))["your namespace"].fix
    assert look()["right to list runs"].result == "pass", "the profile names the namespace"
    server.multi_user = False
    server.forbidden.append("/runs")
    assert look()["right to list runs"].result == "fail"
    server.fail("status", status=401, path="healthz", times=10)
    assert "token" in look()["Kubeflow Pipelines"].fix


def test_services_that_do_not_answer_fail_and_unset_ones_are_unknown(
    look: Callable[..., dict[str, Line]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("PLUMBLINE_DATABASE_URL", "sqlite:////absent/evidence.db")
    monkeypatch.delenv("PLUMBLINE_CHECKPOINTS")
    found = look()
    assert found["MLflow"].result == found["evidence database"].result == "fail"
    assert found["object storage"].result == "unknown"


def test_a_bucket_is_written_to_read_and_left_empty(
    look: Callable[..., dict[str, Line]], bucket: str, bucket_client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLUMBLINE_CHECKPOINTS", f"s3://{bucket}/checkpoints")
    assert look()["object storage"].result == "pass"
    assert bucket_client.list_objects_v2(Bucket=bucket).get("KeyCount") == 0
    monkeypatch.setenv("PLUMBLINE_CHECKPOINTS", "s3://no-such-bucket/checkpoints")
    assert look()["object storage"].result == "fail"


def test_an_image_without_digest_fails_in_production(look: Callable[..., dict[str, Line]]) -> None:
    assert look(load_profile("prod"))["train image"].result == "fail"


def test_quantities_are_numbers() -> None:
    assert quantity("250m") == Decimal("0.25")
    assert quantity("1Gi") == 1024**3
    assert quantity("2M") == 2_000_000
    assert quantity("1Ei") == 1024**6
    assert quantity("1e3") == quantity("1E3") == 1000
    assert quantity("1E") == 10**18
    assert quantity("-5") == -5
    assert quantity("100n") == Decimal("1e-7")
    with pytest.raises(InputError):
        quantity("lots")


def _pod(name: str, node: str, phase: str, minute: int) -> k8s.V1Pod:
    metadata = _named(
        name,
        labels={"pipeline/runid": "r1"},
        annotations={"workflows.argoproj.io/node-name": node},
        creation_timestamp=datetime(2026, 1, 1, 0, minute, tzinfo=UTC),
    )
    return k8s.V1Pod(metadata=metadata, status=k8s.V1PodStatus(phase=phase))


def test_logs_are_those_of_the_step_that_failed_and_leave_kfps_own_pods_out(
    kubernetes: KubernetesServer, kube: Kube
) -> None:
    kubernetes.put(
        _NAMESPACE,
        "pods",
        _pod("p0", "flow-x.root-driver", "Succeeded", 0),
        _pod("p1", "flow-x.root.exit-handler-1.sft-driver", "Succeeded", 1),
        _pod("p2", "flow-x.root.exit-handler-1.sft.executor", "Succeeded", 2),
        _pod("p3", "flow-x.root.exit-handler-1.release.release-gate.executor(0)", "Failed", 3),
    )
    logs = f"/api/v1/namespaces/{_NAMESPACE}/pods/{{}}/log"
    kubernetes.objects |= {logs.format("p2"): "trained\n", logs.format("p3"): "no evidence\n"}
    (failed,) = step_logs(kube, "r1", step=None, tail=10)
    assert failed == {"step": "release-gate", "pod": "p3", "phase": "Failed", "log": "no evidence\n"}
    assert step_logs(kube, "r1", step="sft", tail=10)[0]["log"] == "trained\n"
    with pytest.raises(InputError, match="There are: sft, release-gate"):
        step_logs(kube, "r1", step="ppo", tail=10)
    with pytest.raises(InputError, match="no pods of this run"):
        step_logs(kube, "r2", step=None, tail=10)


def test_lines_are_plain_data() -> None:
    assert dataclasses.asdict(Line("a", "pass", "b")) == {"check": "a", "result": "pass", "found": "b", "fix": ""}
