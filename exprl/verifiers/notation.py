"""One way to write each thing: what stands before math-verify, which reads clean LaTeX and little else.

Pure functions on text. Each rule has its reason beside it; none looks at the other answer.
"""

from __future__ import annotations

import re
import unicodedata

from exprl.verifiers.number_words import changes_a_number

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_SUPERSCRIPT_RUN = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+")
_SUBSCRIPT_RUN = re.compile("[₀₁₂₃₄₅₆₇₈₉]+")
_SYMBOLS = {
    "−": "-", "–": "-", "‐": "-", "‑": "-", "×": r"\times ", "⋅": r"\cdot ", "·": r"\cdot ", "÷": r"\div ",
    "±": r"\pm ", "∓": r"\mp ", "≤": r"\le ", "⩽": r"\le ", "≥": r"\ge ", "⩾": r"\ge ", "≠": r"\ne ",
    "∞": r"\infty ", "∪": r"\cup ", "∩": r"\cap ", "∅": r"\emptyset ", "∈": r"\in ", "°": r"^\circ ",
    "π": r"\pi ", "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ", "γ": r"\gamma ", "λ": r"\lambda ", "φ": r"\phi ",
    "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}", "ℚ": r"\mathbb{Q}", "ℂ": r"\mathbb{C}",
    "’": "'", "‘": "'", "“": '"', "”": '"',
}  # fmt: skip
_HYPHENS = str.maketrans("−‐‑", "---")
_SYMBOL_TABLE = str.maketrans(_SYMBOLS)
_ROOT = re.compile(r"√\s*(?:\(([^()]*)\)|(\d+(?:\.\d+)?|[A-Za-z]|\\pi\b)|(?=\{))")
_SPACE = r"(?:\\[,;:! ]|[ \u00a0\u2007\u2009\u202f~]|\{,\})"
_THIN_SPACE = r"(?:\\[,;:! ]|[\u00a0\u2007\u2009\u202f~]|\{,\})"
_THIN_GROUPS = re.compile(rf"(?<![\d.])\d{{1,3}}(?:{_THIN_SPACE}\d{{3}})+(?!\d)")
_SPACED_GROUPS = re.compile(r"^-?[1-9]\d{0,2}(?: \d{3})+$")  # only where it is all: a space also parts numbers
_COMMA_GROUPS = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:,\d{3})+(?![\d,])")
_BRACKETS = re.compile(r"[()\[\]]|\\[{}]")

