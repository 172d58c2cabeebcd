"""The release gate: evidence in, verdict out; and what follows from the verdict.

    read the evidence > is it about these models? > criteria > worst one wins > verdict on the ledger > decision

`run_gate` judges a candidate, or the live model in soak. The evidence
is kept beside the model version, for those who decide. It moves nothing: `run_promote`, `run_rollback` and
`run_keep_champion` act on the decision it wrote. Each may be run again after a kill.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from components.release_gate.awaiting import read_awaited, record_order
from components.release_gate.criteria import judge_all
from components.release_gate.divergence import measure_gap
from components.release_gate.dossier import keep_dossier
from components.release_gate.entries import LedgerView
from components.release_gate.evidence import Case, Source, read_source
from components.release_gate.findings import Criterion, Finding
from components.release_gate.offer import Offer, offer_checkpoint
from components.release_gate.office import Office, open_office
from components.release_gate.overoptimization import measure_overoptimization
from components.release_gate.policy import PRODUCTION, GatePolicy, load_policy_file
from components.release_gate.promotion import Outcome, PromotionError, promote, rollback
from components.release_gate.provenance import check_provenance
from components.release_gate.releases import (
    ANONYMOUS,
    JudgedRelease,
    binding_of,
    record_live_verdict,
    record_verdict,
    register,
    unknown_requester,
)
from components.release_gate.states import Event, State, is_live
from components.release_gate.verdict import Judgement, Verdict, decide
from components.shared.artifacts import Artifact, read_artifact, write_artifact
from components.shared.errors import InputError, PlumblineError
from components.shared.files import digest_of, read_json, write_json
from components.shared.pseudonyms import is_pseudonym
from components.shared.tracking import pipeline_run, stage_run

__all__ = ["ACTOR_VARIABLE", "run_gate", "run_keep_champion", "run_promote", "run_rollback"]

_logger = logging.getLogger(__name__)

ACTOR_VARIABLE = "PLUMBLINE_ACTOR"
Mode = Literal["candidate", "live"]

_LIVE_BASELINE_NOT_CHECKED = (
    "NOT checked: whether the reference is the policy that the first champion was trained from; the ledger does not "
    "name it."
)
_NO_PREDECESSOR = (
    "HARM IS SHOWN AND THERE IS NO PREDECESSOR TO ROLL BACK TO: version {version} is the first champion and stays "
    "champion. Take it out of service by hand now, then promote another version, by broken glass if need be."
)
_PEOPLES_WORD = "human_preference.reference"
_BASELINE_NOT_CHECKED = (
    "NOT checked: whether the reference is the policy that the candidate was trained from; the candidate's artifact "
    "names no input `policy`."
)


@dataclass(frozen=True)
class _Subject:
    """What is judged, and against whom.

    Attributes:
        digest: Digest of the policy under judgement.
        version: Its version, if it is registered.
        artifact: Its artifact; None for a live model.
        champion: The version that it would replace; None if there is none.
        champion_digest: Its digest.
        no_champion_reason: Why `champion` is None.
        baseline: Digest of what it must have been compared with: the policy that a candidate (or the first champion)
            was trained from, the version that a live model replaced. None where it is not known.
        predecessor: The version that a live model replaced; None for the first champion and for a candidate.
    """

    digest: str
    version: str | None
    artifact: Artifact | None
    champion: str | None
    champion_digest: str | None
    no_champion_reason: str
    baseline: str | None
    predecessor: str | None = None


def run_gate(
    *,
    candidate: str,
    evaluation: str,
    evidence: str,
    reward_model: str,
    heldout_reward_model: str,
    history: str,
    output: str,
    mode: Mode,
    policy: str,
    model_name: str,
    seed: int,
    locations: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Judges a candidate (or the live model) and writes a `decision` artifact.

    Where people are still judging, it holds, and records the order under which it is judged again.

    Args:
        candidate: `policy` artifact; "" in mode `live`, where the ledger says which version is judged.
        evaluation: `evaluation` artifact.
        evidence: `human_evidence` artifact.
        reward_model: `reward_model` artifact that was optimised.
        heldout_reward_model: `reward_model` artifact that never was.
        history: `training_history` artifact, or "".
        output: Where the decision shall be.
        mode: `candidate` or `live`.
        policy: Name of a shipped gate policy, or path of one.
        model_name: Registered model.
        seed: Of the bootstrap.
        locations: Address of each artifact, by parameter, under which a later run finds it; their folders if None.

    Returns:
        `verdict`, `promote`, `roll_back`, `version`, `state`, `champion` and the decision's `digest`.

    Raises:
        InputError: The policy is not valid, or a service is not set.
        ArtifactError: The candidate itself cannot be read.
        PlumblineError: In mode `live`, nothing is live.
    """
    rules = load_policy_file(policy)
    office = open_office()
    view = office.ledger.view(model_name)
    subject = _live_subject(view) if mode == "live" else _candidate_subject(view, read_artifact(candidate, "policy"))
    with stage_run("release_gate", settings={"policy": rules.name, "mode": mode}, seed=seed) as tracked:
        case = _open_case(
            subject,
            rules,
            mode,
            seed,
            sources=(
                read_source("evaluation", evaluation, "evaluation"),
                read_source("human_evidence", evidence, "human_evidence"),
                read_source("reward_model", reward_model, "reward_model"),
                read_source("heldout_reward_model", heldout_reward_model, "reward_model"),
                read_source("training_history", history, "training_history"),
            ),
        )
        criteria = judge_all(case) + _rejected_before(view, subject)
        judgement = _with_notes(decide(criteria, live=case.live), _unchecked_baseline(subject))
        judgement = _nowhere_to_go_back(judgement, subject)
        awaited = read_awaited(evidence) if judgement.verdict is Verdict.HOLD else None
        if awaited is not None:
            judgement = replace(judgement, reasons=[awaited.reason, *judgement.reasons])
        digests = _digests(case, subject)
        found = [criterion.as_dict() for criterion in judgement.criteria]
        judged = JudgedRelease(
            judgement.verdict,
            _in_short(judgement),
            digests,
            rules,
            _actor(),
            digest_of(found),
            baseline=subject.baseline or "",
            seed=seed,
            raters=_people(case),
            win_rate=_win_rate(criteria),
        )
        folders = {
            "candidate": candidate,
            "evaluation": evaluation,
            "reward_model": reward_model,
            "heldout_reward_model": heldout_reward_model,
            "history": history,
        }

        def order(version: str) -> None:
            if awaited is not None:
                record_order(
                    awaited,
                    model=model_name,
                    version=version,
                    mode=mode,
                    policy=policy,
                    folders=folders,
                    locations=locations or {},
                )

        version, state = _record(office, model_name, subject, judged, order)
        if not case.live:
            judgement = _with_notes(judgement, unknown_requester(office.ledger.view(model_name), version, judged))
        decision = _decision(case, judgement, judged, model_name, version)
        with write_artifact(
            output, "decision", inputs=digests, settings=rules.model_dump(mode="json"), stage="release_gate"
        ) as draft:
            write_json(draft.path / "decision.json", decision)
        paths = {
            "decision": output,
            "evaluation": evaluation,
            "human_evidence": evidence,
            "reward_model": reward_model,
            "heldout_reward_model": heldout_reward_model,
            "training_history": history,
        }
        keep_dossier(office.registry, model_name, version, judged.binding, judged.criteria, paths)
        tracked.set_tags({"plumbline.verdict": str(judgement.verdict), "plumbline.version": version})
        tracked.log_metrics({f"gate/{found.name}": found.value for found in criteria if found.value is not None})
    _announce(judgement, decision["policy"]["looser_than_production"], rules, model_name, version)
    return {
        "digest": read_artifact(output, "decision").digest,
        "verdict": str(judgement.verdict),
        "promote": judgement.verdict is Verdict.PROMOTE,
        "roll_back": _may_roll_back(judgement, rules, subject),
        "version": version,
        "state": str(state),
        "champion": office.ledger.view(model_name).champion or "",
    }


