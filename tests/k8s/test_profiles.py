"""What a run's profile names, the manifests have: accounts, ConfigMaps, Secrets, claims, queue and priority."""

from __future__ import annotations

import re

import pytest

from pipelines.placement import load_profile
from tests.k8s.manifests import K8S, Manifest, load, name_of


@pytest.mark.parametrize("name", ["dev", "prod"])
def test_everything_that_a_profile_names_is_in_its_overlay(name: str, overlays: dict[str, list[Manifest]]) -> None:
    profile, there = load_profile(name), {name_of(manifest): manifest for manifest in overlays[name]}
    secrets = {one["metadata"]["name"]: one["stringData"] for one in load((K8S / "secrets.example.yaml").read_text())}
    wanted = [f"Namespace/{profile.namespace}"]
    wanted += [f"ServiceAccount/{account}" for account in profile.service_accounts.model_dump().values()]
    wanted += [f"PersistentVolumeClaim/{mount.claim}" for mount in profile.mounts]
    wanted += [f"LocalQueue/{profile.train.queue}", f"PriorityClass/{profile.train.priority}"]
    wanted += [f"WorkloadPriorityClass/{profile.train.priority}"]
    assert [one for one in wanted if one not in there] == []
    for source in profile.config_maps:
        data = there[f"ConfigMap/{source.name}"]["data"]
        assert source.optional or set(source.variables) <= set(data)
    for source in profile.secrets:
        assert set(source.variables) <= set(secrets[source.name])
    assert set(profile.pull_secrets) <= set(secrets)


@pytest.mark.parametrize("name", ["dev", "prod"])
def test_images_are_named_as_the_build_names_them(name: str) -> None:
    (kustomization,) = load((K8S / "overlays" / name / "kustomization.yaml").read_text())
    assert kustomization["images"]
    for image in kustomization["images"]:
        assert image["newName"].rpartition("/")[2] == image["name"]


@pytest.mark.parametrize("name", ["dev", "prod"])
def test_whoever_starts_a_run_may_use_its_account(name: str, overlays: dict[str, list[Manifest]]) -> None:
    """KFP asks since 2.18: the schedule of release runs has its own account only, recurring runs' controller both."""
    accounts, there = load_profile(name).service_accounts, {name_of(one): one for one in overlays[name]}
    allowed = {
        "plumbline-use-promotion": {accounts.promotion},
        "plumbline-use-accounts": set(accounts.model_dump().values()),
    }
    for role, names in allowed.items():
        (rule,) = there[f"Role/{role}"]["rules"]
        assert (rule["resources"], rule["verbs"], set(rule["resourceNames"])) == (["serviceaccounts"], ["use"], names)
    (starter,) = there["RoleBinding/plumbline-use-promotion"]["subjects"]
    assert (
        starter["name"]
        == there["CronJob/plumbline-release-due"]["spec"]["jobTemplate"]["spec"]["template"]["spec"][
            "serviceAccountName"
        ]
    )
    (controller,) = there["RoleBinding/plumbline-use-accounts"]["subjects"]
    assert controller == {"kind": "ServiceAccount", "name": "ml-pipeline-scheduledworkflow", "namespace": "kubeflow"}


@pytest.mark.parametrize("name", ["dev", "prod"])
def test_what_the_docs_put_into_the_config_map_reaches_the_steps(name: str) -> None:
    operations = (K8S.parent / "docs" / "operations.md").read_text()
    told = set(re.findall(r"\b(HF_HUB_OFFLINE|PLUMBLINE_(?:PRICE_\w+|CURRENCY))\b", operations))
    assert len(told) == 4
    sources = [one for one in load_profile(name).config_maps if one.name == "plumbline-config"]
    assert told <= {variable for one in sources for variable in one.variables}
