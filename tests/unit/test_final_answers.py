"""Final answers in many forms: rows that say what is right, and what must hold for any text."""

import json
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from exprl.registry import VERIFIERS
from exprl.text.thinking import without_thinking
from exprl.types import Hidden, Problem, Question, Scaffold
from exprl.verifiers import Verifier
from exprl.verifiers.answers import last_box, last_statement, stated_answers
from exprl.verifiers.comparison import Undecided, compare
from exprl.verifiers.notation import folded, plain_latex
from exprl.verifiers.statements import stated_value
from tests.waiting import linear

DATA = Path(__file__).parents[1] / "data"
DISPUTED = {
    ("3.14159", r"\boxed{\pi}"): "six digits that pi rounds to: as good as 0.333333 for 1/3",
    ("7", "Therefore, there are 7 ways."): "a number in a sentence that does not say that it is the answer",
    ("12", r"\boxed12"): "TeX frames the 1 alone, but nobody who writes this means 1",
    ("8", r"\boxed{[8]}"): "brackets around one number say nothing else than the number",
    ("\\ln 2", r"\boxed{\log 2}"): "the logarithm of base 10 to half of the readers",
    ("9", "The answer is 9?"): "a question states no answer",
    ("7", r"\boxed{7 = 7}"): "the last side of an equation is the answer, as in 3+4=7",
    ("7", "The answer is seven."): "seven is 7: a number in words is one in digits",
    ("4", r"\boxed{\text{four}}"): "four is 4: a number in words is one in digits",
}
"""Rows written before the verifiers were measured that are held to be wrong now, and why."""


