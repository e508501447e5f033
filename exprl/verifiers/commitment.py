"""Whether a response stands by an answer that it states: what it withdraws, denies or leaves open is no answer."""

from __future__ import annotations

import re

_NEAR = 400
"""Characters of a sentence that are looked at: searches for its end are quadratic in what a hostile one has."""
_TRAILING = re.compile(r"[\s*_:=$(\[\\{]*$")
_CLAUSE = re.compile(r"(?i)[.,;:!?\n]|\b(?:so|thus|therefore|hence|then|but|because|and)\b")
_KEYWORD = re.compile(r"(?i)\b(?:answer|option|choice)\b")
_WRONG = r"(?:wrong|incorrect|mistaken|erroneous|false|invalid|not\s+(?:right|correct|true|valid|the\s+case|possible))"
_NOT = r"(?:is|was|are|were|does|did|do|ca|wo|could|should|would)n['’]t|\bcannot|\bnot|\bnever|\bneither|\bnor"

_DOUBT_OF_STATEMENT = re.compile(
    rf"(?i)\b(?:no|{_WRONG}|naive|tempting|deceptive|misleading|might|may|could|maybe|perhaps|possibly|if|whether|unless"
    rf"|suppose|supposing|assume|assuming|imagine|doubt|unlikely|impossible|unclear|guess|another|other|alternative)\b"
    rf"|(?:\b|(?<=n)){_NOT}\b|n['’]t\b"
)
"""In the clause before "answer is"."""
_DOUBT_OF_BOX = re.compile(
    rf"(?i)(?:(?:{_NOT})(?:\s+(?:be|equal|equal\s+to|simply|just|given\s+by))?|≠|\\neq?)$"
    rf"|\b{_WRONG}\b.{{0,60}}\b(?:is|was|be|get|gives?|yields?)$|\b(?:not\s+true|not\s+the\s+case|false)\s+that\b"
    rf"|\b(?:might|may|could|would)\s+(?:\w+\s+)?(?:think|guess|say|expect|believe|conclude|assume)\b"
    rf"|\b(?:maybe|perhaps|possibly|either)$"
)
"""In the clause before a box, which may hold a "not" about something else."""
_MANY_BOXES = re.compile(
    r"\\(?:boxed|fbox|framebox)\s*\{([^{}\n]*(?:\{[^{}\n]*\}[^{}\n]*)*)\}"
    r"(?:[ \t,;./&|$*]|\\[)(]|\b(?:or|and|maybe|perhaps|possibly)\b|\\text\{\s*(?:or|and)\s*\})*$"
)

