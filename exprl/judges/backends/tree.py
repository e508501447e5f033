"""Token sequences with common beginnings as one tree, each common token held and computed once.

A causal model computes a whole tree in a single forward pass when every token attends to its ancestors alone and
stands at the position it has in its own sequence. The nested prompts of a rollout's prefixes are such a tree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class TokenTree:
    """S tokens that spell several sequences.

    Attributes:
        token_ids: [S].
        positions: [S] each token's place in its sequence.
        paths: for each sequence the indices of its tokens in the tree, in order.
        mask: [S, S] bool, True where the row's token attends to the column's.
    """

    token_ids: Ids
    positions: Ids
    paths: tuple[Ids, ...]
    mask: npt.NDArray[np.bool_]


def pack(sequences: Sequence[Sequence[int]], max_tokens: int, max_sequences: int) -> list[list[int]]:
    """Indices of the sequences in groups, each fit for one tree: neighbours in lexicographic order.

    A group holds at most `max_sequences` sequences, and as many distinct tokens as `max_tokens` or, where that is more,
    one and a half times its longest sequence: without that, long nested sequences would each stand alone.
    """
    arrays = [np.asarray(sequence, dtype=np.int64) for sequence in sequences]
    # big-endian bytes sort like the tokens themselves, and compare much faster than lists
    order = sorted(range(len(arrays)), key=lambda index: arrays[index].astype(">u4").tobytes())
    groups: list[list[int]] = []
    tokens = longest = 0
    for index in order:
        length = len(arrays[index])
        fresh = length - (common_length(arrays[groups[-1][-1]], arrays[index]) if groups else 0)
        limit = max(max_tokens, 3 * max(longest, length) // 2)
        if not groups or tokens + fresh > limit or len(groups[-1]) == max_sequences:
            groups.append([])
            tokens, longest, fresh = 0, 0, length
        groups[-1].append(index)
        tokens, longest = tokens + fresh, max(longest, length)
    return groups


def build_tree(sequences: Sequence[Sequence[int]]) -> TokenTree:
    """The tree of sequences that come in lexicographic order, as `pack` gives them.

    In that order a sequence shares with the one before it all that it shares with any earlier one.
    """
    size, previous, path = 0, np.empty(0, np.int64), np.empty(0, np.int64)
    tokens, positions, paths, blocks = [], [], [], []
    for sequence in sequences:
        current = np.asarray(sequence, dtype=np.int64)
        shared = common_length(previous, current)
        fresh = np.arange(size, size + len(current) - shared)
        path = np.concatenate([path[:shared], fresh])
        tokens.append(current[shared:])
        positions.append(np.arange(shared, len(current)))
        paths.append(path)
        blocks.append((fresh, path[:shared]))
        size, previous = size + len(fresh), current
    mask = np.zeros((size, size), dtype=np.bool_)
    for fresh, ancestors in blocks:
        if len(fresh):
            rows = slice(fresh[0], fresh[-1] + 1)
            mask[rows, ancestors] = True
            mask[rows, rows] = np.tri(len(fresh), dtype=np.bool_)
    return TokenTree(np.concatenate(tokens), np.concatenate(positions), tuple(paths), mask)


def common_length(first: Ids, second: Ids) -> int:
    """How many leading tokens two sequences share."""
    width = min(len(first), len(second))
    different = np.flatnonzero(first[:width] != second[:width])
    return int(different[0]) if len(different) else width