def rows(name: str) -> list[dict]:
    return [json.loads(line) for line in (DATA / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


ROWS = [row for name in ("final", "own", "held_out", "commitment") for row in rows(f"{name}_answers")]


@cache
def verifier(name: str) -> Verifier:
    return VERIFIERS.get(name)()


def verdict(name: str, answer: str, response: str) -> bool:
    problem = Problem(question=Question(problem_id="p", text="q"), scaffold=Scaffold(answer=Hidden(answer)))
    return verifier(name).verify(problem, response)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['answer']}|{row['response']}"[:60])
def test_rows(row):
    expected = row["right"] is not ((row["answer"], row["response"]) in DISPUTED)
    assert verdict(row.get("verifier", "math"), row["answer"], row["response"]) is expected


def test_a_gold_answer_is_itself():
    for row in ROWS:
        if (answer := row["answer"]) and row.get("verifier", "math") == "math":
            assert verdict("math", answer, rf"\boxed{{{answer}}}"), answer


# ------------------------------------------------------------------ thinking


@pytest.mark.parametrize(
    ("response", "said"),
    [
        ("a", "a"),
        ("<think>a</think>b", "b"),
        ("a</think>b", "b"),
        ("<THINK>a</THINK>b", "b"),
        ("<think>a</think>b<think>c</think>d", "bd"),
        ("<think>a <think> b</think>c", "c"),
        ("a</think>b</think>c", "c"),
        ("[THINK]a[/THINK]b", "b"),
        ("<think>a", None),
        ("<think>a</think>b<think>c", None),
    ],
)
def test_what_is_said_outside_thinking(response, said):
    assert without_thinking(response) == said


@pytest.mark.parametrize("name", ["math", "exact", "choice"])
@pytest.mark.parametrize("form", ["Answer: {}", "The answer is {}.", r"\boxed{{{}}}", "<answer>{}</answer>"])
def test_all_verifiers_read_the_same_places(name, form):
    right, wrong = form.format("B"), form.format("A")
    assert verdict(name, "B", right)
    assert verdict(name, "B", f"{wrong}\n{right}")
    assert not verdict(name, "B", f"{right}\n{wrong}")
    assert verdict(name, "B", f"<think>{wrong}</think>\n{right}")
    assert verdict(name, "B", f"{wrong}</think>\n{right}")
    assert not verdict(name, "B", f"<think>{right}</think>\n{wrong}")
    assert not verdict(name, "B", f"<think>{right}")
    assert not verdict(name, "B", f"{wrong}\n<think>{right}")


# ------------------------------------------------------------------ numbers


@given(st.integers(-(10**9), 10**9), st.integers(-40, 40))
def test_numbers_are_equal_whatever_their_writing(digits, exponent):
    scientific = rf"{digits}\times 10^{{{exponent}}}"
    plain = str(digits) + "0" * exponent if exponent >= 0 else None
    assert compare(f"{digits}e{exponent}", scientific) is True
    if plain:
        assert compare(plain, scientific) is True
    assert compare(scientific, rf"{digits + 1}\times 10^{{{exponent}}}") is False


@given(st.floats(allow_nan=False, allow_infinity=False, min_value=1e-30, max_value=1e30))
def test_floats_are_themselves_and_no_other(value):
    assert compare(repr(value), f"{value:.17e}") is True
    assert compare(f"{value:.17e}", f"{value * (1 + 1e-9):.17e}") is False


# ------------------------------------------------------------------ any text

CHARACTERS = st.one_of(st.characters(), st.sampled_from(r"\{}()[]$^_%&.,:;=<>+-*/ 0123456789abcxyzAM½√²·°−½"))
TEXTS = st.text(alphabet=CHARACTERS, max_size=60)
PIECES = st.lists(
    st.sampled_from(
        [
            *(
                r"\boxed{",
                "}",
                r"\frac",
                r"\text{",
                "answer is ",
                "Answer:",
                "$",
                "$$",
                r"\[",
                r"\]",
                "<think>",
                "</think>",
            ),
            *("1", "2.5", "x", "or", " and ", ",", "\n", r"\%", r"^\circ", "cm", ":", "10", "e-5", "_8", "March", "A"),
        ]
    ),
    max_size=14,
).map("".join)


@settings(max_examples=300)
@given(st.one_of(TEXTS, PIECES), st.one_of(TEXTS, PIECES))
def test_no_text_raises(gold, response):
    assert isinstance(compare(gold, response), (bool, Undecided))
    for stated in stated_answers(response):
        assert isinstance(stated_value(stated.text), str)
    for name in ("exact", "choice"):
        assert verdict(name, gold, response) in (True, False)


@settings(max_examples=60)
@given(PIECES, PIECES)
def test_no_text_raises_in_a_worker(gold, response):
    assert verdict("math", gold, rf"\boxed{{{response}}}") in (True, False)


@settings(max_examples=300)
@given(st.one_of(TEXTS, PIECES), st.one_of(TEXTS, PIECES))
def test_what_text_and_arithmetic_decide_is_symmetric(first, second):
    one, other = compare(first, second), compare(second, first)
    assert isinstance(one, Undecided) == isinstance(other, Undecided)
    if isinstance(one, bool):
        assert one == other


@given(TEXTS)
def test_normal_forms_are_normal(text):
    assert folded(folded(text)) == folded(text)
    if plain_latex(text):
        assert compare(text, text) is True


@given(st.text(alphabet="ab{}\\ boxedanswris:$\n", max_size=80))
def test_places_lie_in_the_text(text):
    for place in (last_box(text), last_statement(text)):
        assert place is None or (0 <= place[0] <= len(text) and place[1] in text)


@pytest.mark.parametrize(
    "text",
    [
        "<answer>",
        "</answer>",
        "<answer>1</answer>",
        "answer is ",
        " ",
        "\n",
        ", ",
        "\\boxed{",
        "$",
        "\\[",
        "wait ",
        "or ",
        "(",
    ],
    ids=repr,
)
@pytest.mark.parametrize("around", ["{}", "The answer is {}\nx", "\\boxed{{5}} {}", "The answer is 5{}!"])
def test_hostile_text_takes_no_longer_than_any_other(text, around):
    response = around.format(text * (80_000 // len(text)))
    with linear():
        for place in stated_answers(response):
            stated_value(place.text)
        stated_value(response)


@pytest.mark.parametrize(
    "response",
    [
        *(
            "Answer: 5; 6",
            "Answer: 5. Or 6.",
            "The answer is 5 (if not 6).",
            "The answer is 5, unless it is 6.",
            "5 = 6",
        ),
        *(r"\boxed{\boxed{5}, 6}", r"\boxed{6, \boxed{5}}", r"\boxed{6=5}", r"\boxed{x=6=5}", r"\boxed{5}. Or 6."),
        *(
            r"\boxed{5}. The answer is six",
            r"\boxed{5} (if not 6)",
            "The answer is $5$; $6$",
            "The answer is 5. Maybe 6.",
        ),
    ],
)
def test_a_second_answer_beside_the_first_leaves_none(response):
    assert not verdict("math", "5", response)


@pytest.mark.parametrize(
    "response",
    [
        *(
            "Answer: 5; done.",
            "The answer is 5 (if x > 0).",
            "The answer is 5. Or equivalently 5.0.",
            r"\boxed{\boxed{5}}",
        ),
        *(r"\boxed{5=5}", r"\boxed{x=2+3=5}", r"\boxed{5}. The answer is one that we expected.", "Answer: five."),
        *(r"\boxed{f(2)=5}", r"\boxed{5=x}", r"\boxed{\text{five}}", r"\boxed{5}. Perhaps a simpler way exists."),
    ],
)
def test_what_is_said_beside_an_answer_leaves_it(response):
    assert verdict("math", "5", response)


def test_numbers_in_words_are_numbers():
    for words, digits in {
        "zero": "0",
        "twenty-one": "21",
        "five hundred and twelve": "512",
        "two thousand and six": "2006",
        "three million two hundred thousand": "3200000",
        "minus seven": "-7",
        "one half": "1/2",
        "a third": "1/3",
        "three quarters": "0.75",
        "two and a half": "2.5",
    }.items():
        assert compare(words, digits) is True, words
        assert compare(digits, words) is True, words
    for words, digits in {
        "one two": "3",
        "twenty eleven": "31",
        "third": "1/3",
        "twenty hundred thousand one": "1",
    }.items():
        assert compare(words, digits) is not True, words
