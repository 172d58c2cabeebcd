"""What would another policy have said? Judges evidence again, records nothing and moves nothing.

    decision (what was said then, on which digests) + the artifacts with these digests + a policy > verdict, difference

`check_policy` reads a policy; `rehearse` judges one past decision's evidence by it; `replay` judges many and says which
verdicts would change. The evidence is also judged by the thresholds of its own day, so that a difference that comes
from a newer gate is not taken for one of the policy.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from components.release_gate.criteria import judge_all
from components.release_gate.dossier import open_dossier
from components.release_gate.entries import Entry, LedgerView
from components.release_gate.evidence import Case, Source, read_source
from components.release_gate.findings import Criterion, Finding
from components.release_gate.policy import PRODUCTION, GatePolicy, load_policy_file
from components.release_gate.provenance import check_provenance
from components.release_gate.registry import Registry
from components.release_gate.states import Event
from components.release_gate.subject import POLICY, asked_by_nobody
from components.release_gate.terms import term_problems
from components.release_gate.verdict import Judgement, Verdict, decide
from components.shared.artifacts import MANIFEST, read_artifact
from components.shared.errors import ArtifactError, InputError
from components.shared.files import digest_of, read_json
from components.shared.settings import parse_settings

__all__ = [
    "PastDecision",
    "broken_terms",
    "check_policy",
    "cleared_on_other_terms",
    "index_artifacts",
    "is_verdict",
    "open_kept_decision",
    "open_past_decision",
    "rehearse",
    "replay",
]

_logger = logging.getLogger(__name__)

_SOURCES = {
    "evaluation": "evaluation",
    "human_evidence": "human_evidence",
    "reward_model": "reward_model",
    "heldout_reward_model": "reward_model",
    "training_history": "training_history",
}
"""Part of a decision's digests -> kind of artifact."""

_MAY_BE_ABSENT = frozenset({"training_history"})

_LATER_RULES = {"command_line_may_approve": True, "require_known_requester": False}
"""Rules of release that decisions of an earlier version do not name, as it went by them."""

_VERDICT_EVENTS = frozenset({Event.AWAIT_APPROVAL, Event.HOLD, Event.BLOCK, Event.FAIL, Event.KEEP, Event.ALARM})


@dataclass(frozen=True)
class PastDecision:
    """A verdict that was given, with the evidence that it rests on.

    Attributes:
        run: Where it was given, for the reader.
        content: `decision.json`.
        time: When.
        own_policy: The thresholds of its day; None if this version cannot read them any more.
        sources: Folder of each part of the evidence that was found ("" for what was not there then either), or how to
            read it.
        baseline: Digest of what the candidate was trained from; None where it is not known.
        missing: Parts that the decision names and that were not found.
        seed: Of the bootstrap.
    """

    run: str
    content: dict[str, Any]
    time: str
    own_policy: GatePolicy | None
    sources: Mapping[str, str | Callable[[], Source]]
    baseline: str | None
    missing: list[str]
    seed: int


def check_policy(name_or_path: str | Path) -> dict[str, Any]:
    """Validates a policy.

    Returns:
        `{"name", "version", "description", "digest", "approvals_required", "looser_than_production": [sentences]}`.

    Raises:
        InputError: It is not valid; each fault is named with its YAML path.
    """
    policy = load_policy_file(name_or_path)
    return {
        "name": policy.name,
        "version": policy.version,
        "description": policy.description,
        "digest": policy.digest,
        "approvals_required": policy.release.approvals_required,
        "looser_than_production": policy.looser_than(load_policy_file(PRODUCTION)),
    }


def index_artifacts(folders: Iterable[str | Path]) -> dict[str, str]:
    """Folder by digest, as the manifests say (`read_artifact` checks them); what is no artifact is left out."""
    found = {}
    for folder in folders:
        manifest = Path(folder) / MANIFEST
        if manifest.is_file():
            found[str(read_json(manifest).get("digest"))] = str(folder)
    return found


def open_past_decision(
    folder: str | Path, artifacts: Mapping[str, str], *, run: str = "", seed: int = 0
) -> PastDecision:
    """Reads a decision and finds its evidence by digest.

    Args:
        folder: The `decision` artifact.
        artifacts: Folder by digest, of all artifacts that may be its evidence.
        run: Where it was given, for the reader.
        seed: Of the bootstrap, as it was then.

    Raises:
        ArtifactError: It is missing or was altered.
    """
    artifact = read_artifact(folder, "decision")
    content = read_json(artifact.file("decision.json"))
    digests = content["digests"]
    wanted = {part: digests.get(part) or "" for part in _SOURCES}
    sources = {part: artifacts.get(digest, "") for part, digest in wanted.items()}
    missing = [part for part, digest in wanted.items() if digest and not sources[part] and part not in _MAY_BE_ABSENT]
    candidate = artifacts.get(digests["candidate"])
    inputs = read_json(Path(candidate) / MANIFEST).get("inputs", {}) if candidate else {}
    return PastDecision(
        run=run,
        content=content,
        time=str(artifact.manifest.get("finished_at", "")),
        own_policy=_own_policy(artifact.manifest.get("settings")),
        sources=sources,
        baseline=inputs.get("policy") if content["mode"] == "candidate" else None,
        missing=missing,
        seed=seed,
    )


