"""Verifiers: right answers in their usual forms, and the tricks that must not pay."""

import io
import json
import logging
import subprocess
import sys
import threading

import pytest

from exprl.config import validate
from exprl.errors import ConfigError, DataError
from exprl.registry import VERIFIERS
from exprl.types import Hidden, Problem, Question, Scaffold
from exprl.verifiers import ByDomainVerifier, ChoiceVerifier, ExactVerifier, MathVerifier, QuantityVerifier, math_worker
from exprl.verifiers.answers import last_boxed, last_line, last_statement, without_marks
from tests.waiting import linear


def problem(answer: str | None) -> Problem:
    hidden = Hidden(answer) if answer is not None else None
    return Problem(question=Question(problem_id="p", text="q"), scaffold=Scaffold(answer=hidden))


@pytest.fixture(scope="module")
def math_verifier() -> MathVerifier:
    return MathVerifier()


def test_the_three_are_registered():
    assert {"math", "exact", "choice"} <= set(VERIFIERS.names())
    assert VERIFIERS.get("math") is MathVerifier


# ------------------------------------------------------------------ finding the answer


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"\boxed{1} then \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed {7}", "7"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{3} and then \boxed{4 without an end", "3"),
        (r"\boxed{\boxed{5}}", "5"),
        (r"} \boxed{6}", "6"),
    ],
)
def test_last_boxed_balances_braces(text, content):
    found = last_boxed(text)
    assert found is not None
    assert found[1] == content


@pytest.mark.parametrize("text", ["", r"\boxed", r"\boxed 4", r"\boxed{4", "boxed{4}"])
def test_last_boxed_without_a_complete_box(text):
    assert last_boxed(text) is None


def test_finding_is_linear_in_degenerate_responses():
    for text in (r"\boxed{" * 20_000, "answer " * 20_000, " " * 100_000, "answer is " * 10_000, r"\)" * 50_000):
        with linear():
            last_boxed(text)
            last_statement(text)
            without_marks(text + "x" + text)


@pytest.mark.parametrize(
    ("text", "stated"),
    [
        ("The answer is 3. No, the answer is 4.", "4."),
        ("Answer: 1\nFinal answer: 2\nDone.", "2"),
        ("**Answer:** 42", "42"),
        ("**Answer**: 42", "42"),
        ("Answer:\n42", "42"),
        ("the answer is: x", "x"),
    ],
)
def test_last_statement(text, stated):
    found = last_statement(text)
    assert found is not None
    assert found[1] == stated


def test_last_line_of_nothing_is_empty():
    assert last_line(" \n\n") == ""
    assert last_line("a\n b \n\n") == "b"


# ------------------------------------------------------------------ math


@pytest.mark.parametrize(
    ("gold", "response"),
    [
        ("42", r"so \boxed{42}"),
        ("42", r"\boxed{42.0}"),
        ("42", "We get 40 + 2.\nThe answer is $42$."),
        ("42", r"The answer is \(42\)."),
        ("42", "a lot of text\n42"),
        ("1/2", r"\boxed{\frac12}"),
        (r"$\frac{1}{2}$", "**Answer:** 0.5"),
        (r"\boxed{\frac{\pi}{2}}", r"\boxed{\pi/2}"),
        ("1,2", r"\boxed{2, 1}"),
        ("5", r"\boxed{x = 5}"),
        ("1,000", r"\boxed{1000}"),
    ],
)
def test_math_accepts_equal_values(math_verifier, gold, response):
    assert math_verifier.verify(problem(gold), response)


@pytest.mark.parametrize(
    ("gold", "response"),
    [
        ("42", ""),
        ("42", "The 42 occurs here. The answer is 41."),
        ("42", r"\boxed{42} or rather \boxed{43}"),
        ("2", r"\boxed{1, 2, 3}"),
        ("2", r"\boxed{\{1, 2, 3\}}"),
        ("2", r"\boxed{2 \text{ or } 3}"),
        ("2", r"\boxed{1 2 3}"),
        ("2", r"\boxed{x}"),
        ("2", r"\boxed{x = x}"),
        ("2", r"\boxed{}"),
        ("2", r"\boxed{((((((}"),
        ("7", "1 2 3 4 5 6 7"),
        ("1", r"\boxed{" + "1" * 2000 + "}"),
    ],
)
def test_math_rejects(math_verifier, gold, response):
    assert not math_verifier.verify(problem(gold), response)


def test_math_without_a_gold_answer_is_wrong(math_verifier):
    assert not math_verifier.verify(problem(None), r"\boxed{1}")


