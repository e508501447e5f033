"""What a data set gives as the answer: the final answer by itself, or a solution that ends in it."""

from __future__ import annotations

import re

from exprl.text.thinking import without_thinking
from exprl.verifiers.answers import (
    NUMBER_LINE,
    Stated,
    last_block,
    last_box,
    last_line,
    last_match,
    last_statement,
    without_marks,
)
from exprl.verifiers.commitment import stands_by_box, stands_by_statement
from exprl.verifiers.statements import begins_like_a_value, without_hedges

_MARK = "####"
_MATHEMATICS = re.compile(
    r"\$\$.*?\$\$|\$[^$\n]*\$|\\\[.*?\\\]|\\\(.*?\\\)|\\begin\{(\w+\*?)\}.*?\\end\{\1\}|\\text\w*\{[^{}]*\}|\\[a-zA-Z]+",
    re.DOTALL,
)
_WORD = re.compile(r"[^\W\d_]{2,}")
_UNSPACED = re.compile("[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff]")
"""Letters of scripts that put no spaces between words."""
_SENTENCES = re.compile(r"[a-z\d)$][.!?]\s+[\\$(]*[A-Z\d]")

_PLACEHOLDER = re.compile(
    r"(?i)[<(\[#\s]*(?:n\s?[/.]\s?a|null|none|nan|unknown|not[\s_-]?(?:found|available|given)|proof|tbd|todo|[-‐–—?._…*/\s]+)"
    r"[>)\].\s]*"
)

_STRING = r"""(?:"((?:\\.|[^"\\])+)"|'((?:\\.|[^'\\])+)')"""
_QUOTED = re.compile(_STRING)
_LIST = re.compile(rf"\s*\[\s*{_STRING}(?:\s*,\s*{_STRING})*\s*,?\s*\]\s*")
_INFERS = re.compile(r"(?i)(?:therefore|thus|hence|so|then)\b")
_DENIES = re.compile(r"(?i)[\W_]*(?:not|never|neither)\b")
_DENIES_ANSWER = re.compile(r"(?i)\banswer\s+(?:is|was)n['’]t\b")
_SENTENCE_ENDS = re.compile(r"(?<=[.!?])\s+(?=[A-Z\\$])")

_LOOKED_AT = 4000
"""Characters of a text by which it is known as prose: searches for the end of mathematics are quadratic."""
_LONGEST_PLACEHOLDER = 30
_WORDS_OF_A_LINE = 4
_WORDS_OF_SENTENCES = 8
_WORDS_AFTER_A_VALUE = 2
_UNSPACED_LETTERS = 8


def gold_answer(gold: str) -> Stated | None:
    r"""The final answer that `gold` is or ends in; None: a text that states none.

    Data sets give answers as they are (`58`), after GSM8K's last mark (`... #### 58`), in the box of a solution (MATH),
    or in a solution that says "the answer is 58" or ends in the value. What is not prose is its own answer, but for
    placeholders: writing one is no answer.

    >>> gold_answer("She sold 24 clips in May.\nThat is 72 in all.\n#### 72").text
    '72'
    >>> gold_answer("She sold 24 clips in May.\nShe sold many clips in all.") is None
    True
    >>> gold_answer("N/A") is None
    True
    """
    place = _place(gold)
    return None if place is None or is_placeholder(place.text) else place


def is_placeholder(answer: str) -> bool:
    r"""Whether `answer` stands for one that is missing: null, N/A, TBD, a dash, "proof" where there is only a proof.

    >>> is_placeholder("None"), is_placeholder("not found"), is_placeholder("?")
    (True, True, True)
    >>> is_placeholder(r"\text{none}"), is_placeholder("-5"), is_placeholder("no solution")
    (False, False, False)
    """
    return len(answer) <= _LONGEST_PLACEHOLDER and _PLACEHOLDER.fullmatch(without_marks(answer) or "-") is not None


def _place(gold: str) -> Stated | None:
    if listed := elements(gold):
        return _place(listed[0]) if len(listed) == 1 else Stated(0, " , ".join(listed), "line")
    _, mark, marked = last_line(gold).rpartition(_MARK)
    if mark and marked.strip():
        return Stated(gold.rindex(mark), marked.strip(), "box")
    box, number = last_box(gold), last_match(NUMBER_LINE, gold)
    if number and (box is None or box[0] < number.start()):
        return Stated(number.start(1), number[1].strip(), "box")
    if box:
        return Stated(*box, "box") if stands_by_box(gold[: box[0]], box[1], "") else None
    said = without_thinking(gold) or gold
    if statement := last_statement(said):
        return _committed(said, *statement)
    if is_prose(gold):
        return _conclusion(last_block(said))
    if _DENIES_ANSWER.search(gold):
        return None
    inferred = without_hedges(gold) if _INFERS.match(gold) else ""
    return Stated(0, inferred, "statement") if begins_like_a_value(inferred) else Stated(0, gold, "line")


def elements(gold: str) -> list[str]:
    """The strings of a list in the writing of Python or JSON; none for any other text."""
    if len(gold) > _LOOKED_AT or not _LIST.fullmatch(gold):
        return []
    return [re.sub(r"\\([\\'\"])", r"\1", quoted[1] or quoted[2]) for quoted in _QUOTED.finditer(gold)]


def _committed(said: str, start: int, statement: str) -> Stated | None:
    """What `said` states at `start`, unless that is denied or left open."""
    stands = not _DENIES.match(statement) and stands_by_statement(said[:start], statement)
    return Stated(start, statement, "statement") if stands else None


def _conclusion(block: str) -> Stated | None:
    """The value that the last line is, or else its last sentence with a number."""
    sentence = _SENTENCE_ENDS.split(block)[-1]
    for said in dict.fromkeys((block, sentence)):
        if begins_like_a_value(said) and len(_words(without_hedges(said))) <= _WORDS_AFTER_A_VALUE:
            return Stated(0, said, "statement") if said == block or re.search(r"[\d\\]", said) else None
    return None


def is_prose(text: str) -> bool:
    r"""Whether `text` is a solution in words, of several lines or sentences, and not an answer, however long.

    >>> is_prose("Alice\nBob"), is_prose(r"\begin{cases} 1 & \text{if } x > 0 \\" "\n" r"0 & \text{else}\end{cases}")
    (False, False)
    """
    text = text[:_LOOKED_AT]
    spoken = _MATHEMATICS.sub(" ", text)
    if len([line for line in text.splitlines() if line.strip()]) > 1:
        return any(map(_is_sentence, spoken.splitlines()))
    return len(_words(spoken)) >= _WORDS_OF_SENTENCES and _SENTENCES.search(text) is not None


def _is_sentence(line: str) -> bool:
    return len(_words(line)) >= _WORDS_OF_A_LINE or len(_UNSPACED.findall(line)) >= _UNSPACED_LETTERS


def _words(text: str) -> list[str]:
    return _WORD.findall(_MATHEMATICS.sub(" ", text[:_LOOKED_AT]))
