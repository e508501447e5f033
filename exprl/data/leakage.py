"""Did the reference reach the policy? Words that a text shares with the reference and not with the question."""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Sequence

_WORD = re.compile(r"\w+|[^\w\s]")
_GIST = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff]|[^\W_\u3040-\u30ff\u3400-\u9fff]+|[-+*/=<>^%!|~\u00ac\u00b1\u00d7\u00f7\u2190-\u22ff]"
)
"""Kana and Chinese characters count one by one, since no spaces part their words."""
_DRESS = re.compile(
    r"\\(?:boxed|(?:f|m|h|frame)box|text(?:bf|it|rm|sf|tt|normal)?|math(?:bf|rm|it|sf|tt|normal)|emph|underline|bm|boldsymbol"
    r"|displaystyle|left|right|[bB]ig[glr]*|q?quad)(?![A-Za-z])"
)
"""TeX that changes how something looks and not what it says."""
_UNSEEN = re.compile(r"[\u034f\u115f\u1160\u17b4\u17b5\u3164\ufe00-\ufe0f]")
"""What shows nothing although Unicode counts it among letters and marks."""


def words(text: str) -> list[str]:
    """Words and single signs in lower case, so that spacing and capitals hide nothing.

    >>> words("Thus x_1 = 5.")
    ['thus', 'x_1', '=', '5', '.']
    """
    return _WORD.findall(text.lower())


def longest_shared_ngram(text_tokens: Sequence[str], other_tokens: Sequence[str]) -> int:
    """Length in words of the longest run of words that both sequences contain.

    >>> longest_shared_ngram("a b c d".split(), "x b c y".split())
    2
    """
    start, end = _longest_shared(text_tokens, other_tokens)
    return end - start


def leaked_ngram(policy_text: str, reference: str, question: str) -> str | None:
    """The longest word n-gram of `reference` in `policy_text`, if it is longer than any that the question explains.

    A problem's statement and its solution share words, so a text made from the question alone shares them as well:
    only a run longer than the longest one of reference and question is a leak.

    Args:
        policy_text: what the policy reads, a prompt above all; also a rollout, to look for memorised solutions.
        reference: the hidden worked solution.
        question: the problem's text.

    Returns:
        The n-gram, its words joined by spaces, or None.

    >>> leaked_ngram("Solve x+1=3. Hint: subtract one from both sides", "Subtract one from both sides: x=2", "x+1=3")
    'subtract one from both sides'
    >>> leaked_ngram("Please solve x+1=3", "From x+1=3 follows x=2", "x+1=3") is None
    True
    """
    text, solution = words(policy_text), words(reference)
    start, end = _longest_shared(text, solution)
    if end - start <= longest_shared_ngram(words(question), solution):
        return None
    return " ".join(text[start:end])


MIDDLE = (0.2, 0.8)
"""Any run of four fifths of a text's words has all of these in it."""


def undressed(text: str) -> str:
    r"""`text` with HTML's entities as their characters and without the TeX that only changes its looks.

    >>> undressed(r"&lt;\boxed{11}"), undressed(r"\frac{1}{2}")
    ('< {11}', '\\frac{1}{2}')
    """
    return _DRESS.sub(" ", html.unescape(text))


def gist(text: str) -> list[str]:
    """Words, numbers and operators alone, in one writing: what mark-up, punctuation and invisible characters leave.

    >>> gist("Thus $x_1 = 5$, \uff19 \u2265 2"), gist("n\u200bine")
    (['thus', 'x', '1', '=', '5', '9', '\u2265', '2'], ['nine'])
    """
    text = undressed(text)
    if not text.isascii():
        seen = _UNSEEN.sub("", "".join(c for c in text if unicodedata.category(c) != "Cf"))
        text = unicodedata.normalize("NFKC", seen)
    return _GIST.findall(text.casefold())


def find_run(run: Sequence[str], among: Sequence[str]) -> int | None:
    """Where `run` stands last in `among`, as its first word's number; None if it does not, or is empty.

    >>> find_run(["b", "c"], ["a", "b", "c"]), find_run(["c", "b"], ["a", "b", "c"])
    (1, None)
    """
    before, found, _ = f" {' '.join(among)} ".rpartition(f" {' '.join(run)} ")
    return before.count(" ") if run and found else None


def holds_most(text: str, other: str) -> bool:
    """Whether `text` holds a run of most of `other`'s words: all between its first and its last fifth, at least 6.

    >>> holds_most("Solve x+1=3. Subtract one from both sides of it: x=2", "Subtract one from both sides of it: x is 2")
    True
    >>> holds_most("What is 1+1?", "1+1 is 2")
    False
    """
    tokens, held = gist(other), gist(text)
    middle = tokens[round(MIDDLE[0] * len(tokens)) : round(MIDDLE[1] * len(tokens))]
    return len(middle) >= 6 and find_run(middle, held) is not None


def _longest_shared(text: Sequence[str], other: Sequence[str]) -> tuple[int, int]:
    """The first longest run text[start:end] that `other` contains, in time linear in both lengths.

    Walks `text` through the suffix automaton of `other`: the state reached is always that of the longest run ending
    at the current word.
    """
    edges, links, lengths = _suffix_automaton(other)
    state = length = best = best_end = 0
    for position, word in enumerate(text, start=1):
        while state and word not in edges[state]:
            state = links[state]
            length = lengths[state]
        if word in edges[state]:
            state = edges[state][word]
            length += 1
        if length > best:
            best, best_end = length, position
    return best_end - best, best_end


def _suffix_automaton(tokens: Sequence[str]) -> tuple[list[dict[str, int]], list[int], list[int]]:
    """Edges, suffix links and longest lengths of the states; state 0 is the start (Blumer et al. 1985)."""
    edges: list[dict[str, int]] = [{}]
    links, lengths = [-1], [0]
    last = 0
    for token in tokens:
        edges.append({})
        lengths.append(lengths[last] + 1)
        links.append(0)
        current, state = len(edges) - 1, last
        while state >= 0 and token not in edges[state]:
            edges[state][token] = current
            state = links[state]
        if state >= 0:
            links[current] = _split(edges, links, lengths, state, token)
        last = current
    return edges, links, lengths


def _split(edges: list[dict[str, int]], links: list[int], lengths: list[int], state: int, token: str) -> int:
    """The state for the run that ends in `token` after `state`'s longest; made by splitting one if there is none."""
    target = edges[state][token]
    if lengths[target] == lengths[state] + 1:
        return target
    edges.append(dict(edges[target]))
    lengths.append(lengths[state] + 1)
    links.append(links[target])
    clone = len(edges) - 1
    while state >= 0 and edges[state].get(token) == target:
        edges[state][token] = clone
        state = links[state]
    links[target] = clone
    return clone
