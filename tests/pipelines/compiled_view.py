"""A compiled pipeline as a reviewer reads it: tasks, edges, images, resources, references, caching; nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

__all__ = ["view"]


def view(path: Path) -> str:
    """The IR YAML at `path` as a short YAML text, one entry a task, in the order of their names."""
    spec, *platforms = list(yaml.safe_load_all(path.read_text()))
    platform = platforms[0]["platforms"]["kubernetes"] if platforms else {}
    parameters = spec["root"]["inputDefinitions"]["parameters"]
    shown = {
        "pipeline": spec["pipelineInfo"]["name"],
        "run_timeout_seconds": platform.get("pipelineConfig", {}).get("activeDeadlineSeconds"),
        "parameters": {name: value["parameterType"] for name, value in sorted(parameters.items())},
        "tasks": _tasks(spec, platform, spec["root"]["dag"], prefix=""),
    }
    return yaml.safe_dump(shown, sort_keys=False, default_flow_style=None, width=150)


def _tasks(spec: dict[str, Any], platform: dict[str, Any], dag: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Every task of a DAG by path, and of the DAGs in it; a DAG's own entry says when it runs."""
    names = {key: task["taskInfo"]["name"] for key, task in dag["tasks"].items()}
    found: dict[str, Any] = {}
    for key, task in sorted(dag["tasks"].items(), key=lambda item: names[item[0]]):
        path = f"{prefix}{names[key]}"
        component = spec["components"][task["componentRef"]["name"]]
        entry: dict[str, Any] = {"after": sorted(names[other] for other in _producers(task))}
        trigger = task.get("triggerPolicy", {})
        if "condition" in trigger:
            entry["when"] = trigger["condition"]
        if trigger.get("strategy") == "ALL_UPSTREAM_TASKS_COMPLETED":
            entry["exit_handler"] = True
        if "dag" in component:
            found[path] = entry
            found |= _tasks(spec, platform, component["dag"], prefix=f"{path} > ")
        else:
            label = component["executorLabel"]
            executor = spec["deploymentSpec"]["executors"][label]
            extra = platform.get("deploymentSpec", {}).get("executors", {}).get(label, {})
            found[path] = entry | _leaf(task, executor, extra)
    return found


def _producers(task: dict[str, Any]) -> set[str]:
    inputs = task.get("inputs", {})
    named = {
        value[kind]["producerTask"]
        for group in ("parameters", "artifacts")
        for value in inputs.get(group, {}).values()
        for kind in ("taskOutputParameter", "taskOutputArtifact")
        if kind in value
    }
    return named | set(task.get("dependentTasks", []))


def _leaf(task: dict[str, Any], executor: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    if "importer" in executor:
        return {"imports": executor["importer"]["typeSchema"]["schemaTitle"]}
    container = executor["container"]
    resources = dict(container.get("resources", {}))
    accelerator = resources.pop("accelerator", None)
    retry = task.get("retryPolicy")
    shown = {
        "cached": bool((task.get("cachingOptions") or {}).get("enableCache")),
        "image": container["image"],
        "pull": [extra.get("imagePullPolicy"), *(one["secretName"] for one in extra.get("imagePullSecret", []))],
        "resources": {name: value for name, value in resources.items() if name in _QUANTITIES},
        "accelerator": accelerator and {accelerator["resourceType"]: accelerator["resourceCount"]},
        "retries": retry and {name: retry[name] for name in sorted(retry)},
        "timeout_seconds": extra.get("activeDeadlineSeconds"),
        "nodes": extra.get("nodeSelector", {}).get("labels"),
        "tolerations": extra.get("tolerations"),
        "labels": extra.get("podMetadata", {}).get("labels"),
        "security": extra.get("securityContext"),
        "volumes": {
            one["mountPath"]: f"{one.get('medium', 'disk')} {one['sizeLimit']}"
            for one in extra.get("emptyDirMounts", [])
        }
        | {one["mountPath"]: f"claim {one['constant']}" for one in extra.get("pvcMount", [])},
        "config_maps": _references(extra.get("configMapAsEnv", []), "configMapName"),
        "secrets": _references(extra.get("secretAsEnv", []), "secretName"),
        "pod_fields": {one["name"]: one["fieldPath"] for one in extra.get("fieldPathAsEnv", [])},
        "variables": {one["name"]: one["value"] for one in container.get("env", [])},
    }
    return {name: value for name, value in shown.items() if value not in (None, [], {}, [None])}


_QUANTITIES = ("resourceCpuRequest", "resourceCpuLimit", "resourceMemoryRequest", "resourceMemoryLimit")


def _references(sources: list[dict[str, Any]], name: str) -> list[str]:
    return [
        f"{one[name]}: {', '.join(key['envVar'] for key in one['keyToEnv'])}"
        + (" (optional)" if one.get("optional") else "")
        for one in sources
    ]