_DROPPED = re.compile(
    r"\\(?:left|right|[bB]ig[glr]*|displaystyle|textstyle|scriptstyle|limits|nolimits|tiny|small|normalsize|large|Large"
    r"|LARGE|huge|Huge|bf|rm|it|sf|mathstrut|strut|noindent|quad|qquad|hfill|par)(?![A-Za-z])"
    r"|\\(?:hspace|vspace|phantom|label|tag)\*?\{[^{}]*\}"
    r"|\\begin\{(?:equation|align|aligned|gather|gathered|split|displaymath|math)\*?\}"
    r"|\\end\{(?:equation|align|aligned|gather|gathered|split|displaymath|math)\*?\}"
    r"|\\[()\[\]]"  # math marks inside a box
)
_COLOURED = re.compile(r"\\(?:textcolor|color|colorbox)\{[^{}]*\}")
_STYLED = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|normal|up|sc)?|math(?:bf|rm|it|sf|tt|normal|bfit)|mbox|hbox|operatorname|bm|boldsymbol"
    r"|emph|underline|pmb|boxed|fbox|framebox)\*?\s*\{((?:[^{}]|\{[^{}]*\})*)\}"
)
_ONE_SYMBOL = re.compile(r"\s*[-+]?[\d.,:/]*\s*[A-Za-z]?\s*")
_JOINTS = re.compile(r"\b(?:and|or)\b")
_MATHEMATICS = re.compile(r"[\d=<>^,]")  # (s) may be a unit
_WORD = re.compile(r"[^\W\d_]{2,}|[^\W\d_]\.")  # a.m. too
_RENAMED = [
    (re.compile(rf"\\{name}(?![A-Za-z])"), new)
    for name, new in [
        ("(?:d|t|c|x)frac", r"\\frac"),
        ("(?:leq(?:slant)?|leqq)", r"\\le"),
        ("(?:geq(?:slant)?|geqq)", r"\\ge"),
        ("neq", r"\\ne"),
        ("lt", "<"),
        ("gt", ">"),
        ("varnothing", r"\\emptyset"),
        ("(?:lbrace|lcurly)", r"\\{"),
        ("rbrace", r"\\}"),
        ("(?:lbrack)", "["),
        ("rbrack", "]"),
        ("(?:lvert|rvert|vert|mid)", "|"),
        ("(?:degree|degrees)", r"^\\circ "),
        ("(?:land|wedge)", r"\\text{and}"),
        ("(?:lor|vee)", r"\\text{or}"),
        ("(?:ldots|cdots)", r"\\dots"),
        ("varphi", r"\\phi"),
        ("(?:to|rightarrow|longrightarrow|Rightarrow|implies)", r"\\to"),
    ]
]
_OVER = re.compile(r"\{([^{}]*)\\over(?![A-Za-z])([^{}]*)\}")
_EXPONENT = re.compile(r"(?<![A-Za-z\d.\\_])(\d+\.?\d*|\.\d+)[eE]([-+]?)0*(\d+)(?![A-Za-z\d.])")
_REPEATING = re.compile(r"(\d+)\.(\d*)\\overline\{(\d+)\}")
_SIGNED_POWER = re.compile(r"\^\s*([-+]\d+)")  # 2^-1, in which TeX would raise the sign alone
_IN_DEGREES = re.compile(
    r"(\\(?:sin|cos|tan|cot|sec|csc))\s*[({]?\s*(-?\d+(?:\.\d+)?)\s*\^\s*(?:\{\s*\\circ\s*\}|\\circ)\s*[)}]?"
)
_FACTORS = re.compile(r"(?:\(\s*[-+]?\d+(?:\.\d+)?\s*\)\s*){2,}")
_MIXED = re.compile(r"^([-+]?\d+)\s+(\d+)\s*/\s*(\d+)$")
_REMARK = re.compile(  # "(since 6*7=42)", "(forty-two)"; "(or 3)" is a second answer
    r"(?<=[\d}])\s*(?:\\text\{)?\s*\((?:(?:since|because|as|i\.e\.|that is|which|using|from)\b[^{}]*"
    r"|(?!or\b|and\b|not\b|mod\b)[a-z][a-z' -]{2,}\)\s*)\}?\s*$",
    re.IGNORECASE,
)
_APPROXIMATELY = re.compile(r"^\s*(?:\\(?:approx|simeq)(?![A-Za-z])|[≈~])\s*")
_LEAD = re.compile(
    r"^\s*(?:\\text\{)?\s*(?:the\s+)?(?:final\s+|correct\s+)?answer(?:\s+is|\s*[:=])\s*:?\s*\}?\s*", re.IGNORECASE
)
_WORDS_FOR_SYMBOLS = [
    (
        re.compile(r"\\text\{\s*(?:positive )?infinity\s*\}|(?<![A-Za-z\\])(?:infinity|Infinity)(?![A-Za-z])"),
        r"\\infty ",
    ),
    (re.compile(r"(?<![A-Za-z\\])pi(?![A-Za-z])"), r"\\pi "),
    (re.compile(r"(?<![A-Za-z\\])sqrt\s*\(([^()]*)\)"), r"\\sqrt{\1}"),
    (re.compile(r"(?<![A-Za-z\\])sqrt(?=\{)"), r"\\sqrt"),
]


def folded(text: str) -> str:
    r"""`text` without the differences that only Unicode sees: compatibility forms, other digits, what has no width.

    >>> folded("\uff14\u200b２")
    '42'
    >>> folded("cafe\u0301") == folded("café")
    True
    """
    if text.isascii():
        return text
    visible = "".join(c for c in text if unicodedata.category(c) != "Cf")
    normal = unicodedata.normalize("NFC", "".join(map(_compatible, unicodedata.normalize("NFC", visible))))
    return normal.translate(_HYPHENS)


def _compatible(character: str) -> str:
    """Its compatibility form, unless that means something else: x² is not x2, and 2½ not 21/2."""
    if unicodedata.decomposition(character).startswith(("<super>", "<sub>", "<fraction>")):
        return character
    if character.isdecimal():
        return str(unicodedata.decimal(character))
    return unicodedata.normalize("NFKC", character)