def run_promote(*, decision: str) -> dict[str, Any]:
    """Promotes what a decision says, unless it still awaits approval.

    Args:
        decision: `decision` artifact with verdict PROMOTE.

    Returns:
        `promoted` (the version is live), `version`, `champion`, `state`, `message`, `seconds`.

    Raises:
        PromotionError: The verdict is another one, or no longer the latest on this version.
    """
    content = _read_decision(decision, Verdict.PROMOTE)
    model, version = content["model_name"], content["version"]
    with stage_run("promote", settings={"model_name": model, "version": version}):
        office = open_office()
        view = office.ledger.view(model)
        asked = view.last(version, Event.AWAIT_APPROVAL)
        latest = asked is not None and asked.data["binding"] == content["binding"]
        if not is_live(view.state(version)) and not latest:
            raise PromotionError(
                "this decision is not the latest verdict on the version.", where=f"{model} version {version}"
            )
        outcome = promote(model, version, _actor(), office=office)
    _logger.info("%s", outcome.message)
    return {"promoted": is_live(outcome.state), **_as_result(outcome)}


def run_rollback(*, decision: str) -> dict[str, Any]:
    """Rolls back the live version that a decision judged; nothing if it is not live any more.

    Args:
        decision: `decision` artifact with verdict ROLLBACK.

    Returns:
        `rolled_back`, `version` (taken back), `champion` (restored), `state`, `message`, `seconds`.
    """
    content = _read_decision(decision, Verdict.ROLLBACK)
    model, version = content["model_name"], content["version"]
    with stage_run("roll_back", settings={"model_name": model, "version": version}):
        outcome = rollback(model, _actor(), " ".join(content["reasons"][:2]), version=version)
    _logger.warning("%s It took %.2f s.", outcome.message, outcome.seconds)
    return {"rolled_back": outcome.state is State.ROLLED_BACK, **_as_result(outcome)}