_MARKS = r"(?:[\s*_$`\"”)\]]|\\[)\]])*"
_VALUE_WORD = r"(?:[^\s,.;!?]|[.,](?=\d))+"
_MAYBE = r"(?:maybe|perhaps|possibly|alternatively|could\s+be|might\s+be)"
_OR = r"\bor\b(?!\s+(?:equivalently|in\s+other\s+words|simply|just|more\s+simply)\b)"
_NUMBER = r"[-+−(]*(?:\\?\$|\\\()*\s*[-+−]?(?:\d|\\[a-z]*frac|\\boxed)"
_IF_NOT = rf"\b(?:if\s+not|unless(?:\s+it\s+is)?|or\s+else)\s+{_NUMBER}"
_OPEN_END = re.compile(
    rf"(?i)^{_MARKS}(?:\(?\s*{_IF_NOT}|\?|[,;(–—-]*\s*(?:{_OR}|{_MAYBE})\b"
    rf"|,?\s*(?:(?:which|but\s+(?:this|that|it))\s+)?(?:is|was|seems|looks)\s+(?:\w+\s+)?(?:{_WRONG}|not)\b|(?:\(|,\s*)?{_WRONG}\b)"
)
"""Right after a box."""
_OPEN_STATEMENT = re.compile(
    rf"(?i)^{_VALUE_WORD}{_MARKS};\s*{_NUMBER}[^\s;]*\s*(?:;|\n|$)|^(?:[^.!?\n]|\.(?=\d))*?{_IF_NOT}"
    r"|^(?:[^.;!?\n]|\.(?=\d))*\?(?=\s|$|[*_)\"$])"
    rf"|^{_VALUE_WORD}{_MARKS}(?:is|was|seems|looks)\s+(?:\w+\s+)?(?:{_WRONG}|not)\b"
    rf"|^(?:[^.!?\n]|\.(?=\d))*?(?:\b(?:which|but\s+(?:this|that|it))\s+(?:is|was)\s+(?:\w+\s+)?{_WRONG}\b|[,(]\s*{_WRONG}\b"
    rf"|\b{_MAYBE}\b|[;(]\s*{_OR}|,\s*{_OR}\s+(?:$|[^a-z\s]|{_MAYBE})|\botherwise\b|\bbut\s+(?:actually\s+)?(?:it|that|the\s+\w+)\s+is\b"
    rf"|\b(if|when|for)\b[^.\n]*?(?:\band\b|\bor\b|\bbut\b|\bwhile\b|[,;])[^.\n]*?\b\1\b)"
)
"""In the sentence that states an answer."""
_TAKEN_BACK = re.compile(
    rf"(?i)(?:^|[.!?,;:\n(–—-])[\s*_$\\)\]]{{0,8}}(?:hmm+|wait|oops|correction|scratch\s+that"
    rf"|on\s+second\s+thought|no(?=\s*[,.:;!–—-]|\s+wait)"
    rf"|my\s+mistake|i\s+(?:made\s+an?\s+(?:\w+\s+)?(?:mistake|error)|was\s+wrong|take\s+(?:that|it)\s+back|misread))\b"
    rf"|\banswer\s+(?:above\s+)?(?:is|was)(?:n['’]t|\s+{_WRONG}|\s+not)\b"
    rf"|\bactually,?\s+(?:no|it\s+is|it['’]s|that\s+is|the\s+(?:correct\s+|right\s+)?answer)\b"
)
"""Anywhere after."""
_ANSWERS_NO = re.compile(r"(?i)[\s*_$\\({\[\"'“]*no\b")
"""A statement that begins so takes nothing back: "no" is the answer."""
_NEXT_DENIES = re.compile(
    rf"(?i)^(?:[^.!?\n]|\.(?=\d))*[.!?\n]\s*(?:but\s+|however,?\s+)?(?:this|that|it|which)(?:\s+is|\s+was|['’]s)\s+(?:\w+\s+)?{_WRONG}\b"
    rf"|^(?:[^.!?\n]|\.(?=\d))*[.!?\n]{_MARKS}(?:{_OR}|{_MAYBE})\s+(?:it\s+is\s+|it['’]s\s+|even\s+)?{_NUMBER}"
)
"""In the sentence after."""


def stands_by_box(before: str, box: str, after: str) -> bool:
    r"""Whether a box that stands between `before` and `after` in the response is meant as the answer.

    >>> stands_by_box("It is ", "5", "."), stands_by_box("It is not ", "5", "."), stands_by_box("", "5", " is wrong")
    (True, False, False)
    """
    clause = _last_clause(before)
    previous = _MANY_BOXES.search(before[-_NEAR:].rpartition("\n")[2])
    return not (
        _DOUBT_OF_BOX.search(clause)
        or (previous and previous[1].strip() != box)
        or _OPEN_END.match(after[:_NEAR])
        or _taken_back(after)
    )


def stands_by_statement(before: str, statement: str) -> bool:
    """Whether the response means the answer that `statement` begins with, to its end, after "... answer is".

    >>> stands_by_statement("The answer is ", "5."), stands_by_statement("The wrong answer is ", "5.")
    (True, False)
    >>> stands_by_statement("The answer is ", "5, or maybe 6."), stands_by_statement("The answer is ", "5. Wait, no.")
    (False, False)
    """
    clause = _last_clause(before)
    keywords = list(_KEYWORD.finditer(clause))
    lead = clause[: keywords[-1].start()] if keywords else ""
    return not (
        _DOUBT_OF_STATEMENT.search(lead)
        or _OPEN_STATEMENT.match(statement[:_NEAR])
        or _taken_back(_after_no(statement))
    )


def _after_no(statement: str) -> str:
    no = _ANSWERS_NO.match(statement)
    return statement[no.end() :] if no else statement


def _taken_back(after: str) -> bool:
    return bool(_TAKEN_BACK.search(after) or _NEXT_DENIES.match(after[:_NEAR]))


def _last_clause(before: str) -> str:
    line = _TRAILING.sub("", before[-_NEAR:].rpartition("\n")[2])
    ends = [match.end() for match in _CLAUSE.finditer(line)]
    return line[max(ends, default=0) :]
