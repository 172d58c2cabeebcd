"""Manifests against the schemas of the kinds that they name.

Kubernetes' own kinds against the OpenAPI of its three newest minor versions, as the package `kubernetes-validate`
carries them, strict: an unknown field is an error. Custom resources against `schemas/`; where each comes from stands in
`schemas/SOURCES.md`. A kind without a schema is a problem, not a pass.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
from kubernetes_validate.utils import SchemaNotFoundError

from tests.k8s.manifests import Manifest, name_of

__all__ = ["CUSTOM", "VERSIONS", "schema_problems"]

VERSIONS = ("1.35", "1.36", "1.37")
CUSTOM = Path(__file__).with_name("schemas")

_KUBERNETES_GROUPS = frozenset(
    {
        "",
        "admissionregistration.k8s.io",
        "apps",
        "autoscaling",
        "batch",
        "policy",
        "networking.k8s.io",
        "rbac.authorization.k8s.io",
        "scheduling.k8s.io",
    }
)


def schema_problems(manifest: Manifest) -> list[str]:
    """What is wrong with a manifest's shape; empty if nothing is."""
    api_version, kind = manifest.get("apiVersion"), manifest.get("kind")
    if not isinstance(api_version, str) or not isinstance(kind, str):
        return [f"{name_of(manifest)}: apiVersion and kind are needed"]
    group = api_version.rpartition("/")[0]
    if group in _KUBERNETES_GROUPS:
        return [problem for version in VERSIONS for problem in _against_kubernetes(manifest, version)]
    schema = _custom_schema(f"{group}_{api_version.rpartition('/')[2]}_{kind}")
    if schema is None:
        return [f"{name_of(manifest)}: no schema of {api_version} {kind} in {CUSTOM}"]
    return [
        f"{name_of(manifest)}: {_place(error)}: {error.message}" for error in _validator(schema).iter_errors(manifest)
    ]


def _against_kubernetes(manifest: Manifest, version: str) -> list[str]:
    try:
        kubernetes_validate.validate(manifest, version, strict=True)
    except SchemaNotFoundError as error:
        return [f"{name_of(manifest)}: {error.message}"]
    except kubernetes_validate.ValidationError as error:
        return [f"{name_of(manifest)}: Kubernetes {version}: {_place(error)}: {error.message}"]
    return []


@cache
def _custom_schema(name: str) -> str | None:
    path = CUSTOM / f"{name}.json"
    return path.read_text(encoding="utf-8") if path.is_file() else None


@cache
def _validator(schema: str) -> jsonschema.Draft7Validator:
    return jsonschema.Draft7Validator(json.loads(schema))


def _place(error: Any) -> str:
    return ".".join(str(part) for part in error.absolute_path) or "(top)"
