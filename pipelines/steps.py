"""What the pipelines share when they place a step: its resources, its code digest, whether it may be cached."""

from __future__ import annotations

from kfp import dsl

from components.shared.code_version import code_version
from pipelines.settings import StepResources

__all__ = ["code_version", "place"]


def place(task: dsl.PipelineTask, resources: StepResources, *, name: str, cache: bool) -> dsl.PipelineTask:
    """Gives a step its image, resources, name and caching.

    Args:
        task: The step.
        resources: What its container gets.
        name: How the UI shows it.
        cache: True only for pure steps: same inputs, parameters and code, same outputs, and no service changed.

    Returns:
        The same task.
    """
    task.set_display_name(name)
    task.set_caching_options(cache)
    if resources.image:
        task.set_container_image(resources.image)
    if resources.cpu:
        task.set_cpu_limit(resources.cpu)
    if resources.memory:
        task.set_memory_limit(resources.memory)
    if resources.accelerator:
        task.set_accelerator_type(resources.accelerator).set_accelerator_limit(resources.accelerator_count)
    if resources.retries:
        task.set_retry(num_retries=resources.retries, backoff_duration="30s", backoff_factor=2.0)
    return task
