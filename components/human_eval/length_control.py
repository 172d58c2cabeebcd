"""The win rate that would remain if both answers were equally long.

Raters, like reward models, lean towards longer answers. A logistic Bradley-Terry model explains each prompt's outcome
by the difference of the answers' log lengths; its prediction at no difference is the length-controlled win rate (Dubois
et al. 2024, "Length-controlled AlpacaEval", with log-length as the covariate):

    P(first wins) = sigmoid(b0 + b1 * log(first tokens / second tokens)),   win rate = sigmoid(b0)

The outcome of a prompt is the mean of its votes, so the fit is a fractional logit (Papke and Wooldridge 1996) with a
robust covariance: one outcome a prompt is what clustering by prompt amounts to. The bounds are for the number of
prompts that was planned; under optional stopping rely on the confidence sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from scipy.stats import norm

__all__ = ["length_controlled_win_rate"]

_MIN_PROMPTS = 20
_LARGEST_LOG_ODDS = 10.0


def length_controlled_win_rate(
    outcomes: Sequence[float], first_tokens: Sequence[int], second_tokens: Sequence[int], *, alpha: float
) -> dict[str, Any]:
    """Win rate at equal length with one-sided bounds.

    Args:
        outcomes: One a prompt, in [0, 1], for the first-named role.
        first_tokens: Length of its answers, in tokens.
        second_tokens: Length of the other role's answers, in tokens.
        alpha: Error probability of each bound.

    Returns:
        `{"win_rate", "lower", "upper", "length_effect", "reason"}`; `length_effect` is b1, the log odds that an answer
        e times as long gains. All but `reason` are None, and it says why, where the data cannot carry the fit. That is
        missing evidence, never a pass.
    """
    y = np.asarray(outcomes, dtype=np.float64)
    x = np.log((np.asarray(first_tokens, dtype=np.float64) + 1.0) / (np.asarray(second_tokens, dtype=np.float64) + 1.0))
    reason = _why_not(y, x)
    if reason:
        return _unknown(reason)
    fitted = _fit(y, x)
    if fitted is None:
        return _unknown("the logistic fit did not converge")
    log_odds, standard_error, length_effect = fitted
    half = float(norm.ppf(1.0 - alpha)) * standard_error
    win_rate, lower, upper = (float(expit(value)) for value in (log_odds, log_odds - half, log_odds + half))
    return {"win_rate": win_rate, "lower": lower, "upper": upper, "length_effect": length_effect, "reason": None}


def _unknown(reason: str) -> dict[str, Any]:
    return {"win_rate": None, "lower": None, "upper": None, "length_effect": None, "reason": reason}


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


def _fit(y: NDArray, x: NDArray) -> tuple[float, float, float] | None:
    """(b0, its robust standard error, b1); None where the numbers cannot be trusted."""
    from statsmodels.genmod.families import Binomial
    from statsmodels.genmod.generalized_linear_model import GLM

    design = np.column_stack([np.ones_like(x), x])
    result = GLM(y, design, family=Binomial()).fit(cov_type="HC1", maxiter=100)
    log_odds, standard_error = float(result.params[0]), float(result.bse[0])
    trusted = result.converged and np.isfinite([log_odds, standard_error]).all() and abs(log_odds) < _LARGEST_LOG_ODDS
    return (log_odds, standard_error, float(result.params[1])) if trusted and standard_error > 0.0 else None
