"""From cut positions to segments, shared by the slicers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import pairwise

from exprl.types import Segment


def segments_between(cuts: Iterable[int], length: int) -> tuple[Segment, ...]:
    """Segments of `length` tokens, a new one starting at each cut; cuts at the borders or beyond do nothing.

    >>> segments_between([0, 3, 3, 7], 7)
    (Segment(start=0, end=3), Segment(start=3, end=7))
    """
    inner = sorted({cut for cut in cuts if 0 < cut < length})
    borders = [0, *inner, length] if length else []
    return tuple(Segment(start, end) for start, end in pairwise(borders))


def merge_blank(segments: Iterable[Segment], is_blank: Callable[[Segment], bool]) -> tuple[Segment, ...]:
    """Join every blank segment to the one after it, and a blank last one to the one before it.

    >>> merge_blank([Segment(0, 1), Segment(1, 4), Segment(4, 5)], lambda segment: len(segment) == 1)
    (Segment(start=0, end=5),)
    """
    merged: list[Segment] = []
    start: int | None = None
    end = 0
    for segment in segments:
        start, end = segment.start if start is None else start, segment.end
        if not is_blank(segment):
            merged.append(Segment(start, end))
            start = None
    if start is not None:
        merged.append(Segment(merged.pop().start if merged else start, end))
    return tuple(merged)


def merge_evenly(segments: tuple[Segment, ...], most: int) -> tuple[Segment, ...]:
    """At most `most` segments, each made of neighbours; their numbers of parts differ by one at most.

    >>> merge_evenly(tuple(Segment(i, i + 1) for i in range(5)), 2)
    (Segment(start=0, end=2), Segment(start=2, end=5))
    """
    if len(segments) <= most:
        return segments
    borders = [index * len(segments) // most for index in range(most + 1)]
    return tuple(Segment(segments[first].start, segments[last - 1].end) for first, last in pairwise(borders))
