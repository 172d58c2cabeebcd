"""The win rate that would remain if both answers were equally long.

Raters, like reward models, lean towards longer answers. A logistic Bradley-Terry model explains each vote by the
difference of the answers' log lengths, by the slice of its prompt and by its rater:

    P(first wins) = sigmoid(b0 + b1 * log(first tokens / second tokens) + slice + rater)

The length-controlled win rate is its mean prediction at no difference of length over the votes as they were given, each
prompt counting once: the average over slices and raters as judged, at equal length (Dubois et al. 2024,
"Length-controlled AlpacaEval", who average over instructions with the length term set to 0). Without the terms, a slice
in which longer answers happen to be the better ones passes for a liking for length, and the control takes away, or
gives, what is not length's; so does a rater who judged the longer ones.

Slice and rater terms carry a ridge penalty (a normal prior around 0 whose standard deviation is two log odds);
intercept and length carry none. The terms of each kind sum to zero. The penalty keeps a rater with few votes near the
others and a slice that was won throughout finite, and leaves the mean of all predictions at the mean of all votes.
Raters with fewer than 10 votes, and slices with fewer than 10 prompts, are pooled into one term; if that is still too
small, they have none and count as the average. statsmodels fits no penalised model with clustered errors; the tests
hold this fit against its GLM where nothing is penalised.

A prompt's votes have the weight of one prompt together (a fractional logit for ties and, where votes are not given,
for the mean of them: Papke and Wooldridge 1996). The standard error is a one-step jackknife over whole prompts, which
is robust to how votes of one prompt depend on each other and does not flatter a model with many terms. The bounds are
for the number of prompts that was planned; under optional stopping rely on the confidence sequence. Nothing is drawn:
the same votes give the same numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import helmert
from scipy.special import expit, logit
from scipy.stats import norm

__all__ = ["Vote", "length_controlled_win_rate"]

Vote = tuple[str, float]
"""Who voted, and how: 1 for the first-named role, 0 for the other, 0.5 for a tie."""

_MIN_PROMPTS = 20
_MIN_IN_TERM = 10
_POOLED = "(pooled)"
_RIDGE = 0.25
"""Inverse variance of the terms' prior, in log odds."""
_LARGEST_LOG_ODDS = 10.0
_PROMPTS_AT_ONCE = 100
_STEPS = 100
_TOLERANCE = 1e-9


def length_controlled_win_rate(
    outcomes: Sequence[float],
    first_tokens: Sequence[int],
    second_tokens: Sequence[int],
    *,
    alpha: float,
    slices: Sequence[str] | None = None,
    votes: Sequence[Sequence[Vote]] | None = None,
) -> dict[str, Any]:
    """Win rate at equal length with one-sided bounds.

    Args:
        outcomes: One a prompt, in [0, 1], for the first-named role.
        first_tokens: Length of its answers, in tokens.
        second_tokens: Length of the other role's answers, in tokens.
        alpha: Error probability of each bound.
        slices: Kind of each prompt; absent: no slice terms.
        votes: What each outcome is the mean of (nothing where nobody was asked); absent: no rater terms.

    Returns:
        `{"win_rate", "lower", "upper", "length_effect", "reason", "terms"}`; `length_effect` is b1, the log odds that
        an answer e times as long gains; `terms` holds for `slice` and `rater` the log odds of each term (`effects`;
        they sum to zero) and who was `pooled` for want of votes. All but `reason` are None, and it says why, where the
        data cannot carry the fit. That is missing evidence, never a pass.
    """
    y = np.asarray(outcomes, dtype=np.float64)
    x = np.log((np.asarray(first_tokens, dtype=np.float64) + 1.0) / (np.asarray(second_tokens, dtype=np.float64) + 1.0))
    reason = _why_not(y, x)
    if reason:
        return _unknown(reason)
    data, terms = _lay_out(y, x, slices, votes)
    coefficients = _fit(data)
    estimate = None if coefficients is None else _at_equal_length(data, coefficients)
    if coefficients is None or estimate is None:
        return _unknown("the logistic fit did not converge")
    log_odds, standard_error = estimate
    half = float(norm.ppf(1.0 - alpha)) * standard_error
    win_rate, lower, upper = (float(expit(value)) for value in (log_odds, log_odds - half, log_odds + half))
    return {
        "win_rate": win_rate,
        "lower": lower,
        "upper": upper,
        "length_effect": float(coefficients[1]),
        "reason": None,
        "terms": {term.kind: term.as_json(coefficients) for term in terms},
    }


