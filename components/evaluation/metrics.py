"""What can be said of an answer's text without a model: repetition, diversity, refusal; and small statistics."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

__all__ = ["block_distinct_n", "distinct_n", "is_refusal", "mean", "repetition_share", "standard_error", "words"]

DISTINCT_BLOCK = 50
"""Answers a block of `block_distinct_n`."""


def words(text: str) -> list[str]:
    """Lower-case words of a text; punctuation marks are words of their own."""
    return re.findall(r"\w+|[^\w\s]", text.casefold())


def distinct_n(texts: Iterable[str], n: int) -> float | None:
    """Share of different n-grams among all n-grams of the texts together (Li et al. 2016, distinct-n).

    Returns:
        A share in (0, 1], or None when no text has n words.
    """
    grams = [gram for text in texts for gram in _ngrams(words(text), n)]
    return len(set(grams)) / len(grams) if grams else None


def block_distinct_n(texts: Sequence[str], n: int, *, block: int = DISTINCT_BLOCK) -> float | None:
    """Mean distinct-n over blocks of `block` texts.

    distinct-n falls with the number of texts; in blocks of one size a role that answered 600 prompts compares with one
    that answered 60. Texts left over after the last whole block are left out, unless they are all there is.

    Returns:
        A share in (0, 1], or None when there is no n-gram.
    """
    starts = range(0, len(texts) - block + 1, block) if len(texts) >= block else [0]
    shares = [distinct_n(texts[start : start + block], n) for start in starts]
    return mean([share for share in shares if share is not None])


def repetition_share(text: str, n: int = 3) -> float:
    """Share of a text's n-grams that occurred before in it: 0 for a text without repeats or shorter than n words."""
    grams = _ngrams(words(text), n)
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0


def is_refusal(text: str, patterns: Iterable[str]) -> bool:
    """Whether any of the regular expressions matches somewhere in the text, without regard to case."""
    return any(re.search(pattern, text, flags=re.IGNORECASE) for pattern in patterns)


def mean(values: Sequence[float]) -> float | None:
    """Arithmetic mean, or None of nothing."""
    return math.fsum(values) / len(values) if values else None


def standard_error(values: Sequence[float]) -> float | None:
    """Standard error of the mean (n - 1 in the variance), or None of fewer than two values."""
    if len(values) < 2:
        return None
    centre = math.fsum(values) / len(values)
    variance = math.fsum((value - centre) ** 2 for value in values) / (len(values) - 1)
    return math.sqrt(variance / len(values))


def _ngrams(tokens: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1)]
