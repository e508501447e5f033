"""Where a curve of scores is best divided: exact segmentation with a price for each segment, as pure functions.

A division is a path over nodes 0..n of n points: node j < n says that with point j something new begins, and an edge
is the piece between. What an edge costs is how far its points lie from their best line (`line_costs`) or from their
mean (`level_costs`). The cheapest path of all is found by dynamic programming in O(n^2) (optimal partitioning, Jackson
et al. 2005, doi:10.1109/LSP.2001.838216): a curve has tens of points, at most some hundreds, so nothing is pruned.
"""

from __future__ import annotations

from collections.abc import Callable
from math import comb, sqrt

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Costs = Callable[[int], Array]
"""`costs(j)` are the costs [j] of the edges to node j from nodes 0..j-1; infinity: not allowed."""

_ROUNDING = 1e-9
"""Squared Likert points, far below what a score can mean."""
_NORMAL = 0.6744897501960817
"""The median absolute value of standard normal noise."""


def line_costs(tokens: Array, scores: Array) -> Costs:
    """Squared distances of a piece's points from the line of least squares through them.

    Args:
        tokens: [n] where the points are, ascending.
        scores: [n].
    """
    x, y = _centred(tokens), scores - scores.mean()
    sums = [_sums(values) for values in (x, y, x * x, x * y, y * y)]

    def costs(node: int) -> Array:
        first = np.arange(node)
        sx, sy, sxx, sxy, syy = (total[node] - total[first] for total in sums)
        count = node - first
        xx, xy, yy = sxx - sx**2 / count, sxy - sx * sy / count, syy - sy**2 / count
        explained = np.divide(xy**2, xx, out=np.zeros_like(xx), where=count > 1)
        return _without_rounding(np.where(count > 2, yy - explained, 0.0))  # two points are on a line

    return costs


def level_costs(scores: Array) -> Costs:
    """Squared distances of a piece's points from their mean.

    Args:
        scores: [n].
    """
    y = scores - scores.mean()
    total, squares = _sums(y), _sums(y * y)

    def costs(node: int) -> Array:
        first = np.arange(node)
        own = total[node] - total[first]
        return _without_rounding(squares[node] - squares[first] - own**2 / (node - first))

    return costs


def at_least(costs: Costs, places: npt.NDArray[np.int64], shortest: int) -> Costs:
    """The same without segments of fewer than `shortest` tokens; a segment over everything is always allowed.

    Args:
        costs: of the edges between n + 1 nodes.
        places: [n + 1] the token at which each node stands; two at one place are no segment, which is allowed.
        shortest: tokens.
    """
    end = len(places) - 1

    def allowed(node: int) -> Array:
        lengths = places[node] - places[:node]
        short = (lengths > 0) & (lengths < shortest)
        if node == end:
            short[0] = False
        return np.where(short, np.inf, costs(node))

    return allowed


def cheapest(costs: Costs, last: int, penalty: float, most: int | None = None) -> list[int]:
    """The nodes of the path from 0 to `last` with the smallest sum of costs and of `penalty` for each edge.

    Of equal ones it is the one whose last cut comes first.

    Args:
        costs: of the edges.
        last: the last node, at least 1.
        penalty: above 0.
        most: edges that the path may have; None: any number.

    >>> cheapest(level_costs(np.array([1.0, 1.0, 3.0, 3.0, 3.0])), 5, penalty=0.5)
    [0, 2, 5]
    """
    path = _of_any_length(costs, last, penalty)
    return path if most is None or len(path) - 1 <= most else _of_at_most(costs, last, penalty, most)


def _of_any_length(costs: Costs, last: int, penalty: float) -> list[int]:
    best, before = np.zeros(last + 1), [0] * (last + 1)
    for node in range(1, last + 1):
        totals = best[:node] + costs(node)
        before[node] = int(totals.argmin())
        best[node] = totals[before[node]] + penalty
    path = [last]
    while path[-1]:
        path.append(before[path[-1]])
    return path[::-1]


def _of_at_most(costs: Costs, last: int, penalty: float, most: int) -> list[int]:
    best = np.full((most + 1, last + 1), np.inf)  # by number of edges and node
    best[0, 0] = 0.0
    before = np.zeros((most + 1, last + 1), dtype=np.int64)
    for node in range(1, last + 1):
        totals = best[:-1, :node] + costs(node)
        before[1:, node] = totals.argmin(axis=1)
        best[1:, node] = totals.min(axis=1)
    edges = int((best[:, last] + penalty * np.arange(most + 1)).argmin())
    path = [last]
    for number in range(edges, 0, -1):
        path.append(int(before[number, path[-1]]))
    return path[::-1]


def noise_of(scores: Array, order: int) -> float:
    """The standard deviation of [n] scores' noise, from their differences, which are 0 where there is none.

    Robust, as a few of them are cuts (the median absolute value, Rousseeuw and Croux 1993); 0 of too few scores.

    Args:
        scores: [n].
        order: 1, the differences of scores on levels; 2, the second differences of scores on lines.

    >>> scores = np.array([1.0, 2.0, 3.0, 4.0, 4.0, 4.0, 4.0])
    >>> noise_of(scores, 2), noise_of(scores, 1) > 0
    (0.0, True)
    """
    if len(scores) <= order:
        return 0.0
    variance = sum(comb(order, k) ** 2 for k in range(order + 1))  # of a difference of scores of variance 1
    return float(np.median(np.abs(np.diff(scores, order))) / (_NORMAL * sqrt(variance)))


def _without_rounding(costs: Array) -> Array:
    """Points that lie on their line cost nothing, so that which of two equal divisions is taken is no chance."""
    found: Array = np.where(costs < _ROUNDING, 0.0, costs)
    return found


def _sums(values: Array) -> Array:
    """[n + 1] of the first 0, 1, ... values."""
    return np.concatenate([[0.0], np.cumsum(values)])


def _centred(tokens: Array) -> Array:
    """Within [-1, 1], so that sums of squares lose no digits."""
    half = (tokens[-1] - tokens[0]) / 2
    centred: Array = (tokens - tokens[0] - half) / max(half, 1.0)
    return centred
