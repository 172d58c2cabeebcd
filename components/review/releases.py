"""Releases for people: where each stands, what its verdict rests on, and the moves that may be made now.

The ledger says what happened; the dossier that the gate kept says why. What the dossier holds is checked against the
ledger before it is shown.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from functools import cached_property
from hashlib import sha256
from typing import Any

from components.release_gate import operations
from components.release_gate.approvals import approvals
from components.release_gate.dossier import Dossier, open_dossier
from components.release_gate.entries import Entry, LedgerView
from components.release_gate.office import open_office
from components.release_gate.states import Event, State, is_live, legal_events
from components.shared.errors import PlumblineError
from components.shared.review_key import ReviewKey
from components.shared.trajectory import Checkpoint, checkpoints

__all__ = [
    "ModelState",
    "ReleaseBoard",
    "ReleaseState",
    "ReleaseView",
    "SamplePair",
    "SampleVote",
    "UnknownReleaseError",
    "release_as_json",
]

_VERDICTS = (
    Event.AWAIT_APPROVAL,
    Event.HOLD,
    Event.BLOCK,
    Event.FAIL,
    Event.KEEP,
    Event.ALARM,
)
_SAMPLES_A_SLICE = 2
_DOSSIERS_KEPT = 8


class UnknownReleaseError(PlumblineError):
    """There is no such model or version on the ledger."""


@dataclass(frozen=True)
class ModelState:
    """A model and what is live of it."""

    model: str
    champion: str | None
    awaiting: list[str]


@dataclass(frozen=True)
class ReleaseState:
    """One version of a model, in a line.

    Attributes:
        version: Version in the registry.
        state: State of the release.
        live: Whether it serves.
        verdict: The gate's latest verdict on it; None before the first.
        reason: Its reasons, in short.
        time: When its last event happened (UTC, ISO 8601).
    """

    version: str
    state: str
    live: bool
    verdict: str | None
    reason: str
    time: str


@dataclass(frozen=True)
class SampleVote:
    """One vote on a sample pair, in terms of the models."""

    rater: str
    prefers: str
    counted: bool
    flags: list[str]
    rationale: str | None


@dataclass(frozen=True)
class SamplePair:
    """A pair of answers with what raters said about it."""

    comparison: str
    slice: str
    prompt: Any
    answers: list[dict[str, Any]]
    votes: list[SampleVote]


class ReleaseEvidence:
    """The dossier as the trajectory reads it; see `components.shared.trajectory.TrainingEvidence`.

    Args:
        dossier: What the gate kept.
    """

    def __init__(self, dossier: Dossier) -> None:
        self.models: dict[str, Any] = dossier.document("evaluation", "models.json") or {}
        self.generations = dossier.rows("evaluation", "generations.jsonl")
        self.outcomes = dossier.rows("human_evidence", "outcomes.jsonl")
        self.statistics: dict[str, Any] | None = dossier.document("human_evidence", "statistics.json")
        self.reward_scale: dict[str, Any] | None = dossier.document("reward_model", "reward.json")
        self.heldout_scale: dict[str, Any] | None = dossier.document("heldout_reward_model", "reward.json")
        self.history = dossier.rows("training_history", "history.jsonl")
        self.history_summary: dict[str, Any] | None = dossier.document("training_history", "summary.json")


@dataclass(frozen=True)
class ReleaseView:
    """All that a release's page shows.

    Attributes:
        model: Registered model.
        state: Where the release stands.
        binding: What an approval of it is bound to; "" without a verdict.
        approvals: Who approved the latest verdict.
        approvals_required: How many have to.
        expires_at: Until when the verdict may be acted on.
        requester: Who asked for the release, and may not approve it.
        raters: Pseudonyms of those who rated its evidence, and may not approve it.
        importers: Logins of those who imported judgements of it, and may not approve it.
        moves: What a release manager may do now: `approve`, `reject`, `rollback`.
        predecessor: The version that a rollback restores.
        history: Its entries on the ledger, oldest first.
        digests: What the verdict rests on.
        dossier: The evidence.
    """

    model: str
    state: ReleaseState
    binding: str
    approvals: list[str]
    approvals_required: int
    expires_at: str
    requester: str
    raters: list[str]
    importers: list[str]
    moves: list[str]
    predecessor: str | None
    history: list[dict[str, Any]]
    digests: dict[str, str]
    dossier: Dossier = field(repr=False)

    @property
    def decision(self) -> dict[str, Any]:
        """`decision.json`; empty if it cannot be shown."""
        return self.dossier.document("decision", "decision.json") or {}

    @property
    def statistics(self) -> dict[str, Any] | None:
        """`statistics.json` of the human evidence; None if it cannot be shown."""
        return self.dossier.document("human_evidence", "statistics.json")

    @cached_property
    def samples(self) -> list[SamplePair]:
        """Pairs of the judged model with their votes, a few of each slice, chosen by the hash of their prompts."""
        return _samples(self)

    @cached_property
    def evidence(self) -> ReleaseEvidence:
        """What the trajectory is computed from."""
        return ReleaseEvidence(self.dossier)

    @cached_property
    def trajectory(self) -> list[Checkpoint]:
        """Reward, KL and people over the checkpoints."""
        return checkpoints(self.evidence)


class ReleaseBoard:
    """Reads releases and makes moves; ledger and registry are those of the environment.

    Args:
        key: Of the service: it signs the approvals of those who are signed in.
    """

    def __init__(self, key: ReviewKey) -> None:
        self._key = key
        self._dossiers: dict[tuple[str, str, str], Dossier] = {}
        self._lock = threading.Lock()

    def models(self) -> list[ModelState]:
        """Every model on the ledger."""
        office = open_office()
        return [_model_state(office.ledger.view(model)) for model in office.ledger.models()]

    def releases(self, model: str) -> list[ReleaseState]:
        """A model's releases, the newest first.

        Raises:
            UnknownReleaseError: No such model on the ledger.
        """
        view = _view(model)
        return [_release_state(view, version) for version in reversed(view.versions)]

    def release(self, model: str, version: str) -> ReleaseView:
        """One release with its evidence.

        Raises:
            UnknownReleaseError: No such version on the ledger.
        """
        view = _view(model)
        if version not in view.versions:
            raise UnknownReleaseError(f"version {version} is not on the ledger.", where=f"model {model}")
        asked = view.last(version, *_VERDICTS)
        data = asked.data if asked else {}
        return ReleaseView(
            model=model,
            state=_release_state(view, version),
            binding=data.get("binding", ""),
            approvals=approvals(view, version),
            approvals_required=data.get("approvals_required", 0),
            expires_at=data.get("expires_at", ""),
            requester=view.requester(version),
            raters=data.get("raters", []),
            importers=data.get("importers", []),
            moves=_moves(view, version),
            predecessor=view.predecessor(version),
            history=[entry.as_dict() for entry in view.entries if entry.version == version],
            digests=asked.evidence_digests if asked else {},
            dossier=self._dossier(model, asked) if asked and data.get("binding") else Dossier(),
        )

    def history(self, model: str) -> list[dict[str, Any]]:
        """A model's whole ledger."""
        _view(model)
        return operations.history(model)

    def verify(self, model: str) -> dict[str, Any]:
        """Replays a model's ledger."""
        _view(model)
        return operations.verify(model)

    def approve(self, model: str, version: str, *, actor: str, reason: str, binding: str) -> dict[str, Any]:
        """Approves the verdict that the actor looked at; with the last approval needed it goes live."""
        self._require(model, version)
        who = {"actor": actor, "key": self._key, "signed_in": True}
        return operations.approve(model, version, **who, reason=reason, binding=binding)

    def reject(self, model: str, version: str, *, actor: str, reason: str) -> dict[str, Any]:
        """Rejects a release for good."""
        self._require(model, version)
        return operations.reject(model, version, actor=actor, reason=reason)

    def rollback(self, model: str, version: str, *, actor: str, reason: str) -> dict[str, Any]:
        """Takes the live version back; refused if another one is live by now."""
        self._require(model, version)
        return operations.rollback(model, actor=actor, reason=reason, version=version)

    def _require(self, model: str, version: str) -> None:
        if version not in _view(model).versions:
            raise UnknownReleaseError(f"version {version} is not on the ledger.", where=f"model {model}")

    def _dossier(self, model: str, entry: Entry) -> Dossier:
        """Read once: what was kept under a hash-chained entry does not change."""
        key = (model, entry.version, entry.hash)
        with self._lock:
            known = self._dossiers.get(key)
        if known is None:
            known = open_dossier(open_office().registry, model, entry)
            with self._lock:
                if len(self._dossiers) >= _DOSSIERS_KEPT:
                    self._dossiers.pop(next(iter(self._dossiers)))
                if "dossier" not in known.problems:
                    self._dossiers[key] = known
        return known


