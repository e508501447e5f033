"""Gold answers as data sets have them: bare, or as solutions that end in the answer."""

import json
import logging
from pathlib import Path

import pytest

from exprl.build import Build
from exprl.errors import DataError
from exprl.experiment import load_experiment
from exprl.types import Hidden, Problem, Question, Scaffold
from exprl.verifiers import ChoiceVerifier, ExactVerifier, MathVerifier, Verifier
from exprl.verifiers.gold import gold_answer, is_prose
from tests.waiting import linear

GSM8K = (
    "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\n"
    "Natalia sold 48+10 = <<48+10=58>>58 clips altogether in April and May.\n#### 58"
)
PROSE = "Natalia sold half as many clips in May.\nSo she sold quite a lot of them in these two months."
MATRIX = "\\begin{pmatrix}\n1 & 2 \\\\\n3 & 4\n\\end{pmatrix}"


def problem(answer: str | None, name: str = "p") -> Problem:
    hidden = Hidden(answer) if answer is not None else None
    return Problem(question=Question(problem_id=name, text="q"), scaffold=Scaffold(answer=hidden))


@pytest.fixture(scope="module")
def math() -> MathVerifier:
    return MathVerifier()


@pytest.mark.parametrize(
    ("gold", "response", "right"),
    [
        (GSM8K, "58", True),
        (GSM8K, r"It is \boxed{58}.", True),
        (GSM8K, "#### 58", True),
        (GSM8K, "The answer is 24.", False),
        (GSM8K.replace("\n", " "), "58", True),
        ("She earned a lot of money there.\n#### 1,200", "1200", True),
        ("Half of it is left over then.\n#### \\frac{1}{2}", "0.5", True),
        ("We add the two numbers together.\nThe answer is 58, as required.", "58", True),
        ("We add the two numbers together.\nTherefore $x = 58$", "58", True),
        ("We add the two numbers together.\n\n58 clips", "58", True),
        ("We add both. The first of them is 24 and the other is 34. So the final answer is 58.", "58", True),
        ("We add them, which gives $24+34=58$.\nTherefore \\boxed{58} clips were sold by her.", "58", True),
        ("<think>Is the answer 7?</think>We add both of the numbers.\nThe answer is 58.", "58", True),
        (MATRIX, r"\boxed{\begin{pmatrix}1&2\\3&4\end{pmatrix}}", True),
        ("x = 1\nor\nx = 2", "58", False),
        ("Paris", "The answer is Paris", True),
        (PROSE, "58", False),
    ],
)
def test_math_reads_the_answer_that_a_solution_ends_in(
    math: MathVerifier, gold: str, response: str, right: bool
) -> None:
    assert math.verify(problem(gold), response) is right


@pytest.mark.parametrize(
    ("gold", "response"),
    [
        ("Therefore x = 5.", "5"),
        ("<answer>5</answer>", "5"),
        ("We had 5 apples and ate 2 of them. So 3 remain.", "3"),
        ("#### 5\nNote: remember units", "5"),
        ("We add them.\n#### 5\nNote: remember units", "5"),
        ("['5']", "5"),
        ('["1,000"]', "1000"),
        (r'["\\text{Alice}"]', "Alice"),
        (r'["\text{Alice}"]', "Alice"),
        (r'["10\\%"]', r"10\%"),
        ('["5", "6"]', "6, 5"),
        ("C. Paris", "C"),
        ("C. Paris", "Paris"),
        ("C. Paris", "C. Paris"),
        ("(C) 5", "5"),
        ("f(2)=5", "5"),
        ("5=x", "5"),
        ("2+3=5", "5"),
        ("five", "5"),
        ("twenty-one", "21"),
        ("one half", "0.5"),
    ],
)
def test_math_reads_what_answer_columns_hold(math: MathVerifier, gold: str, response: str) -> None:
    assert math.verify(problem(gold), rf"\boxed{{{response}}}")
    assert not math.verify(problem(gold), r"\boxed{7}")


def test_an_equation_in_an_unknown_gives_no_value(math: MathVerifier) -> None:
    assert not math.verify(problem("0=x-5"), r"\boxed{x-5}")
    assert not math.verify(problem("2x+3=7"), r"\boxed{7}")


@pytest.mark.parametrize(
    ("gold", "response", "right"),
    [
        ("f(2)=5", "f(2)=5", True),
        ("f(2)=5", "f(2)=5.0", True),
        ("f(2)=5", "f(3)=5", False),
        ("P(0)=1", r"P(\frac12)=1", False),
        ("f(x)=x+1", "f(x)=1+x", True),
    ],
)
def test_a_value_is_that_of_its_place(math: MathVerifier, gold: str, response: str, right: bool) -> None:
    assert math.verify(problem(gold), rf"\boxed{{{response}}}") is right


@pytest.mark.parametrize(
    "gold",
    [
        r"$\boxed{5}$ or $\boxed{6}$",
        "The answer is not 5, it is 6.",
        "The answer is not 5, it is 6. We know that because we did add them up well.",
        "The answer isn't 5 but 6.",
        "['None']",
    ],
)
def test_a_gold_that_leaves_its_answer_open_cannot_be_read(math: MathVerifier, gold: str) -> None:
    assert math.unreadable([problem(gold)]) == ["p"]


