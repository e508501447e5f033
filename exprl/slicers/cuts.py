"""From cut positions to segments, shared by the slicers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from math import ceil

from exprl.types import Rollout, Segment


def segments_between(cuts: Iterable[int], length: int) -> tuple[Segment, ...]:
    """Segments of `length` tokens, a new one starting at each cut; cuts at the borders or beyond do nothing.

    >>> segments_between([0, 3, 3, 7], 7)
    (Segment(start=0, end=3), Segment(start=3, end=7))
    """
    inner = sorted({cut for cut in cuts if 0 < cut < length})
    borders = [0, *inner, length] if length else []
    return tuple(Segment(start, end) for start, end in pairwise(borders))


def even_ends(rollout: Rollout, every: int) -> tuple[int, ...]:
    """The tokens at which prefixes end: the last end of a word in every `every` tokens, and all T.

    A judge that is shown half a word or half a number reads another one. Where no word ends, the prefix ends there all
    the same; of two between which nothing is written the longer one stays.

    >>> from exprl.types import Prompt, Rollout
    >>> prompt = Prompt(problem_id="p", text="", token_ids=())
    >>> text, none = "12 3456 7", (0,) * 9
    >>> rollout = Rollout(prompt=prompt, token_ids=none, text=text, token_ends=tuple(range(1, 10)),
    ...                   sampler_logprobs=none, finish_reason="stop")
    >>> even_ends(rollout, 3), even_ends(rollout, 5)
    ((3, 6, 9), (3, 9))
    """
    length, characters = len(rollout), (0, *rollout.token_ends)
    ends: list[int] = []
    for stop in [*range(every, length, every), length] if length else []:
        within = range(stop, stop - every, -1)
        end = (
            stop if stop == length else next((end for end in within if _ends_word(rollout.text, characters[end])), stop)
        )
        if ends and characters[ends[-1]] == characters[end]:
            ends.pop()
        ends.append(end)
    return tuple(ends)


def _ends_word(text: str, place: int) -> bool:
    """Whether a word ends at this character, or none is there."""
    return not text[place : place + 1].strip() or not text[max(place - 1, 0) : place].strip()


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


def divide_evenly(
    segments: Iterable[Segment], longest: int, ends: Iterable[int], shortest: int = 1
) -> Iterator[Segment]:
    """Every segment of more than `longest` tokens in parts of about equal length, as far as it can be cut at `ends`.

    No part has fewer than `shortest` tokens; one is longer than `longest` where it must be for that.

    >>> list(divide_evenly([Segment(0, 3), Segment(3, 12)], 4, range(1, 13)))
    [Segment(start=0, end=3), Segment(start=3, end=6), Segment(start=6, end=9), Segment(start=9, end=12)]
    >>> list(divide_evenly([Segment(0, 11)], 10, [4, 8, 11], shortest=5))
    [Segment(start=0, end=11)]
    """
    places = sorted(ends)
    for segment in segments:
        parts = ceil(len(segment) / longest)
        inner = [end for end in places if segment.start + shortest <= end <= segment.end - shortest]
        borders = [segment.start]
        for part in range(1, parts) if inner else ():
            place = segment.start + len(segment) * part / parts
            if _nearest(inner, place) > borders[-1]:
                allowed = [end for end in inner if end - borders[-1] >= shortest]
                borders += [_nearest(allowed, place)] if allowed else []
        yield from (Segment(*own) for own in pairwise([*borders, segment.end]))


def _nearest(ends: Iterable[int], place: float) -> int:
    return min(ends, key=lambda end: abs(end - place))


def merge_evenly(segments: tuple[Segment, ...], most: int) -> tuple[Segment, ...]:
    """At most `most` segments, each made of neighbours; their numbers of parts differ by one at most.

    >>> merge_evenly(tuple(Segment(i, i + 1) for i in range(5)), 2)
    (Segment(start=0, end=2), Segment(start=2, end=5))
    """
    if len(segments) <= most:
        return segments
    borders = [index * len(segments) // most for index in range(most + 1)]
    return tuple(Segment(segments[first].start, segments[last - 1].end) for first, last in pairwise(borders))
