"""Divergence: has the learned reward parted from the people that it stands for?

A raw comparison of "how often does the reward rank the candidate first" with "how often do people" shows a gap where
there is none: people choose with noise. So the reward is first calibrated: slope a of a logistic fit, without
intercept, of the held-out labels on the reward difference. The reward-implied win rate is the mean of sigmoid(a x gain)
over the pairs that people judged. Held-out pairs and judged prompts are both resampled, and a is fitted again in every
draw.

A held-out pair is a choice: somebody decided. So is the implied rate, and it is set against people's decided votes
only; a tie (or both bad) says nothing about whom the reward ranks first. Counted as half a win it would pull people's
rate to 1/2 and leave the reward's where it is: a false gap that grows with the candidate's lead. Each prompt enters
both rates with the share of its votes that were decided, so that pairs too close to call, which tie more often, weigh
equally little on both sides; given that a vote is decided, sigmoid(a x gain) is its expectation whatever makes people
tie (exactly so in Davidson's 1970 model of ties, or where ties were left out of the held-out pairs). Shrinking the
implied rate by the overall share of ties instead is biased as soon as ties depend on the gain.

The second sign needs no votes: the held-out reward model, which training never saw, falls from its own peak over the
checkpoints (Gao et al. 2022) while the optimised one still rises. Looking for a peak among checkpoints is a selection,
and looking at each of them a repetition; the detector pays for both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from components.release_gate.comparisons import AGAINST_REFERENCE, Comparison, read_comparison
from components.release_gate.evidence import Case, Source
from components.release_gate.findings import Finding
from components.shared.statistics import detect_falls, first_alarm, logistic_slope

__all__ = [
    "DIVERGENCE_KEYS",
    "Decided",
    "Fall",
    "Gain",
    "Gap",
    "decided_votes",
    "estimate_gap",
    "heldout_fall",
    "judged_rewards",
    "measure_gain",
    "measure_gap",
    "refit_slopes",
    "rewards_by_prompt",
]

DIVERGENCE_KEYS = ("reward_win_rate", "human_win_rate", "gap", "ci95", "slope", "human_ci95", "decided_share")
"""What `decision.json` says of the gap."""

_GENERATIONS = "generations.jsonl"
_PREDICTIONS = "predictions.jsonl"
_OUTCOMES = "outcomes.jsonl"
_JUDGED_SETS = ("human_eval", "fresh")
_DRAWS_AT_ONCE = 100
_BISECTIONS = 60
_TOLERANCE = 1e-5
_LARGEST_REWARD = 1e6
"""In the units of a raw reward."""
_MOST_VOTES = 1e6
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Decided:
    """The votes on one prompt that were no tie.

    Attributes:
        votes: All counted votes.
        decided: Those that chose one of the answers.
        first: Those that chose the first-named role's.
    """

    votes: int
    decided: int
    first: int

    @property
    def share(self) -> float:
        """Decided share of the votes; 0 for identical answers, which nobody was asked about."""
        return self.decided / self.votes if self.votes else 0.0

    @property
    def won(self) -> float:
        """Share of all votes that chose the first-named role's answer."""
        return self.first / self.votes if self.votes else 0.0


@dataclass(frozen=True)
class Gain:
    """What training won in the eyes of the reward, and what people say.

    Attributes:
        gain: Mean raw reward gain over the reference.
        gain_lower: Its one-sided 95 % lower bound.
        human: The human comparison, ties included, with its own anytime-valid bounds.
    """

    gain: float
    gain_lower: float
    human: Comparison


@dataclass(frozen=True)
class Gap:
    """Reward and people on the same decided votes.

    Attributes:
        reward_win_rate: Calibrated reward-implied win rate against the reference.
        human_win_rate: People's, ties left out.
        gap: The first minus the second.
        ci95: Two-sided bootstrap interval of the gap.
        human_ci95: The same of `human_win_rate`.
        slope: Calibration slope, per unit of raw reward.
        decided_share: Share of the votes that were decided (mean over prompts).
        n_prompts: Prompts with a decided vote.
        n_heldout: Held-out pairs that the slope rests on.
    """

    reward_win_rate: float
    human_win_rate: float
    gap: float
    ci95: tuple[float, float]
    human_ci95: tuple[float, float]
    slope: float
    decided_share: float
    n_prompts: int
    n_heldout: int

    def as_dict(self) -> dict[str, object]:
        """As in decision.json."""
        found = {name: getattr(self, name) for name in DIVERGENCE_KEYS}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}