def is_verdict(entry: Entry) -> bool:
    """Whether the gate gave a verdict with this entry of the ledger (a person's `fail`, an abandoned move, is none)."""
    return entry.event in _VERDICT_EVENTS and bool(entry.data.get("binding"))


def open_kept_decision(registry: Registry, entry: Entry) -> PastDecision:
    """Reads a decision and its evidence from the model version's dossier, by what the ledger says of it alone.

    Args:
        registry: Where the version is.
        entry: The verdict on the ledger.

    Raises:
        ArtifactError: Nothing was kept, or the decision does not agree with the ledger.
    """
    dossier = open_dossier(registry, entry.model, entry)
    where = f"{entry.model} version {entry.version}, ledger entry {entry.sequence}"
    content = dossier.document("decision", "decision.json")
    if content is None:
        problem = dossier.problems.get("dossier") or dossier.problems.get("decision")
        raise ArtifactError(f"its dossier cannot be read: {problem}", where=where)
    digests = entry.evidence_digests
    named = [part for part in _SOURCES if digests.get(part) and part not in _MAY_BE_ABSENT]
    missing = [f"{part} ({dossier.problems[part]})" for part in named if part in dossier.problems]
    missing += [f"{', '.join(names)} of {part}" for part in named if (names := dossier.unkept(part))]
    settings = dossier.manifests["decision"].get("settings")
    return PastDecision(
        run=entry.data.get("run") or f"ledger entry {entry.sequence}",
        content=content,
        time=entry.time,
        own_policy=_own_policy(settings) if digest_of(settings) == digests.get("policy") else None,
        sources={part: partial(dossier.source, part) for part in _SOURCES},
        baseline=entry.data.get("baseline") or None,
        missing=missing,
        seed=entry.data.get("seed", 0),
    )


def broken_terms(past: PastDecision, entry: Entry) -> list[str]:
    """What a verdict's ledger entry says of its approvals that its policy and its evidence do not; empty if nothing.

    Who judged and who imported cannot be compared where the human evidence cannot be read, and that is said.
    """
    if past.own_policy is None:
        return []
    read = past.sources["human_evidence"]
    human = None if isinstance(read, str) else read()
    rows = human.tables.get("judgements.jsonl") if human is not None and human.fault is None else None
    if rows is not None:
        return term_problems(entry.data, past.own_policy.release, rows)
    if not entry.evidence_digests.get("human_evidence") and entry.data["verdict"] != Verdict.PROMOTE:  # there was none
        return term_problems(entry.data, past.own_policy.release, [])
    told = {name: value for name, value in entry.data.items() if name not in ("raters", "importers")}
    unread = (
        "Its human evidence cannot be read: who judged and who imported was not compared with what the ledger says."
    )
    return [*term_problems(told, past.own_policy.release, []), unread]


def cleared_on_other_terms(registry: Registry, view: LedgerView) -> list[str]:
    """Releases that were cleared on terms which their policy and evidence do not have, as far as a dossier was kept."""
    problems, asked = [], {}
    for entry in view.entries:
        if entry.event == Event.AWAIT_APPROVAL and is_verdict(entry):
            asked[entry.version] = entry
        elif entry.event == Event.CLEAR and entry.version in asked:
            verdict = asked.pop(entry.version)
            try:
                found = broken_terms(open_kept_decision(registry, verdict), verdict)
            except ArtifactError as error:  # the audit names it; it was so before there were dossiers
                _logger.info("The terms of entry %d cannot be checked: %s", verdict.sequence, error)
                continue
            problems += [f"entry {verdict.sequence}: {problem}" for problem in found]
    return problems


