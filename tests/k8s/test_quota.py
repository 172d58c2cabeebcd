"""The namespace's quota, the queue and the limits hold what the docs tell people to run, beside what always runs."""

from __future__ import annotations

import re
from collections import Counter
from decimal import Decimal
from typing import Any

import pytest
import yaml
from kubernetes.utils.quantity import parse_quantity

from components.shared.trainjob import TrainJobSettings
from pipelines.placement import StepResources, load_profile
from pipelines.settings import load_run_settings
from tests.k8s.manifests import K8S, Manifest, containers, load, name_of, pods

_GPU = "nvidia.com/gpu"
_CONTAINERS_OF_KFP = 2
"""Beside a step's own container: Argo's, and the launcher that KFP puts in; they get what the LimitRange gives."""
_DRIVERS = 4
"""Pods of KFP's drivers at a time."""

Amounts = Counter[str]


def _amounts(requests: dict[str, Any], limits: dict[str, Any], times: int = 1) -> Amounts:
    """As a quota counts them; what has a limit only requests as much."""
    found: Amounts = Counter()
    for kind, amounts in (("limits", limits), ("requests", limits | requests)):
        for name, amount in amounts.items():
            if name != _GPU or kind == "requests":
                found[f"{kind}.{name}"] += parse_quantity(amount) * times  # type: ignore[assignment]
    return found


def _times(amounts: Amounts, times: int) -> Amounts:
    return Counter({name: amount * times for name, amount in amounts.items()})


def _defaults(overlay: list[Manifest]) -> Amounts:
    """Of a container that says nothing."""
    (limits,) = [one for one in overlay if one["kind"] == "LimitRange"]
    (mine,) = [one for one in limits["spec"]["limits"] if one["type"] == "Container"]
    return _amounts(mine["defaultRequest"], mine["default"])


def _drivers(overlay: list[Manifest], number: int) -> Amounts:
    return _times(_defaults(overlay) + Counter({"pods": 1}), number)


def _services(overlay: list[Manifest]) -> Amounts:
    """What runs beside a training, scaled out, and while it is rolled out."""
    most = {
        one["spec"]["scaleTargetRef"]["name"]: one["spec"]["maxReplicas"] + 1
        for one in overlay
        if one["kind"] == "HorizontalPodAutoscaler"
    }
    found: Amounts = Counter()
    for pod in pods(overlay):
        times = most.get(pod.owner.partition("/")[2], 1) if pod.kind != "TrainingRuntime" else 0
        found["pods"] += times
        for container in containers(pod):
            found += _amounts(container["resources"]["requests"], container["resources"]["limits"], times)
    return found


def _step(resources: StepResources, overlay: list[Manifest]) -> Amounts:
    requests = {"cpu": resources.cpu_request, "memory": resources.memory_request}
    limits: dict[str, Any] = {"cpu": resources.cpu, "memory": resources.memory}
    if resources.accelerator:
        limits[resources.accelerator] = resources.accelerator_count
    own = _amounts({name: amount for name, amount in requests.items() if amount}, limits)
    return own + _times(_defaults(overlay), _CONTAINERS_OF_KFP) + Counter({"pods": 1})


def _job(settings: TrainJobSettings) -> Amounts:
    amounts = {"cpu": settings.cpu, "memory": settings.memory, _GPU: settings.gpus_per_node}
    return _amounts(amounts, amounts, settings.nodes) + Counter({"pods": settings.nodes})


def _over(needed: Amounts, hard: dict[str, Any]) -> dict[str, tuple[Decimal, Decimal]]:
    """What is more than there is, by name: (needed, there)."""
    there = {name: parse_quantity(amount) for name, amount in hard.items()}
    return {name: (amount, there[name]) for name, amount in needed.items() if name in there and amount > there[name]}


def _example() -> dict[str, TrainJobSettings]:
    """The jobs of docs/trainjob.md, by section."""
    text = (K8S.parent / "docs" / "trainjob.md").read_text()
    sections = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)[0])
    jobs = {name: one["trainjob"] for name, one in sections.items() if "trainjob" in one}
    return {name: TrainJobSettings.model_validate(job) for name, job in jobs.items()}


def _quota(overlay: list[Manifest]) -> dict[str, Any]:
    (found,) = [one["spec"]["hard"] for one in overlay if one["kind"] == "ResourceQuota"]
    return found


