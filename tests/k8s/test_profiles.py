"""What a run's profile names, the manifests have: accounts, ConfigMaps, Secrets, claims, queue and priority."""

from __future__ import annotations

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
