"""Where it all came from: release policy, settings, digests and time."""

from __future__ import annotations

import re
from typing import Any

import yaml
from markupsafe import Markup

from components.report.parts import ROLES, Missing, Parts, dig
from components.report.settings import RunInfo
from components.shared.report import (
    Section,
    details,
    figures,
    join,
    note,
    paragraph,
    render_template,
    svg_bars,
    table,
)

__all__ = ["policy_section", "provenance_section", "redact", "settings_section", "time_section"]

_SECRET_NAME = re.compile(r"pass(word|wd)?$|secret|token$|api_?key|access_?key|credential|webhook", re.IGNORECASE)
_URL_USER = re.compile(r"(?<=://)[^/@\s]+@")


def policy_section(parts: Parts) -> Section | Missing:
    """The release policy by which the gate judged."""
    policy = dig(parts.decision, "policy")
    if policy is None:
        return Missing("Release policy", parts.why_missing("decision"))
    looser = policy.get("looser_than_production") or []
    summary = figures([("Policy", policy.get("name")), ("Version", policy.get("version"))])
    strict = note("Nothing in this policy is looser than production's.", tone="good")
    loose = note(
        f"{len(looser)} points are looser than production's policy; they are listed at the top of this page.",
        tone="warn",
    )
    digest = render_template(
        "<p>Digest <code>{{ digest }}</code></p>", digest=str(policy.get("digest") or "not recorded")
    )
    return Section("Release policy", join([summary, loose if looser else strict, digest]))


def settings_section(run: RunInfo) -> Section:
    """The run's settings, secrets blacked out."""
    text = yaml.safe_dump(redact(run.settings), sort_keys=False, allow_unicode=True, width=100)
    return Section("Settings", details("All settings of this run", render_template("<pre>{{ text }}</pre>", text=text)))


def provenance_section(parts: Parts, run: RunInfo) -> Section:
    """Digest of every artifact, of the code that made it, and of what was judged."""
    rows = []
    for role, kind in ROLES.items():
        manifest = parts.manifests.get(role)
        if manifest is None:
            rows.append([role.replace("_", " "), kind, parts.why_missing(role), None, None])
            continue
        code = str(manifest.get("code_version") or "")
        rows.append(
            [
                role.replace("_", " "),
                kind,
                _code(manifest["digest"]),
                _code(code[:12]),
                str(manifest.get("finished_at") or "")[:19],
            ]
        )
    judged = dig(parts.decision, "digests") or {}
    facts = [[name.replace("_", " "), _code(str(digest))] for name, digest in judged.items() if digest]
    return Section(
        "Digests",
        join(
            [
                paragraph(
                    f"Run {run.run_id}, status {run.status}, seed {run.seed if run.seed is not None else 'not set'}."
                ),
                table(["artifact", "kind", "sha256 of its content", "code", "made at (UTC)"], rows),
                table(["judged by the gate", "sha256"], facts) if facts else None,
            ]
        ),
    )


def time_section(parts: Parts, run: RunInfo) -> Section:
    """Seconds of each stage; from the artifacts' own manifests when the pipeline did not say."""
    seconds = run.seconds or {
        role: manifest["seconds"] for role, manifest in parts.manifests.items() if manifest.get("seconds") is not None
    }
    if not seconds:
        return Section("Time", note("No stage recorded its time."))
    chart = svg_bars(
        [name.replace("_", " ") for name in seconds],
        list(seconds.values()),
        title="Time per stage",
        value_label="seconds (wall clock)",
    )
    rows = [[name.replace("_", " "), value] for name, value in seconds.items()]
    total = [["total", run.seconds_total]] if run.seconds_total is not None else []
    numbers = details("In numbers", table(["stage", "seconds"], rows + total, digits=1))
    return Section("Time and cost", join([chart, numbers, _usage(run)]))


def _usage(run: RunInfo) -> Markup | None:
    """Hours, memory and money, a row a step."""
    if run.usage is None:
        return None
    columns = {
        "wall_hours": "hours",
        "cpu_hours": "CPU hours",
        "gpu_hours": "GPU hours",
        "peak_memory_gib": "peak memory, GiB",
        "peak_gpu_memory_gib": "peak GPU memory, GiB",
    }
    used = {**run.usage["steps"], "total": run.usage["total"]}
    rows = [[name.replace("_", " "), *(values[key] for key in columns)] for name, values in used.items()]
    cost = run.usage["cost"]
    words = "No price is set (PLUMBLINE_PRICE_GPU_HOUR)." if cost is None else f"{cost:.2f} {run.usage['currency']}."
    if missing := run.usage["unmeasured_attempts"]:
        words += f" {missing} killed attempt(s) could not tell what they used and are not in it."
    return join([table(["step", *columns.values()], rows, digits=3), paragraph(f"Cost: {words}")])


def redact(value: Any, name: str = "") -> Any:
    """Settings without secrets: values of keys that sound like one, and user parts of URLs."""
    if isinstance(value, dict):
        return {str(key): redact(item, str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redact(item, name) for item in value]
    if isinstance(value, str) and value and _SECRET_NAME.search(name):
        return "[redacted]"
    if isinstance(value, str):
        return _URL_USER.sub("[redacted]@", value)
    return value if isinstance(value, int | float | bool | None) else str(value)


def _code(text: str) -> Markup:
    return Markup("<code>{}</code>").format(text)
