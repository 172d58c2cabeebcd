"""Every overlay passes every check, and every check can fail."""

from __future__ import annotations

import copy
import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.review.settings import ReviewSettings
from components.shared.settings import parse_settings
from tests.k8s.manifests import K8S, OVERLAYS, KubectlError, Manifest, build, load, name_of
from tests.k8s.rules import RULES, breaches, placeholders
from tests.k8s.schemas import CUSTOM, VERSIONS, schema_problems

_NEGATIVE: dict[str, list[dict[str, Any]]] = yaml.safe_load(Path(__file__).with_name("negative.yaml").read_text())
_CASES = [(rule, change) for rule, changes in _NEGATIVE.items() for change in changes]
_NODE_JOB = "spec.template.spec.replicatedJobs.0"
_NODE_POD = f"{_NODE_JOB}.template.spec.template.spec"
_NAMES = [path.name + components for path in OVERLAYS for components in ("", "+")]

Overlays = dict[str, list[Manifest]]


@pytest.mark.parametrize("name", _NAMES)
def test_an_overlay_fits_the_schemas_of_every_supported_version(name: str, overlays: Overlays) -> None:
    assert [problem for manifest in overlays[name] for problem in schema_problems(manifest)] == []


@pytest.mark.parametrize("name", _NAMES)
@pytest.mark.parametrize("rule", RULES)
def test_an_overlay_keeps_the_rule(rule: str, name: str, overlays: Overlays) -> None:
    assert RULES[rule](overlays[name]) == []


def test_every_rule_has_a_manifest_that_breaks_it() -> None:
    assert set(_NEGATIVE) == set(RULES)


@pytest.mark.parametrize(("rule", "change"), _CASES, ids=[f"{rule}-{n}" for n, (rule, _) in enumerate(_CASES)])
def test_a_manifest_that_breaks_one_rule_is_caught_by_that_rule_alone(
    rule: str, change: dict[str, Any], overlays: Overlays
) -> None:
    assert set(breaches(_changed(overlays["dev+"], change))) == {rule, *change.get("also", [])}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    "change",
    [
        {
            "object": "Deployment/plumbline-review",
            "at": "spec.template.spec.containers.0.imagePolicy",
            "value": "Always",
        },
        {"object": "Deployment/plumbline-review", "at": "spec.selector"},
        {"object": "Service/plumbline-review", "at": "spec.ports.0.port", "value": "http"},
        {"object": "CronJob/plumbline-release-due", "at": "spec.concurrency", "value": 1},
        {"object": "CronJob/plumbline-release-due", "at": "apiVersion", "value": "batch/v1beta1"},
        {"object": "NetworkPolicy/review", "at": "spec.ingress.0.form", "value": []},
        {"object": "HorizontalPodAutoscaler/plumbline-review", "at": "spec.maxReplicas"},
        {
            "object": "ValidatingAdmissionPolicy/plumbline-training-priority",
            "at": "spec.validations.0.rule",
            "value": "true",
        },
    ],
)
def test_a_manifest_of_another_shape_is_refused_by_kubernetes_schema(
    change: dict[str, Any], version: str, overlays: Overlays
) -> None:
    manifests = _changed(overlays["dev"], change)
    (wrong,) = [manifest for manifest in manifests if name_of(manifest) == change["object"]]
    problems = schema_problems(wrong)
    assert any(version in problem for problem in problems)


@pytest.mark.parametrize(
    "change",
    [
        {"object": "LocalQueue/plumbline", "at": "spec.clusterQueue"},
        {"object": "WorkloadPriorityClass/plumbline-training", "at": "value", "value": "high"},
        {"object": "Gateway/plumbline", "at": "spec.servers.0.port.number", "value": "443"},
        {"object": "Gateway/plumbline", "at": "spec.servers.0.tls.mode", "value": "PLAIN"},
        {"object": "VirtualService/plumbline-review", "at": "spec.http.0.headers.requests", "value": {}},
        {"object": "PeerAuthentication/plumbline-review", "at": "spec.mtls.mode", "value": "HARD"},
        {"object": "RequestAuthentication/plumbline-review", "at": "spec.jwtRules.0.issuer"},
        {"object": "AuthorizationPolicy/plumbline-review", "at": "spec.rules.0.when", "value": [{"value": "x"}]},
        {"object": "AuthorizationPolicy/plumbline-review", "at": "spec.action", "value": "PERMIT"},
        {"object": "ServiceMonitor/plumbline-review", "at": "spec.selector"},
        {"object": "PrometheusRule/plumbline", "at": "spec.groups.0.rules.0.expr"},
        {"object": "PrometheusRule/plumbline", "at": "kind", "value": "PrometheusRules"},
        {"object": "TrainingRuntime/plumbline-torch", "at": "spec.template.spec.failurePolicy.restarts", "value": 0},
        {"object": "TrainingRuntime/plumbline-torch", "at": "spec.mlPolicy.pytorch", "value": {}},
        {"object": "TrainingRuntime/plumbline-torch", "at": f"{_NODE_JOB}.template.spec.backoffLimits", "value": 0},
        {"object": "TrainingRuntime/plumbline-torch", "at": f"{_NODE_POD}.restartPolicies", "value": "Never"},
        {"object": "TrainingRuntime/plumbline-torch", "at": f"{_NODE_POD}.containers.0.name"},
    ],
    ids=lambda change: f"{change['object']}-{change['at']}",
)
def test_a_custom_resource_of_another_shape_is_refused(change: dict[str, Any], overlays: Overlays) -> None:
    wrong = _find(_changed(overlays["prod+"], change), change)
    assert schema_problems(wrong) != []