@dataclass(frozen=True)
class _Term:
    """One kind of term.

    Attributes:
        kind: `slice` or `rater`.
        names: Of the slices or raters; pooled ones are one of them, `(pooled)`. None where there are not two.
        begin: First of its columns in the design, which are one fewer: the terms sum to zero.
        pooled: Who has no term of its own.
    """

    kind: str
    names: list[str]
    begin: int
    pooled: list[str]

    def as_json(self, coefficients: NDArray) -> dict[str, Any]:
        if not self.names:
            return {"effects": {}, "pooled": self.pooled}
        n = len(self.names)
        effects = coefficients[self.begin : self.begin + n - 1] @ helmert(n)
        return {"effects": dict(zip(self.names, effects.tolist(), strict=True)), "pooled": self.pooled}


@dataclass(frozen=True)
class _Data:
    """Votes as the fit takes them.

    Attributes:
        design: Intercept, log length ratio, terms; shape `(votes, k)`.
        y: The votes, in [0, 1].
        weights: One over the votes of the same prompt.
        prompts: Place of each vote's prompt, ascending.
        n_prompts: Prompts.
    """

    design: NDArray[np.float64]
    y: NDArray[np.float64]
    weights: NDArray[np.float64]
    prompts: NDArray[np.int64]
    n_prompts: int

    @property
    def penalty(self) -> NDArray[np.float64]:
        """Of each column, shape `(k,)`."""
        found = np.full(self.design.shape[1], _RIDGE)
        found[:2] = 0.0
        return found


def _unknown(reason: str) -> dict[str, Any]:
    nothing = dict.fromkeys(("win_rate", "lower", "upper", "length_effect", "terms"))
    return {**nothing, "reason": reason}


def _why_not(y: NDArray, x: NDArray) -> str | None:
    if y.size < _MIN_PROMPTS:
        return f"{y.size} prompts, at least {_MIN_PROMPTS} are needed"
    if np.ptp(y) == 0.0:
        return "all outcomes are equal"
    if np.ptp(x) < 1e-9:
        return "the lengths do not vary"
    if _separated(y, x):
        return "length separates wins from losses"
    return None


def _separated(y: NDArray, x: NDArray) -> bool:
    """Whether a threshold on `x` splits wins from losses, so that the likelihood has no maximum. A tie is on both
    sides."""
    won, lost = x[y > 0.0], x[y < 1.0]
    if won.size == 0 or lost.size == 0:
        return True
    return bool(won.min() >= lost.max() or lost.min() >= won.max())


def _lay_out(
    y: NDArray, x: NDArray, slices: Sequence[str] | None, votes: Sequence[Sequence[Vote]] | None
) -> tuple[_Data, list[_Term]]:
    """A row a vote; of a prompt without votes one row, its outcome, which has no rater."""
    by_prompt: Sequence[Sequence[Vote]] = votes if votes is not None else [()] * y.size
    rows: list[tuple[int, str, float]] = []
    for prompt, (outcome, given) in enumerate(zip(y, by_prompt, strict=True)):
        rows += [(prompt, rater, value) for rater, value in given] or [(prompt, "", outcome)]
    prompts = np.array([prompt for prompt, _, _ in rows])
    columns = [np.ones(prompts.size), x[prompts]]
    terms = []
    if slices is not None:
        terms.append(_add_term("slice", slices, [slices[int(prompt)] for prompt in prompts], columns))
    if votes is not None:
        raters = [rater for _, rater, _ in rows]
        terms.append(_add_term("rater", [rater for rater in raters if rater], raters, columns))
    data = _Data(
        design=np.column_stack(columns),
        y=np.array([value for _, _, value in rows]),
        weights=1.0 / np.bincount(prompts)[prompts],
        prompts=prompts,
        n_prompts=y.size,
    )
    return data, terms