def test_math_may_require_a_box():
    verifier = MathVerifier(require_boxed=True)
    assert not verifier.verify(problem("42"), "The answer is 42.")
    assert verifier.verify(problem("42"), r"The answer is \boxed{42}.")


def test_math_works_in_other_threads(math_verifier):
    results: list[bool] = []
    threads = [
        threading.Thread(target=lambda: results.append(math_verifier.verify(problem("1/3"), r"\boxed{\frac{2}{6}}")))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 4


def test_worker_compares_in_process():
    assert math_worker.is_equal(r"\frac{1}{2}", "0.5")
    assert math_worker.is_equal("x+1", "1+x")
    assert not math_worker.is_equal("2", "3")


def test_worker_protocol(monkeypatch):
    answers = ("2.0", "3", "deep", "late")
    requests = [{"gold": "2", "answer": answer, "seconds": 5.0} for answer in answers]
    replies = io.StringIO()
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(json.dumps(r) + "\n" for r in requests)))
    monkeypatch.setattr(sys, "stdout", replies)
    monkeypatch.setattr(math_worker, "_limit_memory", lambda: None)
    real, errors = math_worker.is_equal, {"deep": RecursionError, "late": math_worker.OutOfTimeError}

    def is_equal(gold, answer):
        if answer in errors:
            raise errors[answer]
        return real(gold, answer)

    monkeypatch.setattr(math_worker, "is_equal", is_equal)
    try:
        math_worker.serve()
    finally:
        logging.disable(logging.NOTSET)
    assert replies.getvalue() == "ready\ntrue\nfalse\nfalse\nnull\n"