@pytest.mark.parametrize("name", ["external-secrets.example.yaml", "kueue.example.yaml"])
def test_examples_fit_their_schemas(name: str) -> None:
    assert [problem for manifest in load((K8S / name).read_text()) for problem in schema_problems(manifest)] == []


def test_an_external_secret_of_another_shape_is_refused() -> None:
    for at in ("spec.data.0.remoteRef.key", "spec.data.0.secretKey", "spec.data.0.remoteref"):
        manifest = copy.deepcopy(load((K8S / "external-secrets.example.yaml").read_text())[1])
        _set(manifest, at, "x" if at.endswith("ref") else None)
        assert schema_problems(manifest) != [], at


def test_the_template_of_secrets_cannot_be_applied_as_it_stands() -> None:
    templates = load((K8S / "secrets.example.yaml").read_text())
    assert all(schema_problems(manifest) for manifest in templates)
    assert len(placeholders(templates)) == len(templates)


def test_secrets_that_are_named_are_in_the_template_and_in_the_external_secrets(overlays: Overlays) -> None:
    named = {
        name for manifests in overlays.values() for m in manifests for name in re.findall(r"plumbline-[a-z-]+", str(m))
    }
    template = _keys_by_name(load((K8S / "secrets.example.yaml").read_text()), ("stringData",))
    external = load((K8S / "external-secrets.example.yaml").read_text())
    asked = {key for manifests in overlays.values() for manifest in manifests for key in _secret_keys(manifest)}
    for name, key in asked:
        assert key is None or key in template[name], (name, key)
    made = {one["spec"]["target"]["name"] for one in external if one["kind"] == "ExternalSecret"}
    assert made == set(template) - {"plumbline-dev-services"}
    assert set(template) <= named | {"plumbline-registry"}


def test_only_prod_pins_images_by_digest_and_both_say_what_is_left_to_edit(overlays: Overlays) -> None:
    ours = re.compile(r"plumbline/plumbline-(light|review)@sha256:[0-9a-f]{64}")
    images = {name: re.findall(r"'image': '([^']*plumbline[^']*)'", str(found)) for name, found in overlays.items()}
    assert images["prod"]
    assert all(ours.search(image) for name in ("prod", "prod+") for image in images[name])
    assert any("sha256:000" in line for line in placeholders(overlays["prod"]))
    assert all("example.com" in line for line in placeholders(overlays["dev"]))


def test_the_overlay_of_the_readme_is_all_that_must_be_said(tmp_path: Path) -> None:
    """With addresses and digests in place of the placeholders it is fit to be applied."""
    text = re.findall(r"```yaml\n(.*?)```", (K8S / "README.md").read_text(), re.DOTALL)[0]
    base = os.path.relpath(K8S / "overlays" / "prod", tmp_path / "my-overlay")
    text = text.replace("../k8s/overlays/prod", base).replace("0" * 64, "a" * 64)
    text = re.sub(r"(?<!name: registry\.)example\.com", "acme.test", text)
    (tmp_path / "my-overlay").mkdir()
    (tmp_path / "my-overlay" / "kustomization.yaml").write_text(text)
    manifests = build(tmp_path / "my-overlay")
    assert placeholders(manifests) == []
    assert breaches(manifests) == {}
    assert [problem for manifest in manifests for problem in schema_problems(manifest)] == []
    (settings,) = [one for one in manifests if name_of(one) == "ConfigMap/plumbline-review-settings"]
    parsed = parse_settings(yaml.safe_load(settings["data"]["review.yaml"]), ReviewSettings, where="review.yaml")
    assert list(parsed.roles.release_manager) == ["alice@acme.test", "bob@acme.test"]