@dataclass(frozen=True)
class Fall:
    """How far the candidate's held-out reward lies below that of an earlier checkpoint.

    Attributes:
        peak: The checkpoint that it may have fallen from the most (highest lower bound).
        value: Peak minus candidate, in raw held-out reward, on the same prompts; negative if the candidate is higher.
        lower: Its lower bound. The bounds of all falls of the run hold together with 95 %: the peak was chosen.
        upper: Its upper bound, in the same sense.
        scale: Standard deviation of the raw held-out reward.
        n: Prompts.
        checkpoints: How many checkpoints were compared.
        alarm: The first checkpoint (or `candidate`) at which a fall beyond the policy's margin is shown; None if none.
    """

    peak: str
    value: float
    lower: float
    upper: float
    scale: float
    n: int
    checkpoints: int
    alarm: str | None


def measure_gain(case: Case) -> Gain:
    """The reward's gain on the judged pairs of candidate and reference, beside people's verdict on them.

    Raises:
        EvidenceFault: Too few prompts, or evidence that cannot be used.
    """
    human = read_comparison(case, AGAINST_REFERENCE, min_prompts=case.policy.divergence.min_prompts)
    gains = np.array(list(judged_rewards(case, list(human.outcomes), "reward").values()))
    rng = np.random.default_rng(case.seed)
    means = [
        gains[rng.integers(gains.size, size=(draws, gains.size))].mean(axis=1)
        for draws in _portions(case.policy.divergence.bootstrap_draws)
    ]
    return Gain(float(gains.mean()), float(np.quantile(np.concatenate(means), 0.05)), human)


@lru_cache(maxsize=1)
def measure_gap(case: Case) -> Gap:
    """Compares reward and people on the decided votes on the judged pairs of candidate and reference.

    Raises:
        EvidenceFault: Too few prompts or held-out pairs, too few prompts that people decided, or evidence that cannot
            be used.
    """
    rule = case.policy.divergence
    human = read_comparison(case, AGAINST_REFERENCE, min_prompts=rule.min_prompts)
    votes = decided_votes(case, human)
    n_decided = sum(one.decided > 0 for one in votes.values())
    if n_decided < rule.min_prompts:
        raise case.human.refuse(
            f"On {len(votes)} prompts people decided {n_decided}, {rule.min_prompts} are needed: the others were "
            "called ties. Collect votes on more.",
            _OUTCOMES,
            AGAINST_REFERENCE,
            finding=Finding.HOLD,
        )
    gains = judged_rewards(case, list(votes), "reward")
    differences, clusters = _heldout_differences(case)
    return estimate_gap(
        np.array([gains[prompt] for prompt in votes]),
        list(votes.values()),
        differences,
        clusters,
        draws=rule.bootstrap_draws,
        seed=case.seed,
    )


def estimate_gap(
    gains: NDArray[np.float64],
    votes: Sequence[Decided],
    differences: NDArray[np.float64],
    clusters: Sequence[str],
    *,
    draws: int,
    seed: int,
) -> Gap:
    """Gap of the reward-implied and the human win rate, bootstrapped by prompt with the slope refitted in every draw.

    Args:
        gains: Reward of the candidate's answer minus the reference's, one a prompt, shape `(n,)`.
        votes: People's on the same prompts; at least one of them decided.
        differences: Reward of chosen minus rejected on held-out pairs, shape `(m,)`.
        clusters: Prompt or group of each of those, shape `(m,)`.
        draws: Bootstrap samples.
        seed: Of their randomness.
    """
    share, won = np.array([one.share for one in votes]), np.array([one.won for one in votes])
    decided = share > 0.0
    gains, weights, won = gains[decided], share[decided], won[decided]
    slope = logistic_slope(differences)
    rng = np.random.default_rng(seed)
    gaps, rates = [], []
    for portion in _portions(draws):
        slopes = refit_slopes(differences, clusters, draws=portion, rng=rng)
        drawn = rng.integers(gains.size, size=(portion, gains.size))
        total = weights[drawn].sum(axis=1)
        implied = (weights[drawn] * expit(slopes[:, None] * gains[drawn])).sum(axis=1) / total
        rates.append(won[drawn].sum(axis=1) / total)
        gaps.append(implied - rates[-1])
    reward_win_rate = float(np.average(expit(slope * gains), weights=weights))
    human_win_rate = float(won.sum() / weights.sum())
    return Gap(
        reward_win_rate=reward_win_rate,
        human_win_rate=human_win_rate,
        gap=reward_win_rate - human_win_rate,
        ci95=_central_95(gaps),
        human_ci95=_central_95(rates),
        slope=slope,
        decided_share=float(share.mean()),
        n_prompts=gains.size,
        n_heldout=differences.size,
    )


