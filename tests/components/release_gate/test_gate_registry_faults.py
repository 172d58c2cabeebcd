"""Promotion, rollback and dossier against a real MLflow server that is down, refuses, or is slow in the middle.

Nothing is lost, the champion is always one of the two, and the same step, done again, ends what was begun.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fault_proxy import FaultProxy
from mlflow_server import MLflowServer
from tiny_office import check_agreement, judge_weights, release_weights
from tiny_release import MODEL, make_weights

from components.release_gate.dossier import keep_dossier
from components.release_gate.office import Office, open_office
from components.release_gate.promotion import promote, rollback
from components.release_gate.registry import RegistryError
from components.release_gate.states import State
from components.shared.errors import PlumblineError

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("registry_faults")]

_FAULTS: dict[str, dict[str, Any]] = {
    "down": {"kind": "reset"},
    "refuses": {"kind": "status", "status": 403, "body": "Permission denied"},
    "broken": {"kind": "status", "status": 503, "body": "Service unavailable"},
    "slow": {"kind": "slow", "seconds": 3.0},
}
_REQUESTS = {
    "reading the files back": "GET /api/2.0/mlflow-artifacts",
    "moving the alias": "POST /api/2.0/mlflow/registered-models/alias",
    "reading the alias": "GET /api/2.0/mlflow/registered-models/get",
    "anchoring the ledger": "POST /api/2.0/mlflow/model-versions/set-tag",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MLflowServer]:
    folder = tmp_path_factory.mktemp("mlflow-server")
    database, artifacts = f"sqlite:///{folder / 'mlflow.db'}", str(folder / "artifacts")
    server = MLflowServer(folder, database=database, artifacts=artifacts, environment={}, users=False)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def proxy(server: MLflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    with FaultProxy(server.host, server.port) as proxy:
        for name, value in {
            "MLFLOW_TRACKING_URI": proxy.address,
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
            "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
            "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
            "PLUMBLINE_DATABASE_URL": f"sqlite:///{tmp_path / 'plumbline.db'}",
            "PLUMBLINE_LEDGER_ANCHOR": str(tmp_path / "anchor"),
        }.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr("components.release_gate.registry._PAUSES", (0.05,))
        yield proxy


@pytest.fixture
def office(proxy: FaultProxy, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Office:
    """On a registered model of the test's own: the server lives longer."""
    from mlflow import MlflowClient

    office = open_office()
    client = MlflowClient()
    for version in client.search_model_versions(f"name='{MODEL}'"):
        client.delete_model_version(MODEL, version.version)
    if client.search_registered_models(f"name='{MODEL}'"):
        client.delete_registered_model(MODEL)
    return office


def _fail(proxy: FaultProxy, fault: str, request: str) -> Any:
    options = dict(_FAULTS[fault])
    if fault == "slow":
        os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = "1"
    return proxy.arm(options.pop("kind"), request, times=99, **options)


def _mend(proxy: FaultProxy) -> None:
    proxy.disarm()
    os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = "30"


@pytest.mark.parametrize("fault", _FAULTS)
def test_a_promotion_that_the_registry_interrupts_is_ended_by_the_same_promotion(
    fault: str, proxy: FaultProxy, office: Office, tmp_path: Path
) -> None:
    champion, said = None, {}
    for number, (where, request) in enumerate(_REQUESTS.items()):
        version = judge_weights(office, tmp_path, f"{fault}-{number}")
        armed = _fail(proxy, fault, request)
        try:
            promote(MODEL, version, "pipeline", office=office)
        except PlumblineError as error:
            said[where] = str(error)
        assert armed.times < 99, f"{where}: no such request was made"
        _mend(proxy)
        view = office.ledger.view(MODEL)
        assert view.state(version) in (State.PROMOTING, State.SOAKING), f"{where}: {view.state(version)}"
        assert view.champion in (champion, version), where
        promote(MODEL, version, "pipeline", office=open_office())
        check_agreement(office, version, champion)
        champion = version
    assert "cannot be fetched" in said["reading the files back"]
    assert "do the same again" in said["moving the alias"]


@pytest.mark.parametrize("fault", ["down", "refuses"])
def test_a_rollback_that_the_registry_interrupts_is_ended_by_the_same_rollback(
    fault: str, proxy: FaultProxy, office: Office, tmp_path: Path
) -> None:
    first = release_weights(office, tmp_path, f"first-{fault}")
    second = release_weights(office, tmp_path, f"second-{fault}")
    _fail(proxy, fault, "registered-models/alias")
    with pytest.raises(RegistryError, match="do the same again"):
        rollback(MODEL, "alice", "it lies", office=office)
    _mend(proxy)
    assert office.ledger.view(MODEL).champion in (first, second)
    rollback(MODEL, "alice", "it lies", office=open_office())
    assert office.ledger.view(MODEL).champion == first
    check_agreement(office, first)


@pytest.mark.parametrize("fault", ["down", "refuses", "broken"])
def test_a_dossier_that_could_not_be_kept_is_said_and_kept_by_the_next_try(
    fault: str, proxy: FaultProxy, office: Office, tmp_path: Path
) -> None:
    version = judge_weights(office, tmp_path, f"kept-{fault}")
    make_weights(tmp_path / "decision", "decision")
    paths = {"decision": str(tmp_path / "decision")}
    _fail(proxy, fault, "PUT /api/2.0/mlflow-artifacts")
    with pytest.raises(RegistryError, match="MLflow failed"):
        keep_dossier(office.registry, MODEL, version, "binding", "c" * 64, paths)
    _mend(proxy)
    for _ in range(2):
        keep_dossier(office.registry, MODEL, version, "binding", "c" * 64, paths)
    kept = office.registry.fetch(MODEL, version, f"dossiers/binding/{'c' * 16}", tmp_path / "fetched")
    assert kept is not None
    assert (kept / "decision" / "manifest.json").is_file()


def test_a_registration_that_is_cut_off_makes_one_version_and_no_half_of_one(
    proxy: FaultProxy, office: Office, tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    proxy.arm("lost answer", "POST /api/2.0/mlflow/model-versions/create", times=1)
    with pytest.raises(RegistryError):
        judge_weights(office, tmp_path, "cut-off")
    _mend(proxy)
    version = judge_weights(office, tmp_path, "cut-off")
    assert [str(one.version) for one in MlflowClient().search_model_versions(f"name='{MODEL}'")] == [version]
    promote(MODEL, version, "pipeline", office=office)
    check_agreement(office, version)