def _view(model: str) -> LedgerView:
    view = open_office().ledger.view(model)
    if not view.entries:
        raise UnknownReleaseError(f"no releases of model {model!r}.", where="ledger")
    return view


def _model_state(view: LedgerView) -> ModelState:
    awaiting = [version for version, state in view.versions.items() if state is State.AWAITING_APPROVAL]
    return ModelState(view.model, view.champion, awaiting)


def _release_state(view: LedgerView, version: str) -> ReleaseState:
    state, last, asked = view.state(version), view.last(version), view.last(version, *_VERDICTS)
    verdict = asked.data.get("verdict") if asked else None
    reason = asked.reason if asked else ""
    return ReleaseState(version, str(state), is_live(state), verdict, reason, last.time if last else "")


def _moves(view: LedgerView, version: str) -> list[str]:
    legal = legal_events(view.state(version))
    moves = [name for name, event in (("approve", Event.APPROVE), ("reject", Event.REJECT)) if event in legal]
    if Event.BEGIN_ROLLBACK in legal and view.predecessor(version) is not None:
        moves.append("rollback")
    return moves


def _samples(view: ReleaseView) -> list[SamplePair]:
    items = [item for item in view.dossier.rows("human_evidence", "items.jsonl") if item["kind"] == "pair"]
    votes = _votes_by_item(view)
    ordered = sorted(items, key=lambda item: sha256(str(item["prompt_id"]).encode()).hexdigest())
    chosen: dict[tuple[str, str], list[SamplePair]] = defaultdict(list)
    for item in ordered:
        group = chosen[item["comparison"], item["slice"]]
        if item["comparison"].startswith("candidate_vs_") and len(group) < _SAMPLES_A_SLICE:
            group.append(_sample(item, votes.get(item["item_id"], [])))
    return [pair for _, group in sorted(chosen.items()) for pair in group]