def decided_votes(case: Case, human: Comparison) -> dict[str, Decided]:
    """The decided votes behind a comparison's outcomes, by prompt and in their order.

    Raises:
        EvidenceFault: The outcomes do not tell ties from decided votes (HOLD), or say what no votes can add up to
            (ERROR).
    """
    source = case.human
    rows = {str(row.get("prompt_id")): row for row in source.rows(_OUTCOMES) if row.get("comparison") == human.name}
    untold = [prompt for prompt, row in rows.items() if row.get("n_decided") is None]
    if untold:
        raise source.refuse(
            f"{human.name} has {len(untold)} outcome(s), such as that of {untold[0]!r}, that do not say how many of "
            "their votes were ties: run the human evaluation again.",
            _OUTCOMES,
            human.name,
            finding=Finding.HOLD,
        )
    return {prompt: _decided(source, rows[prompt], outcome) for prompt, outcome in human.outcomes.items()}


def _decided(source: Source, row: dict[str, Any], outcome: float) -> Decided:
    votes = source.row_number(row, _OUTCOMES, "n_votes", low=0, high=_MOST_VOTES)
    decided = source.row_number(row, _OUTCOMES, "n_decided", low=0, high=votes)
    first = outcome * votes - (votes - decided) / 2.0
    whole = all(abs(number - round(number)) <= _ROUNDING for number in (votes, decided, first))
    if not whole or not 0 <= round(first) <= decided or (votes == 0 and outcome != 0.5):
        raise source.refuse(
            f"{row.get('prompt_id')!r} has outcome {outcome:g} on {votes:g} vote(s) of which {decided:g} are decided: "
            "no votes add up to that.",
            _OUTCOMES,
            "n_decided",
        )
    return Decided(round(votes), round(decided), round(first))


def _portions(draws: int) -> list[int]:
    """Bootstrap samples, so many at once that memory stays small."""
    return [min(_DRAWS_AT_ONCE, draws - start) for start in range(0, draws, _DRAWS_AT_ONCE)]


def _central_95(values: Sequence[NDArray[np.float64]]) -> tuple[float, float]:
    low, high = np.quantile(np.concatenate(values), [0.025, 0.975])
    return float(low), float(high)


def judged_rewards(case: Case, prompts: Sequence[str], key: str) -> dict[str, float]:
    """Reward of the candidate's answer minus that of the reference's, by prompt that people judged.

    Args:
        case: The case.
        prompts: Ids of judged prompts.
        key: `reward` or `heldout_reward`.

    Raises:
        EvidenceFault: A judged prompt has no answer of either role, or two.
    """
    rewards = {role: rewards_by_prompt(case, role, key, set(prompts)) for role in ("candidate", "reference")}
    for role, found in rewards.items():
        missing = [prompt for prompt in prompts if prompt not in found]
        if missing:
            raise case.evaluation.refuse(
                f"{len(missing)} judged prompt(s), such as {missing[0]!r}, have no scored answer of the {role}.",
                _GENERATIONS,
            )
    return {prompt: rewards["candidate"][prompt] - rewards["reference"][prompt] for prompt in prompts}


def heldout_fall(case: Case) -> Fall | None:
    """The held-out reward's fall from its peak; None if there are no checkpoints.

    All checkpoints and the candidate, in the order of training, are compared on the prompts that each of them answered.
    The bounds hold for the whole run together (`components.shared.statistics.falls`).

    Raises:
        EvidenceFault: Too few common prompts, or evidence that cannot be used.
    """
    models = case.evaluation.mapping("models.json")
    roles = sorted((role for role in models if role.startswith("step-")), key=_step_in_name)
    if not roles:
        return None
    rule = case.policy.divergence
    scale = case.heldout.number("reward.json", "std", low=1e-9, high=_LARGEST_REWARD)
    by_role = {role: rewards_by_prompt(case, role, "heldout_reward") for role in [*roles, "candidate"]}
    common = sorted(set.intersection(*(set(found) for found in by_role.values())))
    if len(common) < rule.min_checkpoint_prompts:
        raise case.evaluation.refuse(
            f"Checkpoints and candidate share {len(common)} prompts, {rule.min_checkpoint_prompts} are needed.",
            _GENERATIONS,
            finding=Finding.HOLD,
        )
    rewards = np.array([[found[prompt] for found in by_role.values()] for prompt in common])
    falls = detect_falls(rewards, draws=rule.bootstrap_draws, seed=case.seed)
    alarm = first_alarm(falls, margin=rule.heldout_fall_margin * scale)
    last, names = falls[-1], list(by_role)
    return Fall(
        peak=names[last.peak],
        value=last.value,
        lower=last.lower,
        upper=last.upper,
        scale=scale,
        n=len(common),
        checkpoints=len(roles),
        alarm=names[alarm.place] if alarm else None,
    )


