"""What of a judge's score a response's surface explains, its length, mark-up and tone, with correctness held fixed."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from exprl.evaluation.bootstrap import ROUNDING, Figure
from exprl.evaluation.ranks import correlation, ranks
from exprl.judges.verdict import WORD

Array = npt.NDArray[np.float64]

FOLDS = 10
"""Of problems; what a fold's rollouts are said to get is learned from the others."""

_MARKUP = re.compile(r"[*_#`$~|]|\\[A-Za-z]+|\\[()\[\]]|^\s*(?:[-•+]|\d+[.)])\s", re.MULTILINE)
_HEDGES = re.compile(
    r"\b(?:perhaps|maybe|possibly|probably|might|could be|may be|seems?|appears?|roughly|approximately|"
    r"i (?:think|guess|believe|suppose)|not (?:entirely )?sure|if i am not mistaken|likely|presumably)\b",
    re.IGNORECASE,
)
_CERTAINTY = re.compile(
    r"\b(?:clearly|obviously|of course|certainly|definitely|undoubtedly|without (?:any )?doubt|it is certain|evidently|"
    r"trivially|surely|must be|always|exactly|indeed|rigorous(?:ly)?|proves?|proven|q\.?e\.?d)\b",
    re.IGNORECASE,
)
_VERDICT = re.compile(
    rf"\b(?:{WORD}|score|grade|rating|verdict)\s*(?:[:=]|is|of)\s*\d|\b\d\s*(?:/|out of)\s*(?:5|10)\b|"
    r"\bis (?:correct|right|complete|verified)\b|\b(?:final )?answer\b|\\boxed|[✓✔✅]|\(correct\)",
    re.IGNORECASE,
)


def _share(pattern: re.Pattern[str]) -> Callable[[str], float]:
    """How often a pattern is found in a hundred words."""
    return lambda text: 100.0 * len(pattern.findall(text)) / max(1, len(text.split()))


FEATURES: Mapping[str, Callable[[str], float]] = {
    "length": lambda text: float(len(text)),
    "lines": lambda text: float(sum(bool(line.strip()) for line in text.splitlines())),
    "mark-up": _share(_MARKUP),
    "hedging": _share(_HEDGES),
    "certain": _share(_CERTAINTY),
    "claims": _share(_VERDICT),
}
"""Name to a function of the text: characters, lines that say something, and of a hundred words the marks of Markdown
and LaTeX, words of doubt, of certainty, and claims of an answer or a verdict."""


def features_of(texts: Sequence[str]) -> Array:
    """[N, F] of each text each of `FEATURES`.

    >>> features_of(["Perhaps $x$ is 4.", "Clearly 4"]).round(1).tolist()
    [[17.0, 1.0, 50.0, 25.0, 0.0, 0.0], [9.0, 1.0, 0.0, 0.0, 50.0, 0.0]]
    """
    return np.array([[feature(text) for feature in FEATURES.values()] for text in texts]).reshape(-1, len(FEATURES))


# ------------------------------------------------------------------ one feature


def partial_rank_correlation(feature: Array, scores: Array, held: Array, weights: Array) -> Array:
    """Spearman's, the two ranks taken relative to their means in each group: partial, with the group held fixed.

    Args:
        feature: [N].
        scores: [N].
        held: [N] the group, such as whether a rollout is correct.
        weights: [..., N].

    >>> feature, scores, held = np.array([1.0, 2, 5, 6]), np.array([2.0, 1, 6, 5]), np.array([0, 0, 1, 1])
    >>> partial = partial_rank_correlation(feature, scores, held, np.ones(4))
    >>> round(float(partial), 6)  # overall they go together, within the groups against each other
    -1.0
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = weights / weights.sum(-1, keepdims=True)
    first, second = (_within(ranks(values, shares), held, shares) for values in (feature, scores))
    return correlation(first, second, shares)


def _within(values: Array, held: Array, weights: Array) -> Array:
    """[..., N] values less the mean of their group."""
    left = np.array(values)
    for group in np.unique(held):
        own = held == group
        w = weights[..., own]
        with np.errstate(invalid="ignore"):
            left[..., own] -= (w * values[..., own]).sum(-1, keepdims=True) / w.sum(-1, keepdims=True)
    return left


PARTIAL_RANK_CORRELATION = Figure(of=partial_rank_correlation)


# ------------------------------------------------------------------ all of them


def residuals(
    features: Array, scores: Array, held: Array, problems: Sequence[object], seed: int = 0
) -> tuple[Array, Array]:
    """What is left of scores that are foretold by the groups' means, and by these and the features' ranks.

    Both come by least squares from other problems' rollouts, in `FOLDS` folds, so that features that say nothing do
    not seem to explain anything.

    Args:
        features: [N, F].
        scores: [N].
        held: [N] the group.
        problems: [N] which problem each is of.
        seed: of the folds.

    Returns:
        [N] and [N]; NaN where all are of one fold, so that nothing foretells them.
    """
    ranked = np.column_stack([ranks(column, np.full(len(scores), 1 / len(scores))) for column in features.T])
    fold = folds_of(problems, seed)
    return _unforetold(ranked[:, :0], scores, held, fold), _unforetold(ranked, scores, held, fold)


def folds_of(problems: Sequence[object], seed: int = 0) -> npt.NDArray[np.intp]:
    """[N] the fold of each entry, the same for all of a problem."""
    names, codes = np.unique(np.asarray(problems, dtype=object).astype(str), return_inverse=True)
    fold: npt.NDArray[np.intp] = np.random.default_rng(seed).permutation(len(names))[codes] % FOLDS
    return fold


def explained_variance(by_group: Array, by_all: Array, weights: Array) -> Array:
    """The share of the variance within groups that features explain; below 0: they foretell nothing; NaN: none is left.

    Args:
        by_group: [N] what the groups' means leave of the scores (`residuals`).
        by_all: [N] what the features leave as well.
        weights: [..., N].
    """
    whole = weights @ by_group**2
    with np.errstate(invalid="ignore", divide="ignore"):
        share: Array = 1 - (weights @ by_all**2) / whole
    return np.where(whole > ROUNDING**2, share, np.nan)


EXPLAINED_VARIANCE = Figure(of=explained_variance)


def _unforetold(features: Array, scores: Array, held: Array, fold: npt.NDArray[np.intp]) -> Array:
    """[N] scores less what least squares from the other folds says of them by group and [N, F] features.

    Features are taken relative to their group's means there, so that one that is constant there says nothing.
    """
    left = np.array(scores)
    table = np.column_stack([scores, features])
    for number in np.unique(fold):
        own, others = fold == number, fold != number
        if not others.any():  # of one fold nothing is foretold
            left[own] = np.nan
            continue
        relative = table.copy()
        for group in np.unique(held):
            of_group = held == group
            known = others & of_group if (others & of_group).any() else others
            relative[of_group] -= table[known].mean(0)
        relative[np.abs(relative) < ROUNDING] = 0.0  # least squares would take rounding for a feature
        slopes, *_ = np.linalg.lstsq(relative[others, 1:], relative[others, 0], rcond=None)
        left[own] = relative[own, 0] - relative[own, 1:] @ slopes
    return left
