"""A candidate with all its evidence, made up but consistent, as docs/architecture.md describes the artifacts."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from components.release_gate.anchor import Anchor
from components.release_gate.entries import LedgerView, Move
from components.release_gate.evidence import Case, read_source
from components.release_gate.ledger import Ledger
from components.release_gate.policy import GatePolicy, load_policy_file
from components.release_gate.provenance import check_provenance
from components.release_gate.states import Event
from components.shared.artifacts import read_artifact, write_artifact
from components.shared.files import write_json, write_jsonl, write_text
from components.shared.statistics import betting_confidence_sequence, betting_p_value, binomial_lower, binomial_upper

__all__ = [
    "MODEL",
    "Evidence",
    "comparison",
    "digest_of_policy",
    "edit_case",
    "length_controlled",
    "make_case",
    "make_evidence",
    "make_ledger",
    "make_policy",
    "make_weights",
    "register_moves",
]

MODEL = "tiny"
SLICES = ("safe", "unsafe", "uncertain")
PROMPTS = 300
VOTE = {"n_votes": 1, "n_decided": 1}
ATTACKS = ("padding", "flattery", "confident_jargon", "formatting", "refusal_template", "repetition")

Edit = Callable[[Any], Any]


@dataclass(frozen=True)
class Evidence:
    """Paths of the artifacts of one judgement, as `run_gate` takes them."""

    candidate: str
    evaluation: str
    evidence: str
    reward_model: str
    heldout_reward_model: str
    history: str

    def as_arguments(self, **overrides: Any) -> dict[str, Any]:
        return {**self.__dict__, **overrides}


def make_weights(folder: Path, text: str, *, trained_from: str | None = None) -> str:
    """A policy artifact whose weights are `text`; returns its digest, which does not depend on `trained_from`."""
    inputs = {"policy": trained_from} if trained_from else {}
    with write_artifact(folder, "policy", inputs=inputs, stage="ppo") as draft:
        write_text(draft.path / "model.safetensors", text)
        write_json(draft.path / "policy.json", {"format": "full", "base_model": "x", "base_digest": "y", "step": 1})
    return read_artifact(folder, "policy").digest


def digest_of_policy(folder: str) -> str:
    return read_artifact(folder, "policy").digest


def make_policy(**sections: dict[str, Any]) -> GatePolicy:
    """The production policy, simulated votes accepted and few bootstrap draws, with some thresholds replaced."""
    values = load_policy_file("production").model_dump()
    values["raters"]["accept_simulated_votes"] = True
    values["divergence"]["bootstrap_draws"] = 200
    for section, thresholds in sections.items():
        values[section] = {**values[section], **thresholds}
    return GatePolicy.model_validate(values)


def make_evidence(
    root: Path,
    *,
    story: str = "good",
    weights: str = "candidate",
    champion_digest: str | None = None,
    reference_digest: str = "r" * 64,
    rater_kind: str = "human",
    seed: int = 0,
    edits: dict[str, Edit] | None = None,
    candidate_digest: str | None = None,
    trained_from: str | None = "r" * 64,
) -> Evidence:
    """Writes candidate and evidence below `root`.

    Args:
        root: An empty folder.
        story: `good` (people follow the reward) or `overoptimized` (the reward is up, people turn away).
        weights: The candidate's weights, as text.
        champion_digest: Digest of the champion that it was compared with.
        reference_digest: Digest of the reference.
        rater_kind: Who voted.
        seed: Of the made-up numbers.
        edits: By file name, a function from its content to the content to write instead.
        candidate_digest: Digest that the evaluation names as candidate, if not that of `weights`.
        trained_from: Digest of the policy that the candidate names as its input, if any.
    """
    rng = np.random.default_rng(seed)
    edits = edits or {}
    digest = make_weights(root / "candidate", weights, trained_from=trained_from)
    models = {
        "reference": {"digest": reference_digest, "step": None, "name": "sft"},
        "candidate": {"digest": candidate_digest or digest, "step": 60, "name": "candidate"},
        "step-0010": {"digest": "1" * 64, "step": 10, "name": "step-0010"},
        "step-0030": {"digest": "3" * 64, "step": 30, "name": "step-0030"},
    }
    if champion_digest:
        models["champion"] = {"digest": champion_digest, "step": None, "name": "champion"}
    reward = _write_reward_model(root / "reward_model", "train", rng, edits)
    heldout = _write_reward_model(root / "heldout_reward_model", "divergence", rng, {})
    gains = rng.normal(1.0, 0.8, PROMPTS)
    evaluation = _write_evaluation(root / "evaluation", story, models, gains, {reward, heldout}, rng, edits)
    _write_human(root / "evidence", story, models, gains, evaluation, rater_kind, rng, edits)
    with write_artifact(root / "history", "training_history", stage="ppo") as draft:
        write_json(draft.path / "summary.json", {"kl_final": 2.4, "kl_target": 2.5})
    names = ("candidate", "evaluation", "evidence", "reward_model", "heldout_reward_model", "history")
    return Evidence(**{name: str(root / name) for name in names})


def make_case(evidence: Evidence, **overrides: Any) -> Case:
    """The evidence as the criteria see it."""
    sources = {
        "evaluation": read_source("evaluation", evidence.evaluation, "evaluation"),
        "human": read_source("human_evidence", evidence.evidence, "human_evidence"),
        "reward_model": read_source("reward_model", evidence.reward_model, "reward_model"),
        "heldout": read_source("heldout_reward_model", evidence.heldout_reward_model, "reward_model"),
    }
    candidate = read_artifact(evidence.candidate, "policy")
    baseline = candidate.manifest["inputs"].get("policy")
    check_provenance(candidate_digest=candidate.digest, baseline_digest=baseline, **sources)
    values: dict[str, Any] = {
        "policy": make_policy(),
        "mode": "candidate",
        **sources,
        "history": read_source("training_history", evidence.history, "training_history"),
        "champion": None,
        "champion_digest": None,
        "no_champion_reason": "There is no champion yet.",
        "seed": 0,
    }
    return Case(**{**values, **overrides})


def edit_case(case: Case, edits: dict[str, Edit]) -> Case:
    """The case with some files' contents changed, as if read so; `evaluation.json` is the optimised reward model's."""
    changed = {}
    for name in ("evaluation", "human", "reward_model"):
        source = getattr(case, name)
        documents, tables = dict(source.documents), dict(source.tables)
        for file, edit in edits.items():
            for contents in (documents, tables):
                if file in contents:
                    contents[file] = edit(copy.deepcopy(contents[file]))
        changed[name] = replace(source, documents=documents, tables=tables)
    return replace(case, **changed)


def make_ledger(root: Path) -> Ledger:
    return Ledger(f"sqlite:///{root / 'ledger.db'}", Anchor(root / "anchor"))


def register_moves(
    version: str, *events: Event, digest: str = "", **details: Any
) -> Callable[[LedgerView], list[Move]]:
    """Registers a version and moves it through `events`."""
    registered = {"digest": digest or f"digest-{version}", "uri": f"uri-{version}", "requester": "pipeline"}
    moves = [Move(version, Event.REGISTER, "pipeline", "asked", details=registered)]
    verdict = {"binding": "b", "champion": "", "approvals_required": 0, "expires_at": "2999-01-01T00:00:00+00:00"}
    moves += [Move(version, event, "gate", "because", details={**verdict, **details}) for event in events]
    return lambda view: moves


def _write_reward_model(path: Path, split: str, rng: np.random.Generator, edits: dict[str, Edit]) -> str:
    n = 400
    differences = rng.normal(0.0, 1.6, n)
    chosen_first = rng.random(n) < 1.0 / (1.0 + np.exp(-differences))
    differences = np.where(chosen_first, differences, -differences)
    accuracy = float((differences > 0).mean())
    attack = {"success_rate": 0.1, "ci95": [0.06, 0.15], "n": 200, "limit": 0.3, "passed": True}
    evaluation = {
        "n": n,
        "accuracy": {
            "value": accuracy,
            "ci95_wilson": [accuracy - 0.05, accuracy + 0.05],
            "ci95_clustered": [accuracy - 0.05, accuracy + 0.05],
            "lower95_one_sided": accuracy - 0.04,
        },
        "attacks": {name: dict(attack) for name in ATTACKS},
        "passed": True,
    }
    predictions = [
        {"id": f"h{i}", "slice": "safe", "group": f"g{i // 2}", "chosen_reward": float(d), "rejected_reward": 0.0}
        for i, d in enumerate(differences)
    ]
    with write_artifact(path, "reward_model", stage="reward_model") as draft:
        _write(draft.path, "reward.json", {"mean": 0.0, "std": 1.2, "slope": 1.0, "train_split": split}, edits)
        _write(draft.path, "evaluation.json", evaluation, edits)
        _write(draft.path, "predictions.jsonl", predictions, edits)
    return read_artifact(path, "reward_model").digest


def _write_evaluation(
    path: Path,
    story: str,
    models: dict[str, Any],
    gains: np.ndarray,
    scorers: set[str],
    rng: np.random.Generator,
    edits: dict[str, Edit],
) -> str:
    fallen = story == "overoptimized"
    heldout_level = {"reference": 0.0, "step-0010": 0.5, "step-0030": 1.0, "candidate": -0.5 if fallen else 1.2}
    generations = []
    for role in models:
        base = rng.normal(0.0, 0.3, PROMPTS)
        for i in range(PROMPTS):
            generations.append(
                {
                    "prompt_id": f"p{i}",
                    "prompt": f"question {i}",
                    "slice": SLICES[i % 3],
                    "prompt_set": "human_eval",
                    "role": role,
                    "response": "answer",
                    "n_tokens": 10,
                    "finished": True,
                    "reward": float(gains[i]) if role == "candidate" else 0.0,
                    "heldout_reward": float(heldout_level.get(role, 0.8) + base[i]),
                    "kl": 2.0,
                }
            )
    kl = {"mean": 2.4, "se": 0.1, "per_token": 0.2}
    figures = {"n": PROMPTS, "kl": kl, "slices": {name: {"n": 100, "kl": dict(kl)} for name in SLICES}}
    inputs = {f"scorer{i}": digest for i, digest in enumerate(sorted(scorers))}
    inputs |= {role: model["digest"] for role, model in models.items()}
    with write_artifact(path, "evaluation", inputs=inputs, stage="evaluation") as draft:
        _write(draft.path, "models.json", models, edits)
        _write(draft.path, "metrics.json", {"candidate": figures}, edits)
        _write(draft.path, "generations.jsonl", generations, edits)
    return read_artifact(path, "evaluation").digest


def _write_human(
    path: Path,
    story: str,
    models: dict[str, Any],
    gains: np.ndarray,
    evaluation: str,
    rater_kind: str,
    rng: np.random.Generator,
    edits: dict[str, Edit],
) -> None:
    wins = 1.0 / (1.0 + np.exp(-gains)) if story == "good" else np.full(PROMPTS, 0.2)
    comparisons, outcomes = {}, []
    for other in ("reference", "champion"):
        if other not in models:
            continue
        name = f"candidate_vs_{other}"
        values = (rng.random(PROMPTS) < wins).astype(float).tolist()
        comparisons[name] = comparison(values)
        outcomes += [
            {"comparison": name, "prompt_id": f"p{i}", "slice": SLICES[i % 3], "outcome": value} | VOTE
            for i, value in enumerate(values)
        ]
    early = [1.0, 1.0, 1.0, 1.0, 0.0] * 40
    comparisons["step-0010_vs_reference"] = comparison(early)
    outcomes += [
        {"comparison": "step-0010_vs_reference", "prompt_id": f"p{i}", "slice": SLICES[i % 3], "outcome": value}
        for i, value in enumerate(early)
    ]
    safety = {"n": 400, "bad": 0, "severity_1": 0, "upper": binomial_upper(0, 400), "lower": binomial_lower(0, 400)}
    rater = {
        "gold_n": 10,
        "gold_accuracy": 0.9,
        "repeat_n": 8,
        "repeat_agreement": 0.75,
        "n_votes": 80,
        "counted": True,
    }
    statistics = {
        "batch_id": "batch",
        "rater_kinds": [rater_kind],
        "error_probability": 0.05,
        "complete": True,
        "comparisons": comparisons,
        "safety": {role: dict(safety) for role in ("candidate", "reference", "champion")},
        "raters": {f"rater-{i}": dict(rater) for i in range(4)},
        "alpha": 0.3,
        "raw_agreement": 0.7,
        "position_bias": 0.01,
    }
    judgements = [{"judgement_id": f"j{i}", "rater": "rater-0", "rater_kind": rater_kind} for i in range(5)]
    with write_artifact(path, "human_evidence", inputs={"evaluation": evaluation}, stage="human_eval") as draft:
        _write(draft.path, "statistics.json", statistics, edits)
        _write(draft.path, "outcomes.jsonl", outcomes, edits)
        _write(draft.path, "judgements.jsonl", judgements, edits)


def comparison(values: list[float]) -> dict[str, Any]:
    """Statistics of one comparison, as the human evaluation computes them."""
    return copy.deepcopy(_comparison(tuple(values)))


@cache
def _comparison(values: tuple[float, ...]) -> dict[str, Any]:
    bounds = betting_confidence_sequence(values)
    win_rate = math.fsum(values) / len(values)
    found = {"win_rate": win_rate, "n_prompts": len(values), "lower": bounds.lower, "upper": bounds.upper}
    return {
        **found,
        "n_votes": len(values),
        "ci95": [bounds.lower, bounds.upper],
        "length_controlled": length_controlled(win_rate, half=0.3),
        "slices": {name: _slice(values[i::3]) for i, name in enumerate(SLICES)},
    }


def length_controlled(win_rate: float, *, half: float) -> dict[str, float]:
    """A win rate at equal length whose 95 % bounds are `half` log odds away."""
    win_rate = min(max(win_rate, 0.01), 0.99)
    log_odds = math.log(win_rate / (1.0 - win_rate))
    lower, upper = (1.0 / (1.0 + math.exp(-value)) for value in (log_odds - half, log_odds + half))
    return {"win_rate": win_rate, "lower": lower, "upper": upper}


def _slice(values: tuple[float, ...]) -> dict[str, Any]:
    bounds = betting_confidence_sequence(values)
    return {
        "win_rate": math.fsum(values) / len(values),
        "n_prompts": len(values),
        "lower": bounds.lower,
        "upper": bounds.upper,
        "p_worse": betting_p_value([1.0 - value for value in values]),
    }


def _write(folder: Path, name: str, content: Any, edits: dict[str, Edit]) -> None:
    content = edits[name](content) if name in edits else content
    if isinstance(content, str):
        (folder / name).write_text(content)
    elif name.endswith(".jsonl"):
        write_jsonl(folder / name, content)
    else:
        write_json(folder / name, content)
