"""The release gate: evidence in, verdict out; and what follows from the verdict.

    read the evidence > is it about these models? > criteria > worst one wins > verdict on the ledger > decision

`run_gate` judges a candidate, or the live model in soak. The evidence
is kept beside the model version, for those who decide. It moves nothing: `run_promote`, `run_rollback` and
`run_keep_champion` act on the decision it wrote. Each may be run again after a kill.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from components.release_gate.awaiting import Awaited, read_awaited, record_order
from components.release_gate.criteria import judge_all
from components.release_gate.decision import decision_of, judged_release
from components.release_gate.dossier import keep_dossier
from components.release_gate.entries import ANONYMOUS, is_anonymous
from components.release_gate.evidence import Case, read_source
from components.release_gate.office import Office, open_office
from components.release_gate.policy import GatePolicy, load_policy_file
from components.release_gate.promotion import Outcome, PromotionError, promote, rollback
from components.release_gate.provenance import check_provenance
from components.release_gate.releases import (
    JudgedRelease,
    is_stale,
    is_under_way,
    record_live_verdict,
    record_verdict,
    register,
    unknown_requester,
)
from components.release_gate.states import Event, State, is_live
from components.release_gate.subject import (
    Subject,
    asked_by_nobody,
    candidate_subject,
    live_subject,
    nowhere_to_go_back,
    rejected_before,
    unchecked_baseline,
    weaker_policy,
    with_notes,
)
from components.release_gate.verdict import Judgement, Verdict, decide
from components.shared.artifacts import read_artifact, write_artifact
from components.shared.errors import InputError
from components.shared.files import read_json, write_json
from components.shared.model_names import SCRATCH_SUFFIX
from components.shared.tracking import StageRun, stage_run

__all__ = ["ACTOR_VARIABLE", "run_gate", "run_keep_champion", "run_promote", "run_rollback"]

_logger = logging.getLogger(__name__)

ACTOR_VARIABLE = "PLUMBLINE_ACTOR"
Mode = Literal["candidate", "live"]

_STALE = (
    "NOT RECORDED: the ledger has a verdict that rests on newer evidence of people. This one is of a run that was "
    "held up; it changes nothing."
)


@dataclass(frozen=True)
class _Task:
    """What the gate was asked to judge.

    Attributes:
        mode: `candidate` or `live`.
        model: Registered model.
        policy: Name or path of the policy, as given.
        seed: Of the bootstrap.
        candidate: Folder of the candidate; "" in mode `live`.
        folders: Folder of each part of the evidence; "" for one that does not exist.
        locations: Address of each artifact under which a later run finds it, by parameter.
        requested_by: Who asks for the release, as the run's settings say; "" if they do not.
    """

    mode: Mode
    model: str
    policy: str
    seed: int
    candidate: str
    folders: Mapping[str, str]
    locations: Mapping[str, str]
    requested_by: str

    def requester(self, office: Office, subject: Subject) -> str:
        """Who asked for the release: the first of `asking`; "" if nobody is known."""
        return next(iter(self.asking(office, subject)), "")

    def asking(self, office: Office, subject: Subject) -> tuple[str, ...]:
        """All who asked: as the ledger knows of a release under way, as told, and who runs the gate."""
        told, view = [self.requested_by.strip(), _actor()], office.ledger.view(self.model)
        if subject.version is not None and is_under_way(view.state(subject.version)):
            told.insert(0, view.requester(subject.version))
        return tuple(dict.fromkeys(name for name in told if not is_anonymous(name)))

    def open(self, office: Office, rules: GatePolicy) -> tuple[Subject, Case]:
        """The subject by the ledger, and its case by the evidence."""
        view = office.ledger.view(self.model)
        live = self.mode == "live"
        subject = live_subject(view) if live else candidate_subject(view, read_artifact(self.candidate, "policy"))
        kinds = {"heldout_reward_model": "reward_model"}
        sources = {part: read_source(part, path, kinds.get(part, part)) for part, path in self.folders.items()}
        human, heldout = sources["human_evidence"], sources["heldout_reward_model"]
        about = {"evaluation": sources["evaluation"], "human": human, "heldout": heldout}
        about["reward_model"] = sources["reward_model"]
        check_provenance(candidate_digest=subject.digest, baseline_digest=subject.baseline, **about)
        case = Case(
            policy=rules,
            mode=self.mode,
            **about,
            history=sources["training_history"],
            champion=subject.champion,
            champion_digest=subject.champion_digest,
            no_champion_reason=subject.no_champion_reason,
            seed=self.seed,
            has_predecessor=subject.predecessor is not None,
        )
        return subject, case

    def order_again(self, awaited: Awaited | None, version: str) -> None:
        """Records what judging the version again takes, if people still judge."""
        if awaited is None:
            return
        own = {name: folder for name, folder in self.folders.items() if name not in ("human_evidence",)}
        history = own.pop("training_history")
        record_order(
            awaited,
            model=self.model,
            version=version,
            mode=self.mode,
            policy=self.policy,
            folders={"candidate": self.candidate, **own, "history": history},
            locations=self.locations,
        )


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
    requested_by: str = "",
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
        requested_by: Who asks for the release, and may not approve it; "" takes PLUMBLINE_ACTOR.

    Returns:
        `verdict`, `promote`, `roll_back`, `version`, `state`, `champion` and the decision's `digest`.

    Raises:
        InputError: The policy is not valid, or a service is not set.
        ArtifactError: The candidate itself cannot be read.
        PlumblineError: In mode `live`, nothing is live.
    """
    task = _Task(
        mode=mode,
        model=model_name,
        policy=policy,
        seed=seed,
        candidate=candidate,
        folders={
            "evaluation": evaluation,
            "human_evidence": evidence,
            "reward_model": reward_model,
            "heldout_reward_model": heldout_reward_model,
            "training_history": history,
        },
        locations=locations or {},
        requested_by=requested_by,
    )
    return _judge(task, output)


