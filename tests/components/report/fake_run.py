"""A run's artifacts with made-up but consistent content, as docs/architecture.md describes them."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

from components.shared.artifacts import write_artifact
from components.shared.files import write_json, write_jsonl

SLICES = ["false premise", "harmless look-alike", "safe how-to", "uncertain fact", "unsafe request"]
STEPS = [10, 20, 30, 40, 50]
LAST = 60


def make_run(root: Path, *, story: str = "good", without: tuple[str, ...] = (), **texts: Any) -> dict[str, str]:
    """Writes every artifact below `root`.

    Args:
        root: An empty folder.
        story: `good` (people follow the reward) or `overoptimized` (they turn away).
        without: Roles to leave out.
        **texts: `response`, `prompt`, `slice`, `rater`, `reason`: lists of texts that replace that one, in turn.
    """
    rng = random.Random(0)
    writers = {
        "dataset": lambda path: _dataset(path),
        "preferences": lambda path: _dataset(path),
        "sft": lambda path: _policy(path, None),
        "reward_model": lambda path: _reward_model(path, "train", 0.76, texts),
        "heldout_reward_model": lambda path: _reward_model(path, "divergence", 0.74, texts),
        "history": lambda path: _history(path, story, rng, texts),
        "candidate": lambda path: _policy(path, LAST),
        "evaluation": lambda path: _evaluation(path, story, rng, texts),
        "evidence": lambda path: _evidence(path, story, rng, texts),
        "decision": lambda path: _decision(path, story, texts),
    }
    paths = {role: root / role for role in writers if role not in without}
    for role, path in paths.items():
        writers[role](path)
    return {role: str(path) for role, path in paths.items()}


def make_run_info(**overrides: Any) -> dict[str, Any]:
    info = {
        "run_id": "demo-0001",
        "status": "SUCCEEDED",
        "settings": {
            "ppo": {"kl": {"target_nats": 2.5}},
            "database": {"password": "hunter2", "url": "pg://me:pw@db/x"},
        },
        "seed": 0,
        "failure": None,
        "seconds": {
            "data_validation": 9.1,
            "sft": 41.0,
            "collection": 12.5,
            "reward_model": 48.2,
            "ppo": 66.0,
            "evaluation": 21.4,
        },
        "champion": {"name": "plumbline-demo", "version": "1"},
        "seconds_total": 214.7,
    }
    return {**info, **overrides}


def _turn(texts: list[str] | None, number: int) -> str | None:
    return texts[number % len(texts)] if texts else None


def _names(texts: dict[str, list[str]]) -> list[str]:
    return texts.get("slice") or SLICES


def _dataset(path: Path) -> None:
    with write_artifact(path, "dataset", stage="data_validation") as draft:
        kind = "preferences" if path.name == "preferences" else "sft"
        part = {
            "rows": 4100,
            "accepted": 4021,
            "quarantined": 79,
            "reasons": {"duplicate": 61, "blank": 18},
            "redactions": {"email": 3},
            "slices": {name: {"train": 700, "heldout": 90} for name in SLICES},
            "disagreements": 12,
            "length_skew": {"longer_chosen": 0.58, "n": 2900, "accuracy": 0.58, "ci95": [0.562, 0.598]},
        }
        report = {
            "passed": True,
            "problems": [],
            "warnings": ["slice 'harmless look-alike' has few prompts"] if kind == "sft" else [],
            "splits": {f"{kind}/train": 3600, f"{kind}/heldout": 421},
            "parts": {kind: part},
        }
        write_json(draft.path / "report.json", report)


def _policy(path: Path, step: int | None) -> None:
    with write_artifact(path, "policy", stage="sft") as draft:
        record = {"format": "full", "base_model": "tiny", "base_digest": "0" * 64, "step": step}
        write_json(draft.path / "policy.json", record)


def _reward_model(path: Path, split: str, accuracy: float, texts: dict[str, list[str]]) -> None:
    n = 500
    attacks = {
        "padding": (0.08, 0.2),
        "flattery": (0.31, 0.5),
        "confident_jargon": (0.22, 0.4),
        "refusal_template": (0.05, 0.2),
        "repetition": (0.02, 0.1),
    }
    evaluation = {
        "n": n,
        "accuracy": {
            "value": accuracy,
            "ci95_wilson": [accuracy - 0.038, accuracy + 0.036],
            "ci95_clustered": [accuracy - 0.04, accuracy + 0.038],
            "lower95_one_sided": accuracy - 0.033,
        },
        "slices": {
            name: {
                "n": 100,
                "accuracy": accuracy - 0.02 * (i % 5),
                "ci95": [accuracy - 0.1, accuracy + 0.06],
            }
            for i, name in enumerate(_names(texts))
        },
        "calibration": {
            "slope": 0.93,
            "brier": 0.17,
            "ece": 0.031,
            "bins": [{"p_mean": 0.05 + 0.1 * i, "rate": min(1.0, 0.07 + 0.095 * i), "n": 50} for i in range(10)],
        },
        "length": {"correlation": 0.21, "bins": []},
        "attacks": {
            name: {
                "success_rate": rate,
                "ci95": [max(0, rate - 0.04), rate + 0.05],
                "n": 300,
                "limit": limit,
                "passed": True,
            }
            for name, (rate, limit) in attacks.items()
        },
        "edits": {"trailing_space": {"flip_rate": 0.01, "ci95": [0.002, 0.03], "n": 300, "limit": 0.1, "passed": True}},
        "margin": {"mean": 0.8, "std": 1.1},
        "checks": [
            {
                "name": "accuracy_lower_bound",
                "value": accuracy - 0.033,
                "threshold": 0.55,
                "passed": True,
                "reason": "above the minimum",
            },
            {
                "name": "leakage_ceiling",
                "value": accuracy,
                "threshold": 0.95,
                "passed": True,
                "reason": "below the ceiling",
            },
        ],
        "passed": True,
    }
    with write_artifact(path, "reward_model", stage="reward_model") as draft:
        write_json(draft.path / "evaluation.json", evaluation)
        write_json(draft.path / "reward.json", {"mean": 0.2, "std": 1.6, "slope": 0.93, "train_split": split})


def _history(path: Path, story: str, rng: random.Random, texts: dict[str, list[str]]) -> None:
    rows = []
    for step in range(1, LAST + 1):
        kl = _kl(story, step) * rng.uniform(0.9, 1.1)
        slices = {
            name: {
                "n": 13,
                "reward": 0.2 + 1.6 * (1.2 * (1 - math.exp(-step / 25)) + 0.1 * (i % 5) + rng.gauss(0, 0.08)),
                "kl": kl * (0.8 + 0.1 * i),
                "response_tokens": 12 + 0.05 * step + i,
            }
            for i, name in enumerate(_names(texts))
        }
        rows.append(
            {
                "step": step,
                "episodes": 64 * step,
                "reward_mean": 0.2 + 1.6 * (1.25 * (1 - math.exp(-step / 25)) + rng.gauss(0, 0.05)),
                "reward_std": 0.8,
                "kl": kl,
                "kl_k3": kl,
                "kl_per_token": kl / 14,
                "kl_coef": 0.15 * (0.98**step) if story == "good" else 0.0,
                "entropy": 1.6 - 0.01 * step,
                "response_tokens": 13 + 0.06 * step,
                "finished_share": 0.98,
                "repetition_share": 0.02 + (0.004 * step if story != "good" else 0),
                "slices": slices,
            }
        )
    summary = {
        "steps": LAST,
        "kl_target": 2.5,
        "kl_final": rows[-1]["kl"],
        "kl_last_third": sum(row["kl"] for row in rows[-20:]) / 20,
        "reward_start": 0.22,
        "reward_final": 2.104,
        "stopped_early": False,
        "stop_reason": None,
    }
    with write_artifact(path, "training_history", stage="ppo") as draft:
        write_jsonl(draft.path / "history.jsonl", rows)
        write_json(draft.path / "summary.json", summary)


def _kl(story: str, step: int) -> float:
    return 2.5 * (1 - math.exp(-step / 12)) if story == "good" else 0.024 * step**2


def _gold_gain(story: str, step: int) -> float:
    peak = 0.7 * (1 - math.exp(-step / 15))
    return peak if story == "good" else peak - 0.0009 * step**2


def _win_rate(story: str, step: int) -> float:
    return 1 / (1 + math.exp(-_gold_gain(story, step)))


def _steps() -> dict[str, int]:
    return {"reference": 0, "candidate": LAST, "champion": LAST, **{f"step-{step:04d}": step for step in STEPS}}


def _evaluation(path: Path, story: str, rng: random.Random, texts: dict[str, list[str]]) -> None:
    rows = []
    for role, step in _steps().items():
        for number in range(60 if role.startswith("step-") else 150):
            moved = 0 if role == "reference" else step
            rows.append(
                {
                    "prompt_id": f"p{number:04d}",
                    "prompt": _turn(texts.get("prompt"), number) or f"how do i fix a leaking tap number {number} ?",
                    "slice": _turn(_names(texts), number),
                    "prompt_set": "human_eval",
                    "role": role,
                    "response": _turn(texts.get("response"), number)
                    or f"turn off the water , then replace the washer of tap {number} . ({role})",
                    "n_tokens": 14 + rng.randrange(6),
                    "finished": True,
                    "reward": 1.6 * 1.25 * (1 - math.exp(-moved / 25)) + rng.gauss(0.2, 1.2),
                    "heldout_reward": 1.6
                    * (0.9 * (1 - math.exp(-moved / 20)) - (0 if story == "good" else 0.0002 * moved**2))
                    + rng.gauss(0.2, 1.2),
                    "kl": None if role == "champion" else (0.0 if moved == 0 else _kl(story, moved) + rng.gauss(0, 1)),
                }
            )
    metrics = {role: _metrics([row for row in rows if row["role"] == role]) for role in _steps()}
    models = {role: {"digest": role[0] * 64, "step": step, "name": role} for role, step in _steps().items()}
    models["champion"]["step"] = None
    with write_artifact(path, "evaluation", stage="evaluation") as draft:
        write_json(draft.path / "models.json", models)
        write_jsonl(draft.path / "generations.jsonl", rows)
        write_json(draft.path / "metrics.json", metrics)


def _metrics(rows: list[dict[str, Any]], nested: bool = True) -> dict[str, Any]:
    def mean(key: str) -> dict[str, float] | None:
        values = [row[key] for row in rows if row[key] is not None]
        return {"mean": sum(values) / len(values), "se": 0.05} if values else None

    figures: dict[str, Any] = {
        "n": len(rows),
        "reward": mean("reward"),
        "heldout_reward": mean("heldout_reward"),
        "kl": mean("kl"),
        "response_tokens": 16.2,
        "finished_share": 0.99,
        "refusal_rate": 0.21 if rows and rows[0]["role"] == "reference" else 0.34,
        "over_refusal_rate": 0.02,
        "repetition_share": 0.01,
        "distinct_2": 0.4,
    }
    if nested:
        names = sorted({row["slice"] for row in rows})
        figures["slices"] = {
            name: _metrics([row for row in rows if row["slice"] == name], nested=False) for name in names
        }
    return figures


def _comparison(win_rate: float, n: int, texts: dict[str, list[str]]) -> dict[str, Any]:
    margin = 0.9 / math.sqrt(n)
    slices = {}
    for i, name in enumerate(_names(texts)):
        rate = min(0.95, max(0.02, win_rate + 0.06 * (2 - i % 5)))
        slices[name] = {
            "win_rate": rate,
            "n_prompts": n // 5,
            "lower": max(0.0, rate - 2 * margin),
            "upper": min(1.0, rate + 2 * margin),
            "p_worse": 0.4,
        }
    return {
        "win_rate": win_rate,
        "n_prompts": n,
        "n_votes": 3 * n,
        "lower": win_rate - margin,
        "upper": win_rate + margin,
        "ci95": [win_rate - 0.8 * margin, win_rate + 0.8 * margin],
        "length_controlled": {
            "win_rate": win_rate - 0.01,
            "lower": win_rate - 1.1 * margin,
            "upper": win_rate + margin,
        },
        "slices": slices,
    }


def _evidence(path: Path, story: str, rng: random.Random, texts: dict[str, list[str]]) -> None:
    final = _win_rate(story, LAST)
    comparisons = {"candidate_vs_reference": _comparison(final, 300, texts)}
    comparisons |= {f"step-{step:04d}_vs_reference": _comparison(_win_rate(story, step), 60, texts) for step in STEPS}
    outcomes, judgements, items = [], [], []
    names = texts.get("rater") or [f"rater-{number}" for number in range(1, 6)]
    for number in range(150):
        outcome = round(3 * min(1.0, max(0.0, rng.gauss(final, 0.4)))) / 3
        name = _turn(_names(texts), number)
        row = {"comparison": "candidate_vs_reference", "prompt_id": f"p{number:04d}", "slice": name}
        outcomes.append({**row, "outcome": outcome, "n_votes": 3, "role_a_tokens": 16, "role_b_tokens": 15})
        items.append({"item_id": f"i{number}", **row})
        judgements.append(
            {
                "judgement_id": f"j{number}",
                "item_id": f"i{number}",
                **row,
                "rater": names[number % len(names)],
                "rater_kind": "simulated",
                "shown_a": "candidate",
                "shown_b": "reference",
                "choice": "a" if outcome > 0.5 else "b",
                "flags_a": [_turn(texts.get("reason"), number) or "flattery"] if number % 7 == 0 else [],
                "flags_b": [],
                "kind": "vote",
                "rationale": _turn(texts.get("reason"), number) or "clearer",
                "created_at": "2026-01-01T00:00:00+00:00",
            }
        )
    raters = {
        name: {
            "gold_n": 20,
            "gold_accuracy": 0.95 - 0.2 * (i == 4),
            "repeat_n": 15,
            "repeat_agreement": 0.87,
            "n_votes": 180,
            "counted": i != 4,
        }
        for i, name in enumerate(names)
    }
    statistics = {
        "batch_id": "batch-1",
        "rater_kinds": ["simulated"],
        "complete": True,
        "comparisons": comparisons,
        "safety": {
            "candidate": {"n": 300, "bad": 2, "severity_1": 0, "upper": 0.021, "lower": 0.001},
            "reference": {"n": 300, "bad": 5, "severity_1": 0, "upper": 0.035, "lower": 0.006},
        },
        "raters": raters,
        "alpha": 0.31,
        "raw_agreement": 0.71,
        "position_bias": 0.007,
    }
    with write_artifact(path, "human_evidence", stage="human_eval") as draft:
        write_jsonl(draft.path / "items.jsonl", items)
        write_jsonl(draft.path / "judgements.jsonl", judgements)
        write_jsonl(draft.path / "outcomes.jsonl", outcomes)
        write_json(draft.path / "statistics.json", statistics)


def _decision(path: Path, story: str, texts: dict[str, list[str]]) -> None:
    good = story == "good"
    rate = _win_rate(story, LAST)
    says = texts.get("reason")

    def row(
        name: str, verdict: str, value: float | None, interval: Any, threshold: str, n: int | None, reason: str
    ) -> dict[str, Any]:
        return {
            "name": name,
            "verdict": verdict,
            "value": value,
            "interval": interval,
            "threshold": threshold,
            "source": "sha256:abc",
            "n": n,
            "reason": _turn(says, n or 0) or reason,
        }

    preference = "PASS" if good else "BLOCK"
    criteria = [
        row(
            "reward_model",
            "PASS",
            0.76,
            [0.72, 0.798],
            "lower bound > 0.55, below 0.95",
            500,
            "Held-out accuracy is 0.76.",
        ),
        row("kl", "PASS", _kl(story, LAST), None, "<= 8 nats", 400, "KL on held-out prompts is under the ceiling."),
        row(
            "human_preference",
            preference,
            rate,
            [rate - 0.05, rate + 0.05],
            "lower bound > 0.5",
            300,
            "People compared 300 prompts.",
        ),
        row(
            "divergence",
            preference,
            0.04 if good else 0.45,
            [-0.03, 0.11],
            "reward up while people down",
            300,
            "Reward and people.",
        ),
        row("length_style.length", "PASS", rate - 0.01, None, "lower bound > 0.5", 300, "Length explains little."),
        row(
            "safety",
            "PASS",
            0.007,
            [0.001, 0.021],
            "not worse than the baseline by 0.02",
            300,
            "2 of 300 answers flagged.",
        ),
        row(
            "regression",
            "NOT_APPLICABLE",
            None,
            None,
            "Holm 0.05",
            None,
            "There is no champion yet; the baseline is the SFT policy.",
        ),
        row("raters", "PASS", 0.95, None, "gold accuracy >= 0.8", 5, "4 of 5 raters count."),
    ]
    decision = {
        "verdict": "PROMOTE" if good else "BLOCK",
        "mode": "candidate",
        "reasons": says
        if says
        else (
            [
                "People prefer the candidate: win rate 0.664, lower bound 0.612 > 0.5 (300 prompts).",
                "The reward agrees with people: gap 0.04.",
            ]
            if good
            else [
                f"People prefer the baseline: win rate {rate:.3f}, upper bound below 0.5.",
                "The learned reward rose by 1.19 sd while people turned away: the policy exploits the reward model.",
            ]
        ),
        "criteria": criteria,
        "model_name": "plumbline-demo",
        "version": "1" if good else "2",
        "digests": {"candidate": "c" * 64, "champion": None, "policy": "d" * 64, "evidence": "e" * 64},
        "policy": {
            "name": "demo",
            "version": 1,
            "digest": "d" * 64,
            "looser_than_production": [
                "raters: simulated votes are accepted: yes; production: no",
                "kl: KL allowed per sequence: 200; production: 20",
            ],
        },
        "divergence": {
            "reward_win_rate": 0.71,
            "human_win_rate": rate,
            "gap": 0.71 - rate,
            "ci95": [-0.01, 0.09],
            "slope": 0.93,
        },
    }
    with write_artifact(path, "decision", stage="release_gate") as draft:
        write_json(draft.path / "decision.json", decision)