@pytest.mark.parametrize("name", _NAMES)
def test_the_review_service_understands_its_settings(name: str, overlays: Overlays) -> None:
    (config,) = [m for m in overlays[name] if name_of(m) == "ConfigMap/plumbline-review-settings"]
    settings = parse_settings(yaml.safe_load(config["data"]["review.yaml"]), ReviewSettings, where=name)
    assert settings.login == ("header" if name.startswith("prod") else "local")


def test_the_login_header_reaches_the_service_from_the_sidecar_only(overlays: Overlays) -> None:
    found = {name_of(manifest): manifest for manifest in overlays["prod"]}
    settings = yaml.safe_load(found["ConfigMap/plumbline-review-settings"]["data"]["review.yaml"])
    assert settings["trusted_peers"] == ["127.0.0.6/32"]
    route = found["VirtualService/plumbline-review"]["spec"]["http"][0]
    assert settings["user_header"] in route["headers"]["request"]["remove"]
    rules = found["RequestAuthentication/plumbline-review"]["spec"]["jwtRules"]
    assert [header["header"] for rule in rules for header in rule["outputClaimToHeaders"]] == [settings["user_header"]]
    policy = found["AuthorizationPolicy/plumbline-review"]["spec"]
    assert policy["action"] == "ALLOW"
    for rule in policy["rules"]:
        (source,) = [one["source"] for one in rule["from"]]
        assert source["principals"]
        assert all(principal.endswith("ingressgateway-service-account") for principal in source["principals"])
        assert source["requestPrincipals"] == [rules[0]["issuer"] + "/*"]
    selected = found["Deployment/plumbline-review"]["spec"]["template"]["metadata"]["labels"]
    for kind in ("PeerAuthentication", "RequestAuthentication", "AuthorizationPolicy"):
        selector = found[f"{kind}/plumbline-review"]["spec"]["selector"]["matchLabels"]
        assert selector.items() <= selected.items()
    assert found["PeerAuthentication/plumbline-review"]["spec"]["mtls"] == {"mode": "STRICT"}


def test_an_overlay_that_kubectl_cannot_build_is_an_error(tmp_path: Path, overlays: Overlays) -> None:
    (tmp_path / "kustomization.yaml").write_text("resources: [nowhere.yaml]\n")
    with pytest.raises(KubectlError, match="nowhere"):
        build(tmp_path)


def test_every_vendored_schema_is_named_with_its_source() -> None:
    sources = (CUSTOM / "SOURCES.md").read_text()
    assert [path.name for path in CUSTOM.glob("*.json") if f"`{path.stem}`" not in sources] == []


def _changed(manifests: list[Manifest], change: dict[str, Any]) -> list[Manifest]:
    found = copy.deepcopy(manifests)
    if "add" in change:
        return [*found, change["add"]]
    (target,) = [manifest for manifest in found if name_of(manifest) == change["object"]]
    if "at" not in change:
        return [manifest for manifest in found if manifest is not target]
    _set(target, change["at"], change.get("value"))
    return found


def _set(thing: Any, at: str, value: Any) -> None:
    """Sets, or with None removes, what is at a path."""
    *way, last = [part.replace("\\.", ".") for part in re.split(r"(?<!\\)\.", at)]
    for part in way:
        thing = thing[int(part)] if isinstance(thing, list) else thing.setdefault(part, {})
    key = int(last) if isinstance(thing, list) else last
    if value is None:
        del thing[key]
    else:
        thing[key] = value


def _find(manifests: list[Manifest], change: dict[str, Any]) -> Manifest:
    kind, _, name = change["object"].partition("/")
    kind = change["value"] if change["at"] == "kind" else kind
    (found,) = [manifest for manifest in manifests if name_of(manifest) == f"{kind}/{name}"]
    return found


def _keys_by_name(manifests: list[Manifest], fields: tuple[str, ...]) -> dict[str, set[str]]:
    return {one["metadata"]["name"]: {key for field in fields for key in one.get(field) or {}} for one in manifests}


def _secret_keys(thing: Any) -> set[tuple[str, str | None]]:
    """(Secret, key) that a manifest names; the key is None where it takes them all."""
    found: set[tuple[str, str | None]] = set()
    if isinstance(thing, dict):
        if "secretKeyRef" in thing:
            found.add((thing["secretKeyRef"]["name"], thing["secretKeyRef"]["key"]))
        if "secretRef" in thing:
            found.add((thing["secretRef"]["name"], None))
        if "secretName" in thing:
            found |= {(thing["secretName"], item["key"]) for item in thing.get("items", [])}
        for value in thing.values():
            found |= _secret_keys(value)
    elif isinstance(thing, list):
        for value in thing:
            found |= _secret_keys(value)
    return found