def rehearse(past: PastDecision, policy: GatePolicy) -> dict[str, Any]:
    """Judges a past decision's evidence by another policy.

    Returns:
        `run`, `time`, `model_name`, `version`, `mode`, `recorded_policy`, and
        `recorded`: the verdict as it was given;
        `again`: by today's gate and the thresholds of then; None if this version cannot read them;
        `verdict`: by `policy`; None where evidence was not found, and `problem` says which;
        `changed`: whether `verdict` differs from `again` (from `recorded` where that is None);
        `reasons`, and `criteria`: all that a criterion has, and its verdicts `before` and `after`.
    """
    content = past.content
    told = {
        "run": past.run,
        "time": past.time,
        "model_name": content["model_name"],
        "version": content["version"],
        "mode": content["mode"],
        "recorded": content["verdict"],
        "recorded_policy": f"{content['policy']['name']} {content['policy']['version']}",
    }
    if past.missing:
        problem = f"Its evidence was not found: {', '.join(past.missing)}."
        return told | {
            "again": None,
            "verdict": None,
            "changed": False,
            "problem": problem,
            "reasons": [],
            "criteria": [],
        }
    again = _judge(past, past.own_policy) if past.own_policy else None
    judgement = _judge(past, policy)
    before = again.criteria if again else None
    reference = str(again.verdict) if again else content["verdict"]
    return told | {
        "again": str(again.verdict) if again else None,
        "verdict": str(judgement.verdict),
        "changed": str(judgement.verdict) != reference,
        "problem": None,
        "reasons": judgement.reasons,
        "criteria": _compare(before, content["criteria"], judgement.criteria),
    }


def replay(decisions: Iterable[PastDecision], policy: GatePolicy) -> dict[str, Any]:
    """Judges past decisions by another policy, oldest first.

    Returns:
        `{"policy", "decisions": [as rehearse], "judged", "changed", "not_judged"}`, the last three being counts.
    """
    found = [rehearse(past, policy) for past in sorted(decisions, key=lambda past: past.time)]
    return {
        "policy": {"name": policy.name, "version": policy.version, "digest": policy.digest},
        "decisions": found,
        "judged": sum(one["verdict"] is not None for one in found),
        "changed": sum(one["changed"] for one in found),
        "not_judged": sum(one["verdict"] is None for one in found),
    }


def _own_policy(settings: Any) -> GatePolicy | None:
    """The thresholds of a decision's day; what only says who may approve, and came later, changes no verdict."""
    if isinstance(settings, dict) and isinstance(settings.get("release"), dict):
        settings = settings | {"release": _LATER_RULES | settings["release"]}
    try:
        return parse_settings(settings, GatePolicy, where="decision")
    except InputError:
        return None


def _judge(past: PastDecision, policy: GatePolicy) -> Judgement:
    case = _open_case(past, policy)
    same = policy.digest == past.content["policy"]["digest"]  # what the ledger said of it holds for that policy alone
    names = {"rejection", POLICY} if same else {"rejection"}
    carried = [_as_criterion(found) for found in past.content["criteria"] if found["name"] in names]
    if not case.live and "requester" in past.content:
        carried += asked_by_nobody(policy.release, past.content["requester"])
    return decide([*judge_all(case), *carried], live=case.live)


def _open_case(past: PastDecision, policy: GatePolicy) -> Case:
    sources: dict[str, Source] = {}
    for part, kind in _SOURCES.items():
        found = past.sources[part]
        sources[part] = read_source(part, found, kind) if isinstance(found, str) else found()
    digests, live = past.content["digests"], past.content["mode"] == "live"
    check_provenance(
        candidate_digest=digests["candidate"],
        baseline_digest=past.baseline,
        evaluation=sources["evaluation"],
        human=sources["human_evidence"],
        reward_model=sources["reward_model"],
        heldout=sources["heldout_reward_model"],
    )
    champion = digests.get("champion") or None
    return Case(
        policy=policy,
        mode=past.content["mode"],
        evaluation=sources["evaluation"],
        human=sources["human_evidence"],
        reward_model=sources["reward_model"],
        heldout=sources["heldout_reward_model"],
        history=sources["training_history"],
        champion=champion[:12] if champion else None,
        champion_digest=champion,
        no_champion_reason=(
            "The live model is judged against its predecessor." if live else "It was not judged against a champion."
        ),
        seed=past.seed,
        has_predecessor=past.content.get("compared_with") != "the reference",
    )


def _as_criterion(found: Mapping[str, Any]) -> Criterion:
    return Criterion(found["name"], Finding(found["verdict"]), found["reason"], source=found.get("source") or "")


def _compare(
    before: list[Criterion] | None, recorded: list[dict[str, Any]], after: list[Criterion]
) -> list[dict[str, Any]]:
    """Each criterion now, with what it was: by today's gate where that is known, else as recorded."""
    if before is None:
        was = {found["name"]: found["verdict"] for found in recorded}
    else:
        was = {found.name: str(found.verdict) for found in before}
    return [{"before": was.get(found.name), "after": str(found.verdict), **found.as_dict()} for found in after]
