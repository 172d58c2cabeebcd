"""What the report reads: every artifact that the run left, verified; and a reason for every one that it did not.

A report must exist for a run that failed half-way too, so a part that is missing or damaged is a remark on the page
and never an error.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from components.shared.artifacts import Artifact, read_artifact
from components.shared.errors import PlumblineError
from components.shared.files import read_json, read_jsonl
from components.shared.trajectory import dig

__all__ = ["ROLES", "Missing", "Parts", "dig", "read_parts"]

ROLES: dict[str, str] = {
    "dataset": "dataset",
    "preferences": "dataset",
    "sft": "policy",
    "reward_model": "reward_model",
    "heldout_reward_model": "reward_model",
    "history": "training_history",
    "candidate": "policy",
    "evaluation": "evaluation",
    "evidence": "human_evidence",
    "decision": "decision",
}
"""Role of an artifact in the report -> its kind, in the order in which a run makes them."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Missing:
    """A part of the page that has nothing to show, and why."""

    title: str
    reason: str


@dataclass(frozen=True)
class Parts:
    """Content of the artifacts by role; what is missing is None or empty.

    Attributes:
        manifests: Manifest of each artifact that was read, by role.
        problems: Why an artifact that was named could not be read, by role.
        data_report: `report.json` of the dataset.
        pairs_report: `report.json` of the preference pairs.
        reward_model: `evaluation.json` of the reward model that is optimised.
        reward_scale: Its `reward.json`.
        heldout_reward_model: `evaluation.json` of the second reward model, which nothing is trained against.
        heldout_scale: Its `reward.json`.
        history: A row a PPO step, or a measurement of another optimiser.
        history_summary: `summary.json` of the training history.
        models: `models.json` of the evaluation: digest, step and name of each role.
        metrics: `metrics.json` of the evaluation.
        generations: A row an answer.
        statistics: `statistics.json` of the human evidence.
        outcomes: A row a comparison and prompt.
        judgements: Every judgement as given.
        decision: `decision.json` of the gate.
    """

    manifests: dict[str, dict[str, Any]] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    data_report: dict[str, Any] | None = None
    pairs_report: dict[str, Any] | None = None
    reward_model: dict[str, Any] | None = None
    reward_scale: dict[str, Any] | None = None
    heldout_reward_model: dict[str, Any] | None = None
    heldout_scale: dict[str, Any] | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    history_summary: dict[str, Any] | None = None
    models: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    generations: list[dict[str, Any]] = field(default_factory=list)
    statistics: dict[str, Any] | None = None
    outcomes: list[dict[str, Any]] = field(default_factory=list)
    judgements: list[dict[str, Any]] = field(default_factory=list)
    decision: dict[str, Any] | None = None

    @property
    def live(self) -> bool:
        """Whether the run judged a model that is live (soak) rather than a candidate."""
        return dig(self.decision, "mode") == "live"

    @property
    def optimizer(self) -> str:
        """What trained the policy, as a person writes it; PPO's history does not say."""
        return dig(self.history_summary, "optimizer") or "PPO"

    def digest(self, role: str) -> str | None:
        """Digest of the artifact in a role."""
        return dig(self.manifests, role, "digest")

    def why_missing(self, role: str) -> str:
        """Why a part has nothing to show, in a sentence."""
        if role in self.problems:
            return f"The {role} artifact cannot be read: {self.problems[role]}"
        if self.live:
            return f"No {role} artifact: a check of a live model does not make one."
        return f"Not reached: the run left no {role} artifact."


def read_parts(artifacts: Mapping[str, str]) -> Parts:
    """Reads the artifacts of a run.

    Args:
        artifacts: Folder of each artifact by role (see `ROLES`); any may be missing.

    Raises:
        PlumblineError: A role is not one of `ROLES`.
    """
    unknown = sorted(set(artifacts) - set(ROLES))
    if unknown:
        raise PlumblineError(f"unknown roles {unknown}.", where="report", hint=f"Roles are {', '.join(ROLES)}.")
    manifests: dict[str, dict[str, Any]] = {}
    problems: dict[str, str] = {}
    content: dict[str, Any] = {}
    for role, path in artifacts.items():
        if not path or not Path(path).exists():
            continue
        try:
            artifact = read_artifact(path, ROLES[role])
            content.update(_content(role, artifact))
        except PlumblineError as error:
            problems[role] = str(error)
            _logger.warning("The report goes without the %s artifact: %s", role, error)
            continue
        manifests[role] = {key: artifact.manifest.get(key) for key in _MANIFEST_KEYS}
    return Parts(manifests=manifests, problems=problems, **content)


_MANIFEST_KEYS = (
    "kind",
    "digest",
    "inputs",
    "stage",
    "code_version",
    "started_at",
    "finished_at",
    "seconds",
    "metadata",
)

_FILES: dict[str, dict[str, str]] = {
    "dataset": {"data_report": "report.json"},
    "preferences": {"pairs_report": "report.json"},
    "reward_model": {"reward_model": "evaluation.json", "reward_scale": "reward.json"},
    "heldout_reward_model": {"heldout_reward_model": "evaluation.json", "heldout_scale": "reward.json"},
    "history": {"history": "history.jsonl", "history_summary": "summary.json"},
    "evaluation": {"models": "models.json", "metrics": "metrics.json", "generations": "generations.jsonl"},
    "evidence": {
        "statistics": "statistics.json",
        "outcomes": "outcomes.jsonl",
        "judgements": "judgements.jsonl",
    },
    "decision": {"decision": "decision.json"},
}


def _content(role: str, artifact: Artifact) -> dict[str, Any]:
    """The files of an artifact that the report shows, by the name of their field; a file it lacks is left out."""
    names = {key: name for key, name in _FILES.get(role, {}).items() if name in artifact.manifest["files"]}
    return {
        key: list(read_jsonl(artifact.file(name))) if name.endswith(".jsonl") else read_json(artifact.file(name))
        for key, name in names.items()
    }