@pytest.mark.parametrize(
    ("gold", "letter"),
    [
        ("It is the third of the four.\n#### C", "C"),
        ("It is the third of the four.\nThe answer is (C), since it is the third.", "C"),
        (r"It is the third of the four, so \boxed{C}", "C"),
        ("It is the third of the four.\nC", "C"),
        ("It is the third of the four.\nThe answer is A or C.", None),
        (PROSE, None),
    ],
)
def test_choice_reads_the_letter_that_a_solution_ends_in(gold: str, letter: str | None) -> None:
    assert ChoiceVerifier().gold(problem(gold)) == letter


def test_exact_reads_solutions_but_with_a_pattern_of_your_own() -> None:
    assert ExactVerifier().verify(problem(GSM8K), "The answer is 58.")
    assert ExactVerifier().verify(problem(r"\boxed{58}"), r"So \boxed{58}")
    assert ExactVerifier(pattern=None).verify(problem(GSM8K), "58")
    assert ExactVerifier(pattern=None).verify(problem(r"\boxed{58}"), r"\boxed{58}")
    assert ExactVerifier().verify(problem("['a']"), "The answer is ['a']")
    own = ExactVerifier(pattern=r"(?s)<code>(.*)</code>")
    assert own.verify(problem(PROSE), f"<code>{PROSE}</code>")
    assert own.unreadable([problem(PROSE)]) == []


@pytest.mark.parametrize(
    "answer", ["58", "x = 1\nx = 2", MATRIX, "Alice\nBob", "$x > 0$, or else $x < -1$. $0$", "3 m"]
)
def test_what_is_an_answer_is_left_as_it_is(answer: str) -> None:
    assert not is_prose(answer)
    found = gold_answer(answer)
    assert found is not None
    assert found.text == answer


@pytest.mark.parametrize("verifier", [MathVerifier(), ExactVerifier(), ChoiceVerifier()])
def test_most_answers_that_cannot_be_read_are_refused(verifier: Verifier) -> None:
    problems = [problem("A", "a"), problem(PROSE, "b"), problem(PROSE, "c")]
    with pytest.raises(DataError, match=rf"verifier '{verifier.registered_name}'.* 2 of 3 problems .*'b'") as caught:
        verifier.check(problems)
    assert "Natalia" not in str(caught.value)
    assert "verifier.name" in str(caught.value)


def test_nothing_to_compare_cannot_be_read() -> None:
    assert MathVerifier().unreadable([problem("$$", "a"), problem("1" * 1001, "b"), problem("1", "c")]) == ["a", "b"]


@pytest.mark.parametrize(
    "answer",
    [
        *(
            "proof",
            "notfound",
            "not found",
            "N/A",
            "n/a.",
            "null",
            "unknown",
            "nan",
            "NaN",
            "None",
            "TBD",
            "?",
            "-",
            "—",
        ),
        *(
            "...",
            "<unknown>",
            "[None]",
            "#### null",
            "We prove it by induction over n.\n#### N/A",
            r"\boxed{None}",
            "**None**",
        ),
    ],
)
@pytest.mark.parametrize("verifier", [MathVerifier(), ExactVerifier(), ChoiceVerifier()])
def test_a_placeholder_is_no_answer_to_be_rewarded(verifier: Verifier, answer: str) -> None:
    assert verifier.unreadable([problem(answer)]) == ["p"]
    assert not verifier.verify(problem(answer), rf"\boxed{{{answer}}}")
    with pytest.raises(DataError):
        verifier.check([problem(answer)])


@pytest.mark.parametrize(
    "answer", [r"\text{none}", "-5", "no solution", "none of these", "Nana", "proof by contradiction", "e"]
)
def test_what_only_resembles_a_placeholder_is_an_answer(math: MathVerifier, answer: str) -> None:
    assert math.verify(problem(answer), rf"\boxed{{{answer}}}")


def test_a_pattern_of_your_own_compares_placeholders_as_they_stand() -> None:
    own = ExactVerifier(pattern=r"prints: (.*)")
    assert own.verify(problem("None"), "prints: None")
    assert ExactVerifier(pattern=None).unreadable([problem("None")]) == ["p"]


@pytest.mark.parametrize("text", ["\\[", "\\begin{a}", "$", "#", "a b c. ", "answer is ", "\\text{", "{", "####"])
def test_no_answer_takes_long_to_read(text: str) -> None:
    with linear():
        gold_answer(text * (100_000 // len(text)) + "\nx")


def build(tmp_path: Path, *answers: str) -> Build:
    rows = [{"question": f"What is {n}?", "answer": answer} for n, answer in enumerate(answers)]
    (tmp_path / "train.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    columns = "{name: jsonl, path: " + str(tmp_path / "train.jsonl") + ", columns: {reference: null}}"
    return Build(load_experiment(None, ["model.path=unused", f"data.train={columns}", f"evaluation.source={columns}"]))


def test_loading_says_how_many_answers_cannot_be_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert len(build(tmp_path, "1", PROSE, "2", GSM8K).evaluation_problems) == 4
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "evaluation.source: verifier 'math': in 1 of 4 problems (first: 'train-2')" in caplog.text
    assert "Natalia" not in caplog.text


def test_an_evaluation_that_could_read_no_answer_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(DataError, match="in 2 of 3 problems"):
        build(tmp_path, "1", PROSE, PROSE).evaluation_problems  # noqa: B018
    assert caplog.text == ""