@pytest.mark.skipif(sys.platform == "win32", reason="no address space limit there")
def test_worker_limits_its_memory():
    code = (
        "import resource; from exprl.verifiers import math_worker as w; w._limit_memory(); "
        "print(resource.getrlimit(resource.RLIMIT_AS)[0] <= w.MEMORY_BYTES)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "True\n"


def test_math_options_have_ranges():
    with pytest.raises(ConfigError, match="timeout"):
        validate(MathVerifier.Config, {"timeout": 0})
    with pytest.raises(ConfigError, match="workers"):
        validate(MathVerifier.Config, {"workers": 0})


# ------------------------------------------------------------------ exact


@pytest.mark.parametrize(
    ("response", "right"),
    [
        ("a=1\nb=2\nAnswer: 2", True),
        ("The answer is **2**.", True),
        ("Answer: 1\nAnswer: 2", True),
        ("Answer: 2\nAnswer: 1", False),
        ("2 occurs, but no statement follows\n2", False),
        ("Answer: 1, 2, 3", False),
        ("Answer: 12", False),
        ("Answer:", False),
        ("", False),
    ],
)
def test_exact_compares_the_last_statement(response, right):
    assert ExactVerifier().verify(problem("2"), response) is right


def test_exact_options():
    last = ExactVerifier(pattern=None, ignore_case=True)
    assert last.verify(problem("Paris"), "I think of Rome first.\nparis.\n")
    assert not last.verify(problem("Paris"), "paris\nRome")
    assert ExactVerifier(pattern=r"\d+").verify(problem("42"), "7 then 42 apples")
    assert not ExactVerifier(strip=False).verify(problem("2"), "Answer: 2.")
    assert not ExactVerifier().verify(problem(".5"), "Answer: 5"), "only the full stop after an answer is ignored"
    assert not ExactVerifier().verify(problem(None), "Answer: 2")


def test_exact_names_a_bad_pattern():
    with pytest.raises(ConfigError, match=r"^pattern: '\(' is not a regular expression"):
        validate(ExactVerifier.Config, {"pattern": "("})


# ------------------------------------------------------------------ choice


@pytest.mark.parametrize(
    "response",
    [
        r"so \boxed{C}",
        r"\boxed{\text{(C)}}",
        r"The answer is \boxed{\textbf{C}}.",
        "Answer: C",
        "**Answer:** (C) the third one",
        "the correct answer is option C.",
        "The answer is (c).",
        "Answer: C. A decrease in pressure",
        "Answer: C, I think",
        "Answer: A\nOn reflection, answer: C",
        r"\boxed{A} was wrong. The answer is C",
        "Long thought.\n(C)",
        "Long thought.\n**C**.",
        "The answer is clear.\nC",
    ],
)
def test_choice_reads_the_last_stated_letter(response):
    assert ChoiceVerifier().verify(problem("C"), response)
    assert ChoiceVerifier().verify(problem("(c)"), response)


@pytest.mark.parametrize(
    "response",
    [
        "",
        "Answer: A, B, C, D",
        "Answer: C, A, B, D",
        "Answer: C or D",
        "Answer: (C) and (D)",
        "Answer: C / D",
        "Answer: C D",
        r"\boxed{C, D}",
        r"\boxed{C} \boxed{D}",
        "Answer: C\nAnswer: C or D",
        "Option C is discussed, then D.",
        "The answer is a carbon atom",
        "Answer: Carbon",
        "Answer: not C",
        "A\nB\nC\nD",
    ],
)
def test_choice_rejects(response):
    assert not ChoiceVerifier().verify(problem("C"), response)


def test_a_small_letter_is_an_article():
    assert not ChoiceVerifier().verify(problem("A"), "the answer is a triangle")


def test_choice_checks_the_golds_before_a_run():
    ChoiceVerifier().check([problem("B"), problem("(d)")])
    with pytest.raises(
        DataError, match=r"verifier 'choice' needs one letter of ABCDEFGHIJ .*; 1 of 1 .* have another \(first: 'p'"
    ):
        ChoiceVerifier().check([problem("42")])
    with pytest.raises(DataError, match="has no final answer"):
        ChoiceVerifier().check([problem(None)])
    assert not ChoiceVerifier().verify(problem(None), "Answer: A")


def test_choice_letters_are_an_option():
    assert not ChoiceVerifier(letters="AB").verify(problem("C"), "Answer: C")
    with pytest.raises(ConfigError, match=r"^letters: must be capital letters"):
        validate(ChoiceVerifier.Config, {"letters": "a1"})


def test_importing_verifiers_is_light():
    code = (
        "import sys, exprl.verifiers; print(sorted({'torch', 'sympy', 'lightning', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


# ------------------------------------------------------------------ text that is mathematics, and lone variables


@pytest.mark.parametrize(
    ("gold", "response", "right"),
    [
        ("3, 5", r"\boxed{\text{3 and 5}}", True),
        (r"\text{5 and 3}", r"\boxed{3,5}", True),
        ("3, 5, 7", r"\boxed{\text{3, 5, and 7}}", True),
        ("(3, 5)", r"\boxed{\text{(3, 5)}}", True),
        ("x=1, x=2", r"\boxed{\text{x=1 or x=2}}", True),
        ("x^2", r"\boxed{\text{x^2}}", True),
        ("3, 5", r"\boxed{\text{3 and 6}}", False),
        ("5", r"\boxed{\text{3 and 5}}", False),
        ("5", r"\boxed{5\text{ (s)}}", True),
        (r"\text{7 a.m.}", r"\boxed{7}", False),
        ("Alice and Bob", r"\boxed{\text{Bob and Alice}}", True),
        ("x", r"\boxed{\frac{x^2}{x}}", True),
        (r"\frac{x^2}{x}", r"\boxed{x}", True),
        ("n", r"\boxed{\frac{n!}{(n-1)!}}", True),
        ("i", r"\boxed{\frac{-1}{i}}", True),
        ("y", r"\boxed{\frac{x^2}{x}}", False),
        ("x", r"\boxed{\sqrt{x^2}}", False),
        ("x", r"\boxed{-x}", False),
        ("x", r"\boxed{xy}", False),
    ],
)
def test_text_without_words_is_mathematics_and_a_variable_no_word(math_verifier, gold, response, right):
    assert math_verifier.verify(problem(gold), response) is right


@pytest.mark.parametrize(
    ("verifier", "response", "read"),
    [
        (ExactVerifier(), "The answer is 5.", "the answer '5.'"),
        (ExactVerifier(), "I do not know", "no answer"),
        (MathVerifier(), r"so \boxed{\frac12}", r"the answer '\\frac12'"),
        (MathVerifier(require_boxed=True), "5", "no answer"),
        (ChoiceVerifier(), "It is B, or maybe C.", "no answer"),
        (ChoiceVerifier(), "The answer is (c).", "the answer 'C'"),
        (QuantityVerifier(), "The answer is 4.8 kN.", "the answer '4.8 kN'"),
        (ByDomainVerifier(domains={"math": ExactVerifier()}), "The answer is 5.", "the answer '5.'"),
    ],
)
def test_what_was_read_is_told_and_nothing_of_what_is_right(verifier, response, read):
    problem = Problem(question=Question(problem_id="p", text="?"), scaffold=Scaffold(answer=Hidden("B")))
    assert verifier.explain(problem, response) == read