def _step_in_name(role: str) -> tuple[int, str]:
    """Order of training; a name without a number comes first."""
    digits = role.removeprefix("step-")
    return (int(digits) if digits.isdecimal() else -1, role)


def refit_slopes(
    differences: NDArray, clusters: Sequence[str], *, draws: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Slope of `logistic_slope` on bootstrap samples of whole clusters, shape `(draws,)`.

    The same penalised likelihood, with each pair weighted by how often its cluster was drawn; all draws are solved
    together by bisection.

    Args:
        differences: Reward of chosen minus rejected, shape `(n,)`.
        clusters: Prompt or group of each pair, shape `(n,)`.
        draws: Bootstrap samples.
        rng: Their randomness.
    """
    _, positions = np.unique(np.asarray(clusters), return_inverse=True)
    n_clusters = int(positions.max()) + 1
    weights = rng.multinomial(n_clusters, np.full(n_clusters, 1.0 / n_clusters), size=draws)[:, positions]
    scale = float(np.abs(differences).max())
    x = differences / scale
    low, high = np.full(draws, -1.0), np.full(draws, 1.0)
    for _ in range(_BISECTIONS):
        short, deep = _score(high, x, weights) > 0.0, _score(low, x, weights) < 0.0
        if not (short.any() or deep.any()):
            break
        high[short] *= 2.0
        low[deep] *= 2.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2.0
        rising = _score(middle, x, weights) > 0.0
        low, high = np.where(rising, middle, low), np.where(rising, high, middle)
        if np.all(high - low <= _TOLERANCE * np.abs(low + high)):
            break
    return (low + high) / 2.0 / scale


def _score(slopes: NDArray, x: NDArray, weights: NDArray) -> NDArray:
    """Derivative of the penalised log likelihood (Firth 1993) of each draw, all labels 1; shape `(draws,)`."""
    p = expit(slopes[:, None] * x)
    information = weights * p * (1.0 - p) * x**2
    total = information.sum(axis=1, keepdims=True)
    leverage = np.divide(information, total, out=np.zeros_like(information), where=total > 0.0)
    return (x * (weights * (1.0 - p) + leverage * (0.5 - p))).sum(axis=1)


def _heldout_differences(case: Case) -> tuple[NDArray[np.float64], list[str]]:
    """Reward of chosen minus rejected on held-out pairs, and the cluster (prompt) of each."""
    source, rule = case.reward_model, case.policy.divergence
    rows = source.rows(_PREDICTIONS)
    if len(rows) < rule.min_heldout_pairs:
        raise source.refuse(
            f"The reward is calibrated on {len(rows)} held-out pairs, {rule.min_heldout_pairs} are needed.",
            _PREDICTIONS,
            finding=Finding.HOLD,
        )
    source.refuse_duplicates(_PREDICTIONS, [row.get("id") for row in rows])
    limits = {"low": -_LARGEST_REWARD, "high": _LARGEST_REWARD}
    differences = [
        source.row_number(row, _PREDICTIONS, "chosen_reward", **limits)
        - source.row_number(row, _PREDICTIONS, "rejected_reward", **limits)
        for row in rows
    ]
    return np.array(differences), [str(row.get("group") or row.get("id")) for row in rows]


def rewards_by_prompt(case: Case, role: str, key: str, prompts: set[str] | None = None) -> dict[str, float]:
    """Reward by prompt of one role's answers to the judged prompt sets (of a checkpoint: to any set)."""
    rows = [row for row in case.evaluation.rows(_GENERATIONS) if row.get("role") == role]
    if prompts is not None:
        rows = [row for row in rows if row.get("prompt_set") in _JUDGED_SETS and str(row.get("prompt_id")) in prompts]
    keys = [str(row.get("prompt_id")) for row in rows]
    case.evaluation.refuse_duplicates(_GENERATIONS, [(role, prompt) for prompt in keys])
    values = [
        case.evaluation.row_number(row, _GENERATIONS, key, low=-_LARGEST_REWARD, high=_LARGEST_REWARD) for row in rows
    ]
    return dict(zip(keys, values, strict=True))