def _add_term(kind: str, counted: Sequence[str], of_rows: Sequence[str], columns: list[NDArray]) -> _Term:
    """Adds sum-to-zero coded columns for the names that have enough behind them; none where there are not two.

    Orthonormal (Helmert) contrasts: the ridge on the coefficients is the same ridge on the terms themselves.
    """
    counts = Counter(counted)
    few = sorted(name for name, n in counts.items() if n < _MIN_IN_TERM)
    names = sorted(name for name in counts if name not in few)
    if sum(counts[name] for name in few) >= _MIN_IN_TERM:
        names.append(_POOLED)
    if len(names) < 2:
        return _Term(kind, [], len(columns), few)
    name_of = dict.fromkeys(few, _POOLED)
    labels = np.array([name_of.get(name, name) for name in of_rows])
    members = np.column_stack([labels == name for name in names]).astype(np.float64)
    term = _Term(kind, names, len(columns), few)
    columns += list((members @ helmert(len(names)).T).T)
    return term


def _fit(data: _Data) -> NDArray[np.float64] | None:
    """Maximum of the penalised likelihood (Newton with step halving), shape `(k,)`; None if it is not found."""
    coefficients = np.zeros(data.design.shape[1])
    value = _objective(data, coefficients)
    for _ in range(_STEPS):
        p = expit(data.design @ coefficients)
        score = data.design.T @ (data.weights * (data.y - p)) - data.penalty * coefficients
        if np.abs(score).max() <= _TOLERANCE * data.n_prompts:
            return coefficients if abs(coefficients[0]) < _LARGEST_LOG_ODDS else None
        try:
            step = np.linalg.solve(_information(data, p), score)
        except np.linalg.LinAlgError:
            return None
        length = 1.0
        while length > 1e-6 and _objective(data, coefficients + length * step) < value:
            length /= 2.0
        coefficients = coefficients + length * step
        value = _objective(data, coefficients)
    return None


def _objective(data: _Data, coefficients: NDArray) -> float:
    """Penalised log likelihood."""
    z = data.design @ coefficients
    likelihood = data.weights * (data.y * z - np.logaddexp(0.0, z))
    return float(likelihood.sum() - 0.5 * (data.penalty * coefficients**2).sum())


def _information(data: _Data, p: NDArray) -> NDArray[np.float64]:
    return (data.design.T * (data.weights * p * (1.0 - p))) @ data.design + np.diag(data.penalty)


def _at_equal_length(data: _Data, coefficients: NDArray) -> tuple[float, float] | None:
    """(log odds of the mean prediction at equal length, its standard error); None where they cannot be trusted."""
    without_length = data.design.copy()
    without_length[:, 1] = 0.0
    p = expit(without_length @ coefficients)
    of_prompts = np.bincount(data.prompts, data.weights * p)
    win_rate = float(of_prompts.mean())
    gradient = without_length.T @ (data.weights * p * (1.0 - p)) / data.n_prompts
    try:
        moves = _moves_without_each_prompt(data, coefficients) @ gradient
    except np.linalg.LinAlgError:
        return None
    left_out = moves - (of_prompts - win_rate) / (data.n_prompts - 1)
    variance = (data.n_prompts - 1) / data.n_prompts * float(((left_out - left_out.mean()) ** 2).sum())
    if not np.isfinite(variance) or variance <= 0.0 or not 0.0 < win_rate < 1.0:
        return None
    return float(logit(win_rate)), variance**0.5 / (win_rate * (1.0 - win_rate))


def _moves_without_each_prompt(data: _Data, coefficients: NDArray) -> NDArray[np.float64]:
    """How one Newton step moves the coefficients when a prompt is left out, shape `(prompts, k)`."""
    p = expit(data.design @ coefficients)
    information = _information(data, p)
    scores = data.design * (data.weights * (data.y - p))[:, None]
    roots = data.design * np.sqrt(data.weights * p * (1.0 - p))[:, None]
    begins = np.flatnonzero(np.diff(data.prompts, prepend=-1))
    moves = []
    for some in np.split(begins, range(_PROMPTS_AT_ONCE, begins.size, _PROMPTS_AT_ONCE)):
        later = begins[begins > some[-1]]
        rows = slice(some[0], later[0] if later.size else None)
        own = np.add.reduceat(roots[rows, :, None] * roots[rows, None, :], some - some[0])
        left = np.add.reduceat(scores[rows], some - some[0])
        moves.append(-np.linalg.solve(information - own, left[:, :, None])[:, :, 0])
    return np.concatenate(moves)