def run_keep_champion(*, decision: str) -> dict[str, Any]:
    """Leaves the champion where it is, says why, and makes sure that the aliases say so too.

    Args:
        decision: `decision` artifact of any verdict that moves nothing.

    Returns:
        `verdict`, `version`, `champion`, `state`, `message`.
    """
    content = _read_decision(decision)
    model, version, verdict = content["model_name"], content["version"], content["verdict"]
    with stage_run("keep_champion", settings={"model_name": model, "version": version}):
        office = open_office()
        office.sync_aliases(model)
        view = office.ledger.view(model)
    stays = f"Version {view.champion} stays champion." if view.champion else "There is no champion yet."
    subject = f"Version {version}" if content["mode"] == "candidate" else f"Live version {version}"
    message = f"{verdict}. {subject} of {model}: {stays} {' '.join(content['reasons'])}"
    _logger.info("%s", message)
    return {
        "verdict": verdict,
        "version": version,
        "champion": view.champion or "",
        "state": str(view.state(version)),
        "message": message,
    }


def _candidate_subject(view: LedgerView, artifact: Artifact) -> _Subject:
    champion, version = view.champion, view.version_of(artifact.digest)
    reason = "There is no champion yet: the reference is the baseline."
    if champion is not None and view.digest(champion) == artifact.digest:
        champion, version, reason = None, view.champion, f"The candidate is the champion (version {champion}) already."
    champion_digest = view.digest(champion) if champion else None
    trained_from = artifact.manifest.get("inputs", {}).get("policy") or None
    return _Subject(artifact.digest, version, artifact, champion, champion_digest, reason, trained_from)


def _live_subject(view: LedgerView) -> _Subject:
    live = view.champion
    if live is None:
        raise PlumblineError("nothing is live that could be judged.", where=f"model {view.model}")
    predecessor = view.predecessor(live)
    reason = "The live model is judged against its predecessor."
    if predecessor is None:
        reason = "The live model is the first champion: the reference is the baseline."
        return _Subject(view.digest(live), live, None, None, None, reason, _trained_from(view, live))
    return _Subject(view.digest(live), live, None, None, None, reason, view.digest(predecessor), predecessor)


