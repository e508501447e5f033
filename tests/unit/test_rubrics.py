"""Rubrics as data: their JSON, their checks, what is read of a model's reply, and what a trace's marks are worth."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from exprl.errors import DataError, PathError, RubricError
from exprl.judges.backends.base import Reply
from exprl.judges.marking import Marked, kept
from exprl.judges.prefixes import Parts, PrefixRequest
from exprl.judges.rubric_file import Entry, RubricFile, read_entries, wanted
from exprl.judges.rubric_writing import PATTERN, parse_rubric, written_rubric
from exprl.judges.rubrics import (
    FEWEST,
    HEAVIEST,
    LIGHTEST,
    MOST,
    Milestone,
    Rubric,
    checked,
    digest_of,
    gives_away,
    origins,
    own_rubrics,
    read_rubrics,
    rubric_of_steps,
    to_json,
)
from exprl.types import Hidden, Judgement, JudgeRequest, Problem, Question, Scaffold


def rubric(*weights: float, prefix: str = "part") -> Rubric:
    milestones = [
        Milestone(title=f"{prefix} {name}", what=f"{prefix} {name} is shown", weight=weight)
        for name, weight in zip("abcdefghijklmnop", weights, strict=False)
    ]
    return Rubric(tuple(milestones))


def problem(problem_id: str = "p", **hidden: Any) -> Problem:
    scaffold = Scaffold(**{name: Hidden(value) for name, value in hidden.items()})
    return Problem(question=Question(problem_id=problem_id, text="What is asked?"), scaffold=scaffold)


# ------------------------------------------------------------------ points


def test_shares_by_hand() -> None:
    proof = rubric(1, 4, 2)  # the marks of a proof: 7 in all
    assert proof.weights == (1 / 7, 4 / 7, 2 / 7)
    assert proof.share([1, 1, 0]) == 5 / 7
    assert proof.score([1, 1, 0]) == 1 + 4 * 5 / 7
    assert proof.score([0, 0, 0]) == 1.0
    assert proof.score([1, 1, 1]) == 5.0
    assert proof.share([0.5, 0.25, 0.0]) == pytest.approx((0.5 + 1.0) / 7)
    with pytest.raises(ValueError, match="zip"):
        proof.share([1, 1])


def test_a_share_of_rounded_weights_never_leaves_its_range() -> None:
    for count in range(2, MOST + 1):
        assert rubric(*[0.1] * count).score([1.0] * count) == 5.0
    assert rubric(LIGHTEST, HEAVIEST).share([1.0, 1.0]) == 1.0


@given(
    st.lists(st.tuples(st.floats(LIGHTEST, HEAVIEST), st.floats(0, 1)), min_size=FEWEST, max_size=MOST),
)
def test_the_share_of_weights_that_are_read_is_the_one_of_fractions(milestones: list[tuple[float, float]]) -> None:
    weights, established = zip(*milestones, strict=True)
    made = checked(rubric(*weights), problem())
    points = sum(Fraction(weight) * Fraction(p) for weight, p in milestones)
    assert made.share(established) == pytest.approx(float(points / sum(map(Fraction, weights))), rel=1e-12)
    assert math.fsum(made.weights) == pytest.approx(1.0)


def test_the_best_of_several_rubrics_counts() -> None:
    two = Marked(rubrics=(rubric(1, 1), rubric(3, 1, prefix="way")), marks=((1.0, 0.0), (0.9, 0.0)))
    assert two.judgement() == Judgement(score=1 + 4 * 0.675, rationale="way a: 0.90; way b: 0.00")


# ------------------------------------------------------------------ once established


def asked(parts: Parts, count: int, of: Problem) -> PrefixRequest:
    return PrefixRequest(problem=of, trace=parts.prefix(count))


def test_credit_is_paid_once_along_the_prefixes_of_one_rollout() -> None:
    """Shown, taken back, shown again: scores only rise, so their differences pay each milestone once."""
    own, other, p = Parts(["a", "b", "c"]), Parts(["a", "b", "c"]), problem()
    two = rubric(1, 1)
    requests: list[JudgeRequest] = [asked(own, 3, p), asked(own, 1, p), asked(other, 3, p), asked(own, 2, p)]
    requests.append(JudgeRequest(problem=p, trace="abc"))
    marks = [(0.5, 0.5), (0.75, 0.0), (0.25, 0.0), (0.25, 0.25), (0.0, 0.0)]
    raised = kept(requests, [Marked(rubrics=(two,), marks=(m,)) for m in marks])
    found = [one.marks[0] for one in raised if isinstance(one, Marked)]
    assert found == [(0.75, 0.5), (0.75, 0.0), (0.25, 0.0), (0.75, 0.25), (0.0, 0.0)]


def test_a_failed_prefix_stays_failed_and_hides_nothing() -> None:
    parts, p = Parts(["a", "b", "c"]), problem()
    failed = Judgement(score=None, status="timeout")
    marked = [
        Marked(rubrics=(rubric(1, 1),), marks=((1.0, 0.0),)),
        failed,
        Marked(rubrics=(rubric(1, 1),), marks=((0.0, 1.0),)),
    ]
    raised = kept([asked(parts, n, p) for n in (1, 2, 3)], marked)
    assert raised[1] is failed
    assert isinstance(raised[2], Marked)
    assert raised[2].marks == ((1.0, 1.0),)


def test_prefixes_about_two_problems_stand_apart() -> None:
    parts = Parts(["a", "b"])
    requests = [asked(parts, 1, problem("p")), asked(parts, 2, problem("q"))]
    marked = [Marked(rubrics=(rubric(1, 1),), marks=((m, m),)) for m in (1.0, 0.0)]
    assert kept(requests, marked) == marked


# ------------------------------------------------------------------ JSON


def test_json_there_and_back_is_one_text() -> None:
    made = Rubric((Milestone(title="Größe", what="x ≥ 0", weight=0.5), Milestone(title="b", what="c", weight=2.0)))
    text = to_json(made)
    assert "Größe" in text
    assert read_rubrics(text) == (made,)
    assert to_json(read_rubrics(text)[0]) == text
    assert read_rubrics(json.dumps(json.loads(text)["milestones"])) == (made,)
    assert read_rubrics(f"[{text}, {text}]") == (made, made)
    bare = '[{"title": "a", "what": "b", "weight": null}, {"title": "c", "what": "d"}]'  # null: as Parquet has it
    assert read_rubrics(bare)[0].weights == (0.5, 0.5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("the proof", "is JSON"),
        ('"text"', "a list, but got a str"),
        ("{}", "no 'milestones'"),
        ('{"milestones": {}}', "a list, but got a dict"),
        ('{"milestones": [], "points": 1}', "unknown key 'points'"),
        ("[1]", "a list, but got a list|milestone 1 is an object"),
        ('[{"title": "a"}]', "milestone 1 has no 'what'"),
        ('[{"title": "a", "what": "b"}, {"title": 1, "what": "b"}]', "milestone 2: its title is text, but got a int"),
        ('[{"title": "a", "what": "\\ud800"}]', "milestone 1: its what has half of a surrogate pair at character 0"),
        ('[{"title": "a", "what": "b", "wight": 2}]', "unknown key 'wight'; it has title, what, weight"),
        ('[{"title": "a", "what": "b", "weight": "2"}]', "weight is a number from 1e-06 to 1e\\+06, but got a str"),
        ('[{"title": "a", "what": "b", "weight": true}]', "but got a bool"),
        ('[{"title": "a", "what": "b", "weight": -1.5}]', "but got -1.5"),
        ('[{"title": "a", "what": "b", "weight": NaN}]', "but got nan"),
        (f'[{{"title": "a", "what": "b", "weight": {10**400}}}]', "but got a whole number of 401 digits"),
        ('[{"title": "a", "what": "b", "weight": 0}]', "but got 0$"),
        ('[{"title": "a", "what": "b", "weight": -1}]', "but got -1$"),
        ('[{"title": "a", "what": "b", "weight": 1e308}]', "but got 1e\\+308"),
        ('[{"title": "a", "what": "b", "weight": 5e-324}]', "but got 4.94066e-324"),
        ("[" * 100_000, "RecursionError"),
    ],
)
def test_what_is_no_rubric(text: str, message: str) -> None:
    with pytest.raises(RubricError, match=message):
        read_rubrics(text)


SECRET = "the secret criterion"


@pytest.mark.parametrize(
    ("milestones", "message"),
    [
        ([("a", 1)], "1 milestone, but a rubric has 2 to 12"),
        ([(f"title {n}", 1) for n in range(13)], "13 milestones, but"),
        ([("a", 1), (" ", 1)], "milestone 2: its title is empty"),
        ([("a", 1), ("b" * 81, 1)], "one line of at most 80 characters, but got 81"),
        ([("a", 1), ("b\nc", 1)], "one line"),
        ([("Base case", 1), ("base  CASE", 1)], "milestone 2: its title is already that of milestone 1"),
        ([("a", 1), ("b", math.inf)], "milestone 2: its weight is a number from .* but got inf"),
        ([("a", 1), ("b", 10**400)], "but got a whole number of 401 digits"),
        ([("a", 1), ("b", 10**5000)], "but got a whole number of 5001 digits"),
        ([("a", 1), ("b", 0)], "but got 0"),
        ([("a", 1), ("Then x = 42", 1)], "milestone 2: its title holds the final answer"),
    ],
)
def test_bad_rubrics_are_told_by_the_number_of_the_milestone(milestones: list[Any], message: str) -> None:
    made = Rubric(tuple(Milestone(title=title, what=SECRET, weight=weight) for title, weight in milestones))
    with pytest.raises(RubricError, match=message) as error:
        checked(made, problem(answer="42"))
    assert SECRET not in str(error.value)
    assert "x = 42" not in str(error.value)


def test_an_empty_criterion() -> None:
    with pytest.raises(RubricError, match="milestone 1: its what is empty"):
        checked(Rubric((Milestone(title="a", what=" "), Milestone(title="b", what="c"))), problem())


@pytest.mark.parametrize(
    ("title", "answer", "away"),
    [
        ("Half of them: 1/2", "1/2", True),
        ("Half of them: ½", r"\frac{1}{2}", False),  # words and signs are compared, no values
        ("The value 12", "1", False),
        ("Finds 1,234", "#### 1,234", True),
        ("The final answer", "She has 7.\n#### 7", False),
        ("Option C holds", "C", True),
        ("Vitamin C", "C", False),
        ("Prove it", "proof", False),  # a placeholder is no answer
    ],
)
def test_titles_that_give_the_answer_away(title: str, answer: str, away: bool) -> None:
    assert gives_away(title, answer) is away


# ------------------------------------------------------------------ what a problem has


def test_what_rubrics_are_made_of() -> None:
    written = to_json(rubric(1, 1))
    assert origins(problem(reference="r", variants=("v", "w"), steps=("s", "t")).scaffold) == ("r", "v", "w")
    assert origins(problem(steps=("s", "t")).scaffold) == ("s\nt",)
    assert origins(problem(reference="r", rubric=f"[{written}, {written}]").scaffold) == (written, written)
    assert origins(problem(answer="5").scaffold) == ()


def test_own_rubrics_are_the_columns_or_the_steps() -> None:
    steps = problem(steps=("s", "t"), reference="r")
    assert own_rubrics(steps) == (rubric_of_steps(("s", "t")),)
    assert [m.title for m in own_rubrics(steps)[0].milestones] == ["first step", "second step"]
    assert own_rubrics(problem(steps=("s", "t"), answer="1"))
    assert own_rubrics(problem(steps=("s", "t"), rubric=to_json(rubric(3, 4)))) == (rubric(3, 4),)
    with pytest.raises(RubricError, match="neither a column `rubric` nor `steps`"):
        own_rubrics(problem(reference="r"))
    with pytest.raises(RubricError, match="13 milestones"):
        own_rubrics(problem(steps=tuple("abcdefghijklm")))


# ------------------------------------------------------------------ a model's reply


def test_a_reply_by_hand() -> None:
    reply = "<think>Two?</think>\n1. 2 | The set-up | x is the width.\n\n- 3 points | The bound | |x| < 4, so x | 12.\n"
    assert parse_rubric(reply).milestones == (
        Milestone(title="The set-up", what="x is the width.", weight=2.0),
        Milestone(title="The bound", what="|x| < 4, so x | 12.", weight=3.0),
    )


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ("", "0 milestones"),
        ("2 | a | b", "1 milestone,"),
        (
            "Here it is:\n2 | a | b",
            "line 1 of the reply is not of the form 'points | title | what must be established'",
        ),
        ("2 | a | b\n3 | c", "line 2"),
        ("2 | a | b\n0 | c | d", "line 2 .* with 1 to 100 points"),
        ("2 | a | b\n101 | c | d", "line 2"),
        ("2 | a | b\ntwo | c | d", "line 2"),
        ("<think>2 | a | b\n3 | c | d", "within its thinking"),
        ("\n".join(f"1 | title {n} | {n}" for n in range(13)), "13 milestones"),
    ],
)
def test_anything_else_is_a_failure_and_no_rubric(reply: str, message: str) -> None:
    with pytest.raises(RubricError, match=message):
        parse_rubric(reply)


def test_failed_and_cut_off_replies() -> None:
    with pytest.raises(RubricError, match="cut off before its end, at the judge's max_new_tokens"):
        written_rubric(Reply(text="2 | a | b\n3 | c | d"))
    with pytest.raises(RubricError, match="timeout: no answer in 60 s"):
        written_rubric(Reply(status="timeout", text="no answer in 60 s"))
    assert len(written_rubric(Reply(text="2 | a | b\n3 | c | d", finished=True)).milestones) == 2


def test_whatever_the_constraint_allows_is_read() -> None:
    import re

    longest = "".join(f"9 | {'t' * 79}{chr(97 + n)} | {'|' * 400}\n" for n in range(12))
    for reply in ("1 | a | b\n2 | c | |x| | y\n", longest):
        assert re.fullmatch(PATTERN, reply)
        checked(parse_rubric(reply), problem(answer="5"))
    assert not re.fullmatch(PATTERN, "1 | a | b\n")
    assert not re.fullmatch(PATTERN, longest + "1 | z | b\n")


# ------------------------------------------------------------------ the file


def lines(tmp_path: Path, *entries: Any) -> Path:
    path = tmp_path / "rubrics.jsonl"
    path.write_text("".join(e.line() if isinstance(e, Entry) else f"{json.dumps(e)}\n" for e in entries))
    return path


def entry(problem_id: str, origin: str, made: Rubric | None = None, failed: str = "") -> Entry:
    return Entry(id=problem_id, reference_digest=digest_of(origin), rubric=made, failed=failed)


def test_a_line_is_what_people_edit_and_reads_back() -> None:
    made = entry("p", "r", rubric(2, 0.5))
    assert json.loads(made.line()) == {
        "id": "p",
        "milestones": [
            {"title": "part a", "what": "part a is shown", "weight": 2},
            {"title": "part b", "what": "part b is shown", "weight": 0.5},
        ],
        "reference_digest": digest_of("r"),
    }


def test_entries_read_back(tmp_path: Path) -> None:
    entries = [entry("p", "r", rubric(2, 1)), entry("p", "v", failed="cut off"), entry("q", "r", rubric(1, 1))]
    assert read_entries(lines(tmp_path, *entries)) == entries
    filled = {**json.loads(entries[0].line()), "failed": "left behind by whoever filled it in"}
    assert read_entries(lines(tmp_path, filled)) == entries[:1]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"milestones": []}, "line 2: 'id' must be text, but is missing"),
        ({"id": "q", "milestones": []}, "'reference_digest' must be text, but is missing"),
        ({"id": 3, "reference_digest": "x"}, "'id' must be text, but is something else"),
        ({"id": "q", "reference_digest": "x"}, "no 'milestones', but nothing beside the id"),
        ({"id": "q", "reference_digest": "x", "milestone": []}, "no 'milestones', but 'milestone'"),
        ({"id": "q", "reference_digest": "x", "milestones": 3}, "milestones are a list, but got a int"),
        ({"id": "p", "reference_digest": digest_of("r"), "failed": ""}, "already line 1"),
    ],
)
def test_bad_lines_are_told_by_number(line: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        read_entries(lines(tmp_path, entry("p", "r", rubric(1, 1)), line))


def test_a_file_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "rubrics.jsonl"
    path.write_text('{"id": "p"')
    with pytest.raises(PathError, match="line 1, is damaged"):
        read_entries(path)


def test_rubrics_are_found_by_the_reference_they_were_made_of() -> None:
    first, second = rubric(1, 1), rubric(1, 2, prefix="other way")
    held = RubricFile(
        [entry("p", "r", first), entry("p", "v", second), entry("q", "s", failed="no line of the form")], "F"
    )
    assert held.rubrics(problem(reference="r")) == (first,)
    assert held.rubrics(problem(reference="r", variants=("v", "r", "unmade"))) == (first, second)
    # under wrong_reference a problem has the scaffold of another one
    assert held.rubrics(problem("x", reference="v")) == (second,)
    for other, why in [
        (problem("q", reference="s"), r"none could be made \(no line of the form\)"),
        (problem("q", reference="s, edited"), "its rubric in F was made of another reference"),
        (problem("x", reference="t"), "F has none"),
    ]:
        with pytest.raises(RubricError, match=why):
            held.rubrics(other)


def test_an_edit_changes_the_digests_and_shows_nothing() -> None:
    before = RubricFile([entry("p", "r", rubric(1, 1)), entry("q", "s", rubric(1, 1))], "F").digests()
    after = RubricFile([entry("p", "r", rubric(1, 2)), entry("q", "s", rubric(1, 1))], "F").digests()
    assert [a == b for a, b in zip(before.splitlines(), after.splitlines(), strict=True)] == [False, True]
    assert "part" not in before


def test_what_is_wanted_of_problems() -> None:
    problems = [problem("p", reference="r", variants=("v", "r")), problem("q", steps=("s", "t"))]
    assert [(one.problem.id, one.origin, one.variant) for one in wanted(problems)] == [
        ("p", "r", 0), ("p", "v", 1), ("q", "s\nt", 0),
    ]  # fmt: skip
    with pytest.raises(DataError, match="problem 'z': column rubric: a rubric is JSON"):
        wanted([problem("z", rubric="{")])