def _sample(item: dict[str, Any], votes: list[SampleVote]) -> SamplePair:
    return SamplePair(item["comparison"], item["slice"], item["prompt"], [item["first"], item["second"]], votes)


def _votes_by_item(view: ReleaseView) -> dict[str, list[SampleVote]]:
    rows = view.dossier.rows("human_evidence", "judgements.jsonl")
    superseded = {row.get("supersedes") for row in rows}
    raters = (view.statistics or {}).get("raters", {})
    votes: dict[str, list[SampleVote]] = defaultdict(list)
    for row in rows:
        if row.get("kind") == "vote" and row["judgement_id"] not in superseded:
            votes[row["item_id"]].append(_vote(row, counted=bool(raters.get(row["rater"], {}).get("counted"))))
    return votes


def _vote(row: dict[str, Any], *, counted: bool) -> SampleVote:
    choice = {"a": row["shown_a"], "b": row["shown_b"]}.get(row["choice"], row["choice"].replace("_", " "))
    flags = [f"{row['shown_a']}: {flag}" for flag in row["flags_a"]]
    flags += [f"{row['shown_b']}: {flag}" for flag in row["flags_b"]]
    return SampleVote(row["rater"], choice, counted, flags, row["rationale"])


def release_as_json(view: ReleaseView) -> dict[str, Any]:
    """A release for programs: what the page shows."""
    return {
        "model": view.model,
        **asdict(view.state),
        "binding": view.binding,
        "approvals": view.approvals,
        "approvals_required": view.approvals_required,
        "expires_at": view.expires_at,
        "requester": view.requester,
        "importers": view.importers,
        "moves": view.moves,
        "predecessor": view.predecessor,
        "digests": view.digests,
        "decision": view.decision,
        "statistics": view.statistics,
        "trajectory": [asdict(point) for point in view.trajectory],
        "samples": [asdict(sample) for sample in view.samples],
        "history": view.history,
        "not_shown": view.dossier.problems,
    }