def plain_latex(answer: str) -> str:
    r"""`answer` as LaTeX without layout, every symbol, fraction, number and piece of text written in one way.

    >>> plain_latex("\\mathbf{1\\,000½}")
    '1000\\frac{1}{2}'
    """
    text = _LEAD.sub("", _without_styles(_symbols(answer)))
    text = _APPROXIMATELY.sub("", _REMARK.sub(_unless_it_counts, text))
    for pattern, new in _WORDS_FOR_SYMBOLS:
        text = pattern.sub(new, text)
    text = _EXPONENT.sub(_power_of_ten, text)
    text = _REPEATING.sub(_repeating, text)
    text = _IN_DEGREES.sub(_in_radians, _SIGNED_POWER.sub(r"^{\1}", text))
    if _FACTORS.fullmatch(text.strip()):
        text = re.sub(r"\)\s*\(", r")\\cdot (", text)
    text = _OVER.sub(r"\\frac{\1}{\2}", text).replace("**", "^")
    text = _SPACED_GROUPS.sub(lambda number: number[0].replace(" ", ""), " ".join(text.split()))
    text = _MIXED.sub(r"\1\\frac{\2}{\3}", text)
    return text.rstrip(" \\").rstrip(".;,").strip()


def _symbols(text: str) -> str:
    """Unicode mathematics as LaTeX; before compatibility forms are folded, for ² is not 2 and ½ not 1/2 after a 2."""
    text = _SUPERSCRIPT_RUN.sub(lambda run: f"^{{{run[0].translate(_SUPERSCRIPTS)}}}", text)
    text = _SUBSCRIPT_RUN.sub(lambda run: f"_{{{run[0].translate(_SUBSCRIPTS)}}}", text)
    text = "".join(_fraction(c) for c in text).translate(_SYMBOL_TABLE)
    text = _THIN_GROUPS.sub(lambda number: re.sub(_THIN_SPACE, "", number[0]), text)
    text = folded(text)
    return _ROOT.sub(lambda root: rf"\sqrt{{{root[1] or root[2]}}}" if root[1] or root[2] else r"\sqrt", text)


def _fraction(character: str) -> str:
    r"""½ as `\frac{1}{2}`, anything else as it is."""
    if character.isascii() or not unicodedata.decomposition(character).startswith("<fraction>"):
        return character
    above, _, below = unicodedata.normalize("NFKC", character).partition("⁄")
    return rf"\frac{{{above}}}{{{below}}}" if below else character


def _without_styles(text: str) -> str:
    text = _DROPPED.sub(lambda found: " " if found[0].startswith(r"\q") else "", _COLOURED.sub("", text))
    text = text.replace("&", " ") if "matrix" not in text and "array" not in text else text
    text = _comma_groups(re.sub(r"(?<!\\)\\[,;:! ]|~", " ", re.sub(r"(?<![A-Za-z])\{([,:.])\}", r"\1", text)))
    text = re.sub(r"(?<!\\)\$", "", re.sub(r"^(-?)\s*\\?\$\s*(?=[\d.])", r"\1\\$", text.strip()))
    for _ in range(4):  # \text{\bf{...}} and the like, from inside out
        text = _STYLED.sub(_plain_or_text, text)
    for pattern, new in _RENAMED:
        text = pattern.sub(new, text)
    return text


def _plain_or_text(styled: re.Match[str]) -> str:
    r"""Styled numbers, symbols and lists of them without their style; words as `\text{...}`, which nothing else is."""
    inside = styled[1]
    joined = _JOINTS.sub(" ", inside)
    says_something = _MATHEMATICS.search(joined) or (joined != inside and joined.strip())
    is_mathematics = (
        (says_something and not _WORD.search(joined))
        or _ONE_SYMBOL.fullmatch(inside)
        or re.search(r"\\(?!text\b)", inside)
    )
    return inside if is_mathematics else rf"\text{{{inside}}}"


def _comma_groups(text: str) -> str:
    """1,000 as 1000, but not in brackets: (1,200) may be a point."""
    return text if _BRACKETS.search(text) else _COMMA_GROUPS.sub(lambda number: number[0].replace(",", ""), text)


def _unless_it_counts(remark: re.Match[str]) -> str:
    """Nothing for a remark, but "5 (million)" and "5 (squared)" are no 5."""
    return remark[0] if changes_a_number(remark[0].replace(r"\text", "")) else ""


def _in_radians(function: re.Match[str]) -> str:
    return rf"{function[1]}{{({function[2]}\cdot\frac{{\pi}}{{180}})}}"


def _power_of_ten(number: re.Match[str]) -> str:
    sign = "-" if number[2] == "-" else ""
    return rf"{number[1]}\cdot 10^{{{sign}{number[3]}}}"


def _repeating(number: re.Match[str]) -> str:
    r"""0.1\overline{6} as a fraction: (16 - 1) / 90."""
    whole, once, again = number.groups()
    above = int(whole + once + again) - int(whole + once)
    return rf"\frac{{{above}}}{{{'9' * len(again)}{'0' * len(once)}}}"