def _trained_from(view: LedgerView, version: str) -> str | None:
    """Digest of the reference that a version was judged against as a candidate; None if the ledger does not know."""
    judged = view.last(version, Event.AWAIT_APPROVAL) or view.last(version, Event.BLOCK)
    return (judged.data.get("baseline") or None) if judged else None


def _open_case(
    subject: _Subject,
    rules: GatePolicy,
    mode: Mode,
    seed: int,
    *,
    sources: tuple[Source, Source, Source, Source, Source],
) -> Case:
    evaluation, human, reward_model, heldout, history = sources
    check_provenance(
        candidate_digest=subject.digest,
        baseline_digest=subject.baseline,
        evaluation=evaluation,
        human=human,
        reward_model=reward_model,
        heldout=heldout,
    )
    return Case(
        policy=rules,
        mode=mode,
        evaluation=evaluation,
        human=human,
        reward_model=reward_model,
        heldout=heldout,
        history=history,
        champion=subject.champion,
        champion_digest=subject.champion_digest,
        no_champion_reason=subject.no_champion_reason,
        seed=seed,
        has_predecessor=subject.predecessor is not None,
    )


def _win_rate(criteria: list[Criterion]) -> float | None:
    """What people say of the model against its reference (of a live one: its predecessor)."""
    value = next((found.value for found in criteria if found.name == _PEOPLES_WORD), None)
    return value if value is not None and math.isfinite(value) else None


def _rejected_before(view: LedgerView, subject: _Subject) -> list[Criterion]:
    """One rejection is final for the weights: evidence does not undo it."""
    if subject.version is None or view.state(subject.version) is not State.REJECTED:
        return []
    entry = view.last(subject.version, Event.REJECT)
    said = f" by {entry.actor}: {entry.reason}" if entry else ""
    reason = f"These weights were rejected as version {subject.version}{said} A rejection is final."
    return [Criterion("rejection", Finding.BLOCK, reason, source=f"ledger of {view.model}")]


def _unchecked_baseline(subject: _Subject) -> list[str]:
    """What to say of a candidate whose artifact does not tell what it was trained from."""
    if subject.baseline is not None:
        return []
    return [_BASELINE_NOT_CHECKED if subject.artifact else _LIVE_BASELINE_NOT_CHECKED]


def _may_roll_back(judgement: Judgement, rules: GatePolicy, subject: _Subject) -> bool:
    """Whether the model is taken back at once: harm is shown, the policy does not leave it to people, and a way is."""
    return judgement.verdict is Verdict.ROLLBACK and rules.release.auto_rollback and subject.predecessor is not None


def _nowhere_to_go_back(judgement: Judgement, subject: _Subject) -> Judgement:
    """Says first, and loudly, that a rollback is due and nothing is there that it could restore."""
    if judgement.verdict is not Verdict.ROLLBACK or subject.predecessor is not None:
        return judgement
    alarm = _NO_PREDECESSOR.format(version=subject.version)
    _logger.error("%s", alarm)
    return replace(judgement, reasons=[alarm, *judgement.reasons])


def _with_notes(judgement: Judgement, notes: list[str]) -> Judgement:
    """The judgement with what a reader must know beside its reasons."""
    return replace(judgement, reasons=judgement.reasons + notes)


def _in_short(judgement: Judgement) -> str:
    """The first reasons, for the ledger; that the baseline was not checked is never cut off."""
    first, rest = judgement.reasons[:3], judgement.reasons[3:]
    return " ".join(first + [reason for reason in rest if reason == _BASELINE_NOT_CHECKED])