def _needed_by_nodes(overlay: list[Manifest], watching: int = 2) -> Amounts:
    """The example's largest job, and the steps that watch: the two reward models train at the same time."""
    largest = max((_job(job) for job in _example().values()), key=lambda amounts: amounts[f"requests.{_GPU}"])
    train = load_profile("prod").train
    return largest + _times(_step(train, overlay), watching) + _drivers(overlay, _DRIVERS)


@pytest.mark.parametrize("name", ["dev+", "prod+"])
def test_the_quota_holds_the_example_on_several_nodes_beside_the_services(
    name: str, overlays: dict[str, list[Manifest]]
) -> None:
    overlay = overlays[name]
    assert {job.nodes * job.gpus_per_node for job in _example().values()} == {16}
    needed = _needed_by_nodes(overlay) + _services(overlay)
    assert _over(needed, _quota(overlay)) == {}


def test_the_quota_holds_the_run_on_one_gpu_twice_over(overlays: dict[str, list[Manifest]]) -> None:
    """Its reward models train side by side; and while one model is made another may be."""
    overlay = overlays["prod"]
    run = load_run_settings("gpu-example").execution.train
    step = _step(load_profile("prod").resources("train", run).resources, overlay)
    needed = _times(step, 4) + _drivers(overlay, 2 * _DRIVERS) + _services(overlay)
    assert needed[f"requests.{_GPU}"] == 4
    assert _over(needed, _quota(overlay)) == {}


def test_the_queue_holds_it_too(overlays: dict[str, list[Manifest]]) -> None:
    (queue,) = [
        one for one in load((K8S / "kueue.example.yaml").read_text()) if name_of(one) == "ClusterQueue/plumbline"
    ]
    (group,) = queue["spec"]["resourceGroups"]
    (flavor,) = group["flavors"]
    hard = {f"requests.{one['name']}": one["nominalQuota"] for one in flavor["resources"]}
    assert _over(_needed_by_nodes(overlays["prod"]), hard) == {}


def test_a_node_of_the_example_is_within_the_largest_container(overlays: dict[str, list[Manifest]]) -> None:
    (limits,) = [one for one in overlays["prod"] if one["kind"] == "LimitRange"]
    largest = next(one["max"] for one in limits["spec"]["limits"] if one["type"] == "Container")
    for job in _example().values():
        assert parse_quantity(job.cpu) <= parse_quantity(largest["cpu"])
        assert parse_quantity(job.memory) <= parse_quantity(largest["memory"])


@pytest.mark.parametrize("resource", ["pods", "requests.cpu", "requests.memory", "limits.cpu", "limits.memory"])
def test_a_quota_that_is_too_small_is_noticed(resource: str, overlays: dict[str, list[Manifest]]) -> None:
    overlay = overlays["prod+"]
    needed = _needed_by_nodes(overlay) + _services(overlay)
    hard = _quota(overlay) | {resource: needed[resource] - 1}
    assert set(_over(needed, hard)) == {resource}


def test_the_priority_is_kept_to_the_accounts_that_train(overlays: dict[str, list[Manifest]]) -> None:
    """The expressions name what is there: a class, a namespace and accounts that nobody has renamed meanwhile."""
    there = {name_of(one): one for one in overlays["prod+"]}
    policy = there["ValidatingAdmissionPolicy/plumbline-training-priority"]["spec"]
    (condition,) = policy["matchConditions"]
    assert {f"PriorityClass/{name}" for name in re.findall(r"'(.*?)'", condition["expression"])} <= set(there)
    (rule,) = policy["validations"]
    namespace, *accounts = re.findall(r"'(.*?)'", rule["expression"])
    assert there["Namespace/plumbline"]["metadata"]["name"] == namespace
    used = load_profile("prod").service_accounts  # soak evaluates the live model in the place of training
    assert set(accounts) == {used.training, used.promotion, "plumbline-training-nodes"}
    assert all(f"ServiceAccount/{account}" in there for account in accounts)
    binding = there["ValidatingAdmissionPolicyBinding/plumbline-training-priority"]["spec"]
    assert (binding["policyName"], binding["validationActions"]) == ("plumbline-training-priority", ["Deny"])
    assert "matchResources" not in binding, "it holds in every namespace"
