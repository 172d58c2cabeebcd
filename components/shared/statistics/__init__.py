"""The statistics that decide: intervals, confidence sequences, tests of several hypotheses, calibration, agreement.

What a verdict rests on is an interval, never a bare number. Input that cannot carry a statistic (nothing, NaN,
infinite, out of range, too few clusters) raises `InputError`: absent evidence must not become a number.

- `proportions`: intervals of counts, and of a difference of two counts;
- `sequential`: bounds that stay valid while people look at every new vote;
- `resampling`: intervals of means, with several values a cluster (votes a prompt, pairs a group);
- `multiple_testing`: Holm;
- `calibration`: slope of preference on reward difference, Brier score, calibration error;
- `agreement`: Krippendorff's alpha, Cohen's and Fleiss' kappa;
- `trends`: whether something falls in time;
- `falls`: whether a quantity fell from its own peak over checkpoints;
- `overoptimization`: Gao's curve of gain over distance, and its peak.
"""

from __future__ import annotations

from components.shared.statistics.agreement import (
    cohen_kappa,
    fleiss_kappa,
    krippendorff_alpha,
    pairwise_agreement,
)
from components.shared.statistics.calibration import brier_score, expected_calibration_error, logistic_slope
from components.shared.statistics.falls import FallBound, detect_falls, first_alarm
from components.shared.statistics.multiple_testing import holm
from components.shared.statistics.overoptimization import GaoFit, fit_gao_curve
from components.shared.statistics.proportions import (
    binomial_lower,
    binomial_upper,
    difference_interval_newcombe,
    wilson_interval,
)
from components.shared.statistics.resampling import clustered_bootstrap_interval, mean_interval
from components.shared.statistics.sequential import BettingBounds, betting_confidence_sequence, betting_p_value
from components.shared.statistics.trends import mann_kendall_p

__all__ = [
    "BettingBounds",
    "FallBound",
    "GaoFit",
    "betting_confidence_sequence",
    "betting_p_value",
    "binomial_lower",
    "binomial_upper",
    "brier_score",
    "clustered_bootstrap_interval",
    "cohen_kappa",
    "detect_falls",
    "difference_interval_newcombe",
    "expected_calibration_error",
    "first_alarm",
    "fit_gao_curve",
    "fleiss_kappa",
    "holm",
    "krippendorff_alpha",
    "logistic_slope",
    "mann_kendall_p",
    "mean_interval",
    "pairwise_agreement",
    "wilson_interval",
]