def _judge(task: _Task, output: str) -> dict[str, Any]:
    if task.model.endswith(SCRATCH_SUFFIX):
        hint = f"Give it another name: {SCRATCH_SUFFIX} marks the models of rollback drills, of which nobody is told."
        raise InputError(f"cannot end in {SCRATCH_SUFFIX}.", where=f"model {task.model}", hint=hint)
    rules, office = load_policy_file(task.policy), open_office()
    with stage_run("release_gate", settings={"policy": rules.name, "mode": task.mode}, seed=task.seed) as tracked:
        subject, case = task.open(office, rules)
        judgement, awaited = _weigh(task, case, subject, office)
        asking = () if case.live else task.asking(office, subject)
        judged = judged_release(case, subject, judgement, actor=_actor(), asking=asking)
        version, state = _record(task, office, subject, judged, awaited)
        stale = is_stale(office.ledger.view(task.model), version, judged)
        judgement = with_notes(judgement, _notes_of_the_ledger(task, office, version, judged, stale=stale))
        decision = decision_of(case, judgement, judged, task.model, version)
        _write(output, decision, judged, rules)
        keep_dossier(
            office.registry, task.model, version, judged.binding, judged.criteria, {"decision": output, **task.folders}
        )
        _track(tracked, judgement, version)
    _announce(judgement, decision["policy"]["looser_than_production"], rules, task.model, version)
    return {
        "digest": read_artifact(output, "decision").digest,
        "verdict": str(judgement.verdict),
        "promote": judgement.verdict is Verdict.PROMOTE and not stale,
        "roll_back": _may_roll_back(judgement, rules, subject) and not stale,
        "version": version,
        "state": str(state),
        "champion": office.ledger.view(task.model).champion or "",
    }


def _weigh(task: _Task, case: Case, subject: Subject, office: Office) -> tuple[Judgement, Awaited | None]:
    """The verdict with all that has to be said of it, and what it waits for."""
    criteria = judge_all(case) + rejected_before(office.ledger.view(task.model), subject)
    if not case.live:
        criteria += asked_by_nobody(case.policy.release, task.requester(office, subject))
        criteria += weaker_policy(case.policy.release, office.ledger.view(task.model))
    judgement = with_notes(decide(criteria, live=case.live), unchecked_baseline(subject))
    judgement = nowhere_to_go_back(judgement, subject)
    awaited = read_awaited(task.folders["human_evidence"]) if judgement.verdict is Verdict.HOLD else None
    if awaited is not None:
        first = 1 if judgement.alarm else 0
        reasons = [*judgement.reasons[:first], awaited.reason, *judgement.reasons[first:]]
        judgement = replace(judgement, reasons=reasons)
    return judgement, awaited


def _record(
    task: _Task, office: Office, subject: Subject, judged: JudgedRelease, awaited: Awaited | None
) -> tuple[str, State]:
    """Registers and records; the order comes before the verdict, so that no verdict waits for a run without one."""
    if subject.artifact is None:
        version = str(subject.version)
        task.order_again(awaited, version)
        return version, record_live_verdict(office, task.model, version, judged)
    version = register(office, task.model, subject.artifact, judged)
    task.order_again(awaited, version)
    state = record_verdict(office, task.model, version, judged)
    office.sync_aliases(task.model)
    return version, state


def _notes_of_the_ledger(task: _Task, office: Office, version: str, judged: JudgedRelease, *, stale: bool) -> list[str]:
    notes = [_STALE] if stale else []
    view = office.ledger.view(task.model)
    return notes + (unknown_requester(view, version, judged) if task.mode == "candidate" else [])


def _write(output: str, decision: dict[str, Any], judged: JudgedRelease, rules: GatePolicy) -> None:
    settings = rules.model_dump(mode="json")
    with write_artifact(output, "decision", inputs=judged.digests, settings=settings, stage="release_gate") as draft:
        write_json(draft.path / "decision.json", decision)


def _track(tracked: StageRun, judgement: Judgement, version: str) -> None:
    tracked.set_tags({"plumbline.verdict": str(judgement.verdict), "plumbline.version": version})
    tracked.log_metrics({f"gate/{found.name}": found.value for found in judgement.criteria if found.value is not None})


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


def _may_roll_back(judgement: Judgement, rules: GatePolicy, subject: Subject) -> bool:
    """Whether the model is taken back at once: harm is shown, the policy does not leave it to people, and a way is."""
    return judgement.verdict is Verdict.ROLLBACK and rules.release.auto_rollback and subject.predecessor is not None


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
    level = logging.ERROR if judgement.alarm else logging.INFO
    _logger.log(level, "%s: %s version %s. %s", judgement.verdict, model, version, " ".join(judgement.reasons))


def _actor() -> str:
    actor = os.environ.get(ACTOR_VARIABLE, ANONYMOUS).strip()
    if not actor:
        raise InputError("is empty.", where=ACTOR_VARIABLE, hint="Name who acts, or leave it unset.")
    return actor
