"""What the pipelines share when they place a step: its resources, its code digest, whether it may be cached."""

from __future__ import annotations

from typing import Any

from kfp import dsl, kubernetes

from components.shared.code_version import code_version
from components.shared.images import TRAIN_IMAGE
from components.shared.settings import parse_settings
from components.shared.trainjob import Mount, TrainJobSettings, scratch_name
from pipelines.placement import STEPS, EnvironmentSource, Place, Profile, StepResources, load_profile
from pipelines.settings import RunSettings

__all__ = ["code_version", "pipeline_config", "place", "places", "with_nodes_placed"]

_RETRY_BACKOFF, _RETRY_WITHIN = "30s", "3600s"
_QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
_QUEUE_PRIORITY_LABEL = "kueue.x-k8s.io/priority-class"
_WEBHOOK = "PLUMBLINE_WEBHOOK_URL"
_SENDS_NOTICES_LABEL = "plumbline.dev/sends-notices"
"""A NetworkPolicy of k8s/ opens the way to the webhook to pods with this label."""
_PRIORITY_LABEL = "plumbline.dev/priority-class"
"""KFP cannot set a pod's priority class; an admission policy of k8s/ reads it from this label."""


def places(settings: RunSettings) -> tuple[Place, Place]:
    """What light steps and training steps get, by the run's profile and settings.

    Raises:
        InputError: The profile cannot be used.
    """
    execution = settings.execution
    profile = load_profile(execution.profile)
    return profile.resources("light", execution.light), profile.resources("train", execution.train)


def with_nodes_placed(settings: RunSettings, stage: str) -> Any:
    """A stage's section; where it trains on several nodes, they get what the profile says of training steps.

    Raises:
        InputError: The profile cannot be used, or an image is not pinned by digest where it wants that.
    """
    section = getattr(settings, stage)
    job: TrainJobSettings | None = getattr(section, "trainjob", None)
    if job is None:
        return section
    _, train = places(settings)
    resources, profile = train.for_step(stage), train.profile
    told = {
        "image": train.pinned(job.image, where=f"{stage}.trainjob") if job.image else train.image(stage, TRAIN_IMAGE),
        "queue": resources.queue,
        "priority": resources.priority,
        "node_selector": resources.node_selector,
        "tolerations": resources.tolerations,
        "pull_secrets": profile.pull_secrets,
        "scratch": profile.scratch,
        "shared_memory": resources.shared_memory and resources.shared_memory.size,
        "service_account": profile.node_service_account,
        "secrets": {name: one.name for one in profile.secrets if one.is_for(stage) for name in one.variables},
        "variables": _variables(profile, stage),
        **_claims(profile, job),
    }
    inherited = {name: value for name, value in told.items() if value and name not in job.model_fields_set}
    values = job.model_dump(mode="json", exclude_unset=True) | inherited
    placed = parse_settings(values, TrainJobSettings, where=f"{stage}.trainjob")
    return section.model_copy(update={"trainjob": placed})


def _variables(profile: Profile, stage: str) -> list[str]:
    """Names of what a step gets that is no secret."""
    sources = [one for one in profile.config_maps if one.is_for(stage)]
    return sorted({*profile.variables, *(name for one in sources for name in one.variables)})


def _claims(profile: Profile, job: TrainJobSettings) -> dict[str, Any]:
    """The claim that step and nodes share, as the step mounts it, and the step's other claims.

    It is the one whose claim or path the job names; where it names neither, the default's, else the profile's first.
    """

    def is_meant(mount: Mount) -> bool:
        by_path = mount.path.rstrip("/") == job.folder.rstrip("/") or "folder" not in job.model_fields_set
        by_claim = mount.claim == job.claim or "claim" not in job.model_fields_set
        return by_path and by_claim

    meant = [mount for mount in profile.mounts if is_meant(mount)]
    shared = next((mount for mount in meant if mount.claim == job.claim), meant[0] if meant else None)
    if shared is None:
        others = [mount for mount in profile.mounts if mount.path.rstrip("/") != job.folder.rstrip("/")]
        return {"mounts": [one.model_dump() for one in others]}
    mine = {"claim": shared.claim, "folder": shared.path, "sub_path": shared.sub_path}
    return mine | {"mounts": [mount.model_dump() for mount in profile.mounts if mount is not shared]}


def pipeline_config(settings: RunSettings) -> dsl.PipelineConfig:
    """What holds for a whole run, by its profile."""
    return dsl.PipelineConfig(active_deadline_seconds=load_profile(settings.execution.profile).run_timeout_seconds)


