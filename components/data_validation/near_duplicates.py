"""Rows that are almost the same: MinHash LSH proposes pairs, their true Jaccard similarity decides.

Broder (1997), "On the resemblance and containment of documents"; the bands of the LSH index come from datasketch.
"""

from __future__ import annotations

from collections.abc import Sequence

from components.data_validation.settings import NearDuplicateSettings
from components.shared.progress import report
from components.shared.records import normalise_text

__all__ = ["find_near_duplicates", "jaccard", "shingles"]

_ERROR_WEIGHTS = (0.05, 0.95)
"""Of false and missed proposals: a false one costs a comparison, a missed one is lost. 92 % of pairs at a threshold of
0.9, and all but a few above it, are proposed (64 hash functions: 6 bands of 10)."""


def find_near_duplicates(texts: Sequence[str], settings: NearDuplicateSettings) -> dict[int, int]:
    """Finds texts that are almost the same as an earlier one.

    Args:
        texts: What to compare.
        settings: Threshold, shingles, number of hash functions.

    Returns:
        Number of an earlier text that is nearly the same, by the number of the later one. A text that is in the
        result is not compared with later ones, so each group keeps one text that is not in it.
    """
    from datasketch import MinHash, MinHashLSH

    sets = [shingles(text, settings.shingle_words) for text in texts]
    hashes = MinHash.bulk(
        ([shingle.encode() for shingle in sorted(found)] for found in sets), num_perm=settings.permutations
    )
    index = MinHashLSH(threshold=settings.threshold, num_perm=settings.permutations, weights=_ERROR_WEIGHTS)
    near: dict[int, int] = {}
    for number, (found, minhash) in enumerate(zip(sets, hashes, strict=True)):
        proposed: list[int] = sorted(index.query(minhash))  # pyright: ignore[reportAssignmentType, reportArgumentType]
        earlier = [other for other in proposed if jaccard(found, sets[other]) >= settings.threshold]
        if earlier:
            near[number] = earlier[0]
        else:
            index.insert(number, minhash)
        report("compare rows", number + 1, len(texts))
    return near


def shingles(text: str, words: int) -> frozenset[str]:
    """The runs of `words` words of a text, normalised; a shorter text is one shingle."""
    parts = normalise_text(text).split()
    return frozenset(" ".join(parts[start : start + words]) for start in range(max(1, len(parts) - words + 1)))


def jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    """Size of the intersection over size of the union; 1 for two empty sets."""
    union = len(one | other)
    return len(one & other) / union if union else 1.0