def _digests(case: Case, subject: _Subject) -> dict[str, str]:
    """Everything the verdict rests on; "" for what could not be read."""
    sources = (case.evaluation, case.human, case.reward_model, case.heldout, case.history)
    return {
        "candidate": subject.digest,
        "champion": case.champion_digest or "",
        "policy": case.policy.digest,
        **{source.name: source.digest for source in sources},
    }


def _record(
    office: Office, model: str, subject: _Subject, judged: JudgedRelease, order: Callable[[str], None]
) -> tuple[str, State]:
    """Registers and records; `order` is recorded before the verdict, so that no verdict waits for a run without one."""
    if subject.artifact is None:
        version = str(subject.version)
        order(version)
        return version, record_live_verdict(office, model, version, judged)
    version = register(office, model, subject.artifact, judged)
    order(version)
    state = record_verdict(office, model, version, judged)
    office.sync_aliases(model)
    return version, state


def _decision(case: Case, judgement: Judgement, judged: JudgedRelease, model: str, version: str) -> dict[str, Any]:
    rules = case.policy
    offer = _offer(case, judgement)
    return {
        "verdict": str(judgement.verdict),
        "mode": case.mode,
        "compared_with": case.baseline_name,
        "reasons": judgement.reasons + ([offer.reason] if offer and offer.step is not None else []),
        "criteria": [found.as_dict() for found in judgement.criteria],
        "model_name": model,
        "version": version,
        "digests": dict(judged.digests),
        "binding": binding_of(judged.digests),
        "policy": {
            "name": rules.name,
            "version": rules.version,
            "digest": rules.digest,
            "approvals_required": rules.release.approvals_required,
            "looser_than_production": rules.looser_than(load_policy_file(PRODUCTION)),
        },
        "checkpoint_offer": offer.as_dict() if offer else None,
        "divergence": _divergence(case),
        "overoptimization": measure_overoptimization(case),
    }


def _offer(case: Case, judgement: Judgement) -> Offer | None:
    """An earlier checkpoint for a candidate that fails; None where there is nothing to offer one for."""
    if case.live or judgement.verdict not in (Verdict.BLOCK, Verdict.HOLD):
        return None
    return offer_checkpoint(case, judgement.criteria, run=pipeline_run())


def _people(case: Case) -> tuple[str, ...]:
    """Pseudonyms that the review service made of people's logins; other names cannot be traced to an approver."""
    rows = case.human.tables.get("judgements.jsonl") or []
    found = {str(row.get("rater")) for row in rows if row.get("rater_kind") == "human"}
    return tuple(sorted(rater for rater in found if is_pseudonym(rater)))


def _divergence(case: Case) -> dict[str, Any]:
    try:
        return measure_gap(case).as_dict()
    except PlumblineError as error:
        _logger.debug("No divergence to report: %s", error)  # the criteria say why
        return dict.fromkeys(("reward_win_rate", "human_win_rate", "gap", "ci95", "slope"))


def _read_decision(path: str, verdict: Verdict | None = None) -> dict[str, Any]:
    content = read_json(read_artifact(path, "decision").file("decision.json"))
    if verdict is not None and content["verdict"] != verdict:
        raise PromotionError(f"the verdict is {content['verdict']}, not {verdict}.", where=path)
    return content


def _as_result(outcome: Outcome) -> dict[str, Any]:
    return {
        "version": outcome.version,
        "champion": outcome.champion or "",
        "state": str(outcome.state),
        "changed": outcome.changed,
        "message": outcome.message,
        "seconds": outcome.seconds,
    }


def _announce(judgement: Judgement, looser: list[str], rules: GatePolicy, model: str, version: str) -> None:
    if looser:
        _logger.warning("Policy %s is looser than production: %s.", rules.name, "; ".join(looser))
    _logger.info("%s: %s version %s. %s", judgement.verdict, model, version, " ".join(judgement.reasons))


def _actor() -> str:
    actor = os.environ.get(ACTOR_VARIABLE, ANONYMOUS).strip()
    if not actor:
        raise InputError("is empty.", where=ACTOR_VARIABLE, hint="Name who acts, or leave it unset.")
    return actor