def place(task: dsl.PipelineTask, where: Place, *, name: str, cache: bool) -> dsl.PipelineTask:
    """Gives a step its image, resources, environment, name and caching.

    Args:
        task: The step.
        where: What its container gets.
        name: How the UI shows it.
        cache: True only for pure steps: same inputs, parameters and code, same outputs, and no service changed.

    Returns:
        The same task.

    Raises:
        InputError: Its image is not pinned by digest, where the profile wants it to be.
    """
    assert name in STEPS, f"{name}: profiles would not know the step; add it to pipelines.placement.STEPS"
    resources, profile = where.for_step(name), where.profile
    task.set_display_name(name)
    task.set_caching_options(cache)
    task.set_container_image(where.image(name, default=_own_image(task)))
    _give_resources(task, resources)
    _give_environment(task, profile, name)
    _give_volumes(task, profile, resources)
    _schedule(task, profile, resources)
    return task


def _own_image(task: dsl.PipelineTask) -> str:
    """The image that the component names itself."""
    spec = task.container_spec
    assert spec is not None, f"{task.name} has no container"
    return spec.image


def _give_resources(task: dsl.PipelineTask, resources: StepResources) -> None:
    if resources.cpu_request:
        task.set_cpu_request(resources.cpu_request)
    if resources.cpu:
        task.set_cpu_limit(resources.cpu)
    if resources.memory_request:
        task.set_memory_request(resources.memory_request)
    if resources.memory:
        task.set_memory_limit(resources.memory)
    if resources.accelerator and resources.accelerator_count:
        task.set_accelerator_type(resources.accelerator).set_accelerator_limit(resources.accelerator_count)
    if resources.retries:
        task.set_retry(
            num_retries=resources.retries,
            backoff_duration=resources.retry_backoff or _RETRY_BACKOFF,
            backoff_factor=2.0,
            backoff_max_duration=resources.retry_within or _RETRY_WITHIN,
        )
    if resources.timeout_seconds:
        kubernetes.set_timeout(task, resources.timeout_seconds)


def _give_environment(task: dsl.PipelineTask, profile: Profile, name: str) -> None:
    """Variables by reference; a local run takes them from its own environment."""

    def mine(sources: list[EnvironmentSource]) -> list[EnvironmentSource]:
        return [source for source in sources if source.is_for(name)]

    for source in mine(profile.config_maps):
        keys = {variable: variable for variable in source.variables}
        kubernetes.use_config_map_as_env(task, source.name, keys, optional=source.optional)
    for source in mine(profile.secrets):
        keys = {variable: variable for variable in source.variables}
        kubernetes.use_secret_as_env(task, source.name, keys, optional=source.optional)
        if _WEBHOOK in source.variables:
            kubernetes.add_pod_label(task, _SENDS_NOTICES_LABEL, "true")
    for variable, field in profile.pod_fields.items():
        kubernetes.use_field_path_as_env(task, variable, field)
    for variable, value in profile.variables.items():
        task.set_env_variable(variable, value)


def _give_volumes(task: dsl.PipelineTask, profile: Profile, resources: StepResources) -> None:
    for mount in profile.mounts:
        kubernetes.mount_pvc(task, mount.claim, mount.path, mount.sub_path)
    for path, size in profile.scratch.items():
        kubernetes.empty_dir_mount(task, scratch_name(path), path, size_limit=size)
    if resources.shared_memory:
        kubernetes.empty_dir_mount(task, "shm", "/dev/shm", medium="Memory", size_limit=resources.shared_memory.size)


def _schedule(task: dsl.PipelineTask, profile: Profile, resources: StepResources) -> None:
    """Which nodes, in which queue, as whom, and how the image is pulled."""
    for label, value in (resources.node_selector or {}).items():
        kubernetes.add_node_selector(task, label, value)
    for one in resources.tolerations or []:
        kubernetes.add_toleration(task, one.key, one.operator, one.value, one.effect)
    if resources.queue:
        kubernetes.add_pod_label(task, _QUEUE_LABEL, resources.queue)
    if resources.priority:
        kubernetes.add_pod_label(task, _QUEUE_PRIORITY_LABEL, resources.priority)
        kubernetes.add_pod_label(task, _PRIORITY_LABEL, resources.priority)
    if profile.pull_policy:
        kubernetes.set_image_pull_policy(task, profile.pull_policy)
    if profile.pull_secrets:
        kubernetes.set_image_pull_secrets(task, profile.pull_secrets)
    if profile.security:
        kubernetes.set_security_context(task, **profile.security.model_dump())
