"""Science: the option that a response chooses, by letter or text, and numbers with units within a tolerance."""

from __future__ import annotations

import pytest

from exprl.errors import DataError
from exprl.types import Hidden, Problem, Question, Scaffold
from exprl.verifiers import ChoiceVerifier, ExactVerifier, MathVerifier, QuantityVerifier
from exprl.verifiers.options import options_of
from exprl.verifiers.units import read_unit, same_kind

PLANETS = "Which planet is closest to the Sun?\nA. Venus\nB. Mercury\nC. Mars\nD. the Earth"


def problem(answer: str, question: str = PLANETS) -> Problem:
    return Problem(question=Question(problem_id="p", text=question), scaffold=Scaffold(answer=Hidden(answer)))


# ------------------------------------------------------------------ choice

CHOSEN = [
    "B", "(B)", "b)", "[B]", "**B**", "B.", "B. Mercury", "(B) Mercury", "B) Mercury", "Option B", "option (b)",
    "Answer: B", "The answer is B.", "The answer is (B) Mercury.", "The correct option is B",
    "The correct choice is (B).", r"\boxed{B}", r"\boxed{\text{B}}", r"\boxed{\textbf{(B)}}",
    r"$\boxed{B. \text{ Mercury}}$", r"\boxed{\text{Mercury}}", r"\(\boxed{\mathrm{B}}\)", "The answer is Mercury.",
    "Answer: mercury", "So the answer is **Mercury**.", "It moves fastest.\nMercury",
    "The answer is option B, Mercury.",
    "<think>A? Or Venus?</think>B", "The answer is Mercury, since it is the innermost planet.",
    "**Answer:** B\n", "The correct answer is: Mercury (B)", "Final answer: $B$", "<answer>B</answer>",
    "The best choice is option B because it is the innermost.",
    "The answer is the planet Mercury: Mercury.\n\nAnswer: B",
    'The answer is "B".', "The answer is “B”.", "The answer is 'B'.", "The answer is ‘B’", "The answer is B!",
    "The answer is B! It is the innermost.", "The answer is B rather than A", "The answer is B instead of A.",
    "The answer is Mercury, which is closer than Venus.", "The answer is Mercury rather than Venus.", "Hot.\nIt is B.",
    "Hot.\nOption B is correct.", "Hot.\nTherefore, B is the correct answer.", "So this must be (b).",
    "Thus, B is right!", "Option A is incorrect.\nOption B is correct.",
    "Hot.\n**Hence, option (B) is the best choice.**",
]  # fmt: skip
NOT_CHOSEN = [
    "A", "Venus", "The answer is Venus.", "B or C", "Venus or Mercury", "The answer is Mercury or Venus.", "",
    "A, B, C, D", "The answer is Mars.", "The answer is B. Wait, no, it is A.", "The answer is not B.",
    "Mercury is not the answer.", "The answer is Venus (A), not Mercury.", "All of them.", "Answer: B and C",
    "<think>B</think>", "The answer is Mercurial.", "B. Venus", r"\boxed{\text{Mars}}", "The answer is the Earth.",
    "It is A.", "It is B or A.", "Is it B?", "It is not B.", "Option B is incorrect.", "B is the wrong answer.",
    "B is correct, or A is.", "It might be B.", "The answer is B! × 2", "The answer is Mercury, or rather Venus.",
    "The answer is Mercury, which is not right, Venus is.", "The answer is Mercury, as is Venus, or both.",
    "The answer is Mercury, since it is hot. Venus too.", "The answer is Venus rather than Mercury.",
    "The answer is A rather than B.", "It is B. It is A.", "A is correct.\nB is correct.",
    "Option A is right since it is hot.\nOption B is right.", "The answer is Mercury as well as Venus.",
    "The answer is Mercury, since hot, Venus.", "The answer is B rather large.",
    "The answer is Mercury, which moves; maybe Venus.",
    "The answer is Mercury and Venus.", "Mercury is hot, Venus is hotter.", "I would say Mercury",
]  # fmt: skip


@pytest.mark.parametrize("response", CHOSEN)
def test_an_option_is_chosen_by_its_letter_or_its_text(response: str) -> None:
    assert ChoiceVerifier().verify(problem("B"), response)


@pytest.mark.parametrize("response", NOT_CHOSEN)
def test_another_or_none_or_several(response: str) -> None:
    assert not ChoiceVerifier().verify(problem("B"), response)


@pytest.mark.parametrize(
    "response", ["The Earth", "Answer: earth", r"\boxed{\text{the Earth}}", "The answer is Earth."]
)
def test_an_article_makes_no_difference(response: str) -> None:
    assert ChoiceVerifier().verify(problem("D"), response)


@pytest.mark.parametrize(
    ("question", "options"),
    [
        (PLANETS, {"A": "Venus", "B": "Mercury", "C": "Mars", "D": "the Earth"}),
        ("How far?\n(A) 3.5 m\n(B) 4 m", {"A": "3.5 m", "B": "4 m"}),
        ("How far? (A) 3.5 m (B) 4 m, (C) 5 m", {"A": "3.5 m", "B": "4 m", "C": "5 m"}),
        ("Which?\n\nA) an acid\nB) a base\n\nReply with the letter.", {"A": "an acid", "B": "a base"}),
        ("Which?\n- **A.** one\n- **B.** two", {"A": "one", "B": "two"}),
        ("Which?\nA: x\nB: y", {"A": "x", "B": "y"}),
        ("Vitamin A. is found where?", {}),
        ("Is it so?\nA. yes\nC. no", {}),
        ("What is 2 + 2?", {}),
    ],
)
def test_the_options_stand_in_the_question(question: str, options: dict[str, str]) -> None:
    assert options_of(question) == options


def test_the_answer_may_be_given_as_a_text() -> None:
    verifier = ChoiceVerifier()
    assert verifier.gold(problem("Mercury")) == verifier.gold(problem("B. Mercury")) == "B"
    assert verifier.verify(problem("mercury"), "(b)")
    with pytest.raises(DataError, match=r"needs one letter of ABCDEFGHIJ as the answer, or the text of an option"):
        verifier.check([problem("Pluto")])


def test_a_letter_that_the_question_does_not_list_is_no_answer() -> None:
    unlisted = problem("E")
    assert ChoiceVerifier().unreadable([unlisted]) == ["p"]
    assert not ChoiceVerifier().verify(unlisted, "The answer is E.")
    with pytest.raises(DataError, match="a letter must be among those listed"):
        ChoiceVerifier().check([unlisted])
    assert ChoiceVerifier().gold(problem("E", "Which of the five?")) == "E"


NO = [
    "The answer is no.",
    "The answer is No, because x.",
    "Answer: No.",
    "Answer: no, it is not.",
    "Answer: **No**, as x.",
]


@pytest.mark.parametrize("response", NO)
def test_no_is_an_answer(response: str) -> None:
    question = "Is it so?\nA. Yes\nB. No"
    assert ChoiceVerifier().verify(problem("No", question), response)
    assert ChoiceVerifier().verify(problem("B", question), response)
    assert MathVerifier().verify(problem("No"), response)
    assert not MathVerifier().verify(problem("Yes"), response)


def test_no_is_an_exact_answer_and_takes_an_earlier_one_back() -> None:
    assert ExactVerifier().verify(problem("No"), "Answer: No.")
    for taken_back in ("The answer is 5. No, 6", "The answer is no. No, wait, yes", r"\boxed{5}. No, 6"):
        for gold in ("5", "No"):
            assert not MathVerifier().verify(problem(gold), taken_back)


def test_options_that_say_the_same_are_told_apart_by_letter_alone() -> None:
    twice = "Which?\nA. one\nB. one\nC. two"
    assert not ChoiceVerifier().verify(problem("A", twice), "The answer is one.")
    assert ChoiceVerifier().verify(problem("A", twice), "The answer is A. one")
    assert ChoiceVerifier().verify(problem("C", twice), "The answer is two.")


# ------------------------------------------------------------------ quantities

RIGHT = [
    ("4800 N", "4800 N"), ("4800 N", "4.8 kN"), ("4800 N", "4.8e3 N"), ("4800 N", r"\boxed{4800\,\text{N}}"),
    ("4800 N", "The answer is 4,800 N."), ("4800 N", "4800 newtons"), ("4800 N", "4800 kg m/s^2"),
    ("4800 N", "4800 kg·m·s⁻²"), ("4800 N", r"$4.8 \times 10^3\ \mathrm{N}$"), ("4800 N", "Answer: F = 4800 N"),
    ("4800 N", "The answer is about 4810 N."), ("4800 N", "The answer is 4800 N, against the motion."),
    ("62.7 kJ", "62700 J"), ("62.7 kJ", "62.7 kilojoules"), ("62.7 kJ", "The answer is 62.7 kJ of heat."),
    ("12.5 L", "12.47 L"), ("12.5 L", "12.5 dm^3"), ("12.5 L", "0.0125 m^3"), ("12.5 L", "12500 mL"),
    ("12.5 L", "12.5 litres"), ("12.5 L", "12.5 liters"), ("12.5 L", "0.0125 cubic metres"),
    ("10 mg", "0.010 g"), ("10 mg", "10 milligrams"), ("10 mg", "1.0e-5 kg"),
    ("3.98 * 10^-19 J", "3.98e-19 J"), ("3.98 * 10^-19 J", r"\boxed{3.978 \times 10^{-19} \text{ J}}"),
    ("3.98 * 10^-19 J", "4.0 × 10⁻¹⁹ J"), ("3.98 * 10^-19 J", "2.484 eV"),
    ("0.4 mol/L", "0.4 M"), ("0.4 mol/L", "0.40 mol L^-1"), ("0.4 mol/L", r"\boxed{0.4\ \frac{\text{mol}}{\text{L}}}"),
    ("0.4 mol/L", "400 mmol/L"), ("0.4 mol/L", "0.4 moles per liter"),
    ("32000", "32000"), ("32000", "32,000"), ("32000", "The answer is 32000 bacteria."), ("32000", "3.2 × 10^4"),
    ("204 m", "0.204 km"), ("204 m", "204 metres"), ("20 m/s", "72 km/h"), ("20 m/s", "72 km per hour"),
    ("50 %", "0.5"), ("25 °C", "25 degrees Celsius"), ("90 °", "90^\\circ"), ("6 ohm", "6 Ω"), ("6 ohm", "0.006 kΩ"),
    ("4.18 J/(g K)", "4180 J/(kg K)"), ("1/2 h", "30 min"), ("5 apples", "5 apples"), ("0 V", "0 V"),
    ("Force times distance gives it.\nThe answer is 204 m.", "204 m"),
    ("4 Å", "0.4 nm"), ("4 Å", "4 Å"), ("4 Å", "4 angstroms"),
    ("6e23", "6 × 10^23"), ("6.02e23", "6.022 × 10^23."), ("6e23", "6*10**23"), ("6e23", "6 x 10^23"),
    ("1e-9 m", r"\boxed{10^{-9}\ \text{m}}"), ("1e9 m", r"\boxed{10^{9}\ \text{m}}"), ("1e9 m", "10^9 m"),
    ("3.0 x 10^8 m/s", "3e8 m/s"), ("6.02 × 10^23 mol^-1", r"$6.02 \times 10^{23}\ \mathrm{mol^{-1}}$"),
    ("9.8 m/s^2", "9.8 meters per second squared"), ("2 kWh", "2 kilowatt-hours"), ("100 J", "100 Nm"),
    ("100 J", "100 newton-meters"), ("2 µF", r"\boxed{2\,\mu\mathrm{F}}"), ("2 µF", r"\boxed{2\ \mu F}"),
    ("8 J/(mol K)", r"\boxed{8\ \mathrm{J\,mol^{-1}\,K^{-1}}}"), ("1/2 m", r"\boxed{\frac12 \text{ m}}"),
    (r"2\frac{1}{2} m", "2.5 m"), ("2 1/2 m", "2.5 m"), ("-2 1/2 m", "-2.5 m"), ("2 Hz", "2 s^-1"),
    ("2 rad/s", "2 1/s"), ("5 kJ", "ΔH° = 5 kJ"), ("5 N", r"\boxed{F_1 = 5\,\text{N}}"),
    ("5 N", r"\boxed{F(t) \approx 5 N}"),
    ("9.8 m/s^2", r"\boxed{9.8\ \frac{\text{m}}{\text{s}^{2}}}"), ("5 apples", r"\boxed{5\text{ apples}}"),
]  # fmt: skip
WRONG = [
    ("4800 N", "4800 J"), ("4800 N", "4800"), ("4800 N", "48 kN"), ("4800 N", "4800 m"), ("4800 N", "5000 N"),
    ("62.7 kJ", "62.7 J"), ("62.7 kJ", "The answer is 62.7."), ("12.5 L", "12.5 m^3"), ("10 mg", "10 g"),
    ("3.98 * 10^-19 J", "3.98 J"), ("0.4 mol/L", "0.4 mol"), ("204 m", "-204 m"), ("204 m", "204 m or 205 m"),
    ("204 m", "about 204"), ("204 m", ""), ("204 m", "204 m/s"), ("204 m", "no idea"), ("204 m", "The cliff is far."),
    ("204 m", "<think>204 m</think>"), ("32000", "31000"), ("25 °C", "25 K"), ("25 °C", "25 °F"),
    ("5 apples", "5 pears"),
    ("2 Hz", "2 rad/s"), ("2 Bq", "2 Hz"), ("50 %", "0.5 rad"), ("0.5 rad", "0.5"), ("2 Bq", "2 rad/s"),
    ("5 kg", "The answer is 3 = 5 kg"), ("5 kg", "7 m = 5 kg"), ("5 kg", r"\boxed{3 kg \approx 5 kg}"),
    ("5 kg", r"\boxed{x^2 = 5 kg}"), ("5 kg", r"\boxed{\frac{1}{m} = 5 kg}"), ("60 W", "60 W of 30"),
    ("60 W", "60 W of a million"), ("2", "2 1"), ("6e23", "6 × 10^2"), ("6e2", "6 × 10^23"),
    ("2 m", r"\boxed{2\frac{1}{2} m}"), ("4 m", "4 m squared"),
    ("0 V", "0.001 V"), ("20 m/s", "20 km/h"), ("10 mg", "10 Mg"), ("204 m", "The answer is 204 m. Wait, no, 300 m."),
    ("204 m", "The distance is not 204 m"), ("204 m", "204 or 408 m"), ("90 °", "90"), ("204 m", "2 0 4 m"),
]  # fmt: skip


@pytest.mark.parametrize(("gold", "response"), RIGHT)
def test_the_same_quantity_in_whatever_unit(gold: str, response: str) -> None:
    assert QuantityVerifier().verify(problem(gold), response)


@pytest.mark.parametrize(("gold", "response"), WRONG)
def test_another_quantity_or_none(gold: str, response: str) -> None:
    assert not QuantityVerifier().verify(problem(gold), response)


@pytest.mark.parametrize(
    ("options", "gold", "response", "right"),
    [
        ({"units": "ignored"}, "204 m", "204", True),
        ({"units": "ignored"}, "204 m", "204 km", True),
        ({"units": "ignored"}, "204 m", "0.204 km", False),
        ({"units": "ignored"}, "204 m", "204 or 205", False),
        ({"units": "optional"}, "204 m", "204", True),
        ({"units": "optional"}, "204 m", "0.204 km", True),
        ({"units": "optional"}, "204 m", "204 km", False),
        ({"relative_tolerance": 0.0}, "62.7 kJ", "62700 J", True),
        ({"relative_tolerance": 0.0}, "12.5 L", "12.47 L", False),
        ({"relative_tolerance": 0.0}, "0.3 m", "0.1 m + 0.2 m", False),
        ({"relative_tolerance": 0.05}, "4800 N", "5000 N", True),
        ({"relative_tolerance": 0.05}, "-4800 N", "-5000 N", True),
        ({"relative_tolerance": 0.05}, "4800 N", "5041 N", False),
    ],
)
def test_tolerance_and_units_are_options(options: dict[str, object], gold: str, response: str, right: bool) -> None:
    assert QuantityVerifier(**options).verify(problem(gold), response) is right


FACTORS = [
    r"\pi",
    r"\pi rad",
    "x",
    r"\sqrt{5}",
    "^5",
    "^2 m",
    "!",
    " × 5",
    "-50",
    " million",
    " dozen",
    " squared",
    "xy",
    " x",
]


@pytest.mark.parametrize("units", ["required", "optional", "ignored"])
@pytest.mark.parametrize("rest", FACTORS)
def test_a_number_with_a_factor_is_not_cut_to_the_number(units: str, rest: str) -> None:
    verifier = QuantityVerifier(units=units)
    assert verifier.gold(problem(f"12{rest}")) is None
    assert not verifier.verify(problem("12"), rf"The answer is $12{rest}$.")
    assert not verifier.verify(problem("12 m"), rf"\boxed{{12{rest}}}")
    assert not verifier.verify(problem(f"12{rest}"), "The answer is 12")


def test_an_answer_without_a_number_is_refused_before_a_run() -> None:
    with pytest.raises(DataError, match="verifier 'quantity': in 1 of 1 problems"):
        QuantityVerifier().check([problem("far away")])


@pytest.mark.parametrize(
    ("one", "other"),
    [("N", "kg m s^-2"), ("J", "N m"), ("W", "J/s"), ("Pa", "N/m^2"), ("V", "J/C"), ("Ω", "V/A"), ("Hz", "1/s"),
     ("J/kg/K", "J/(kg K)"), ("square metres", "m^2"), ("cubic cm", "mL"), ("kWh", "3.6 MJ")],
)  # fmt: skip
def test_units_that_are_the_same(one: str, other: str) -> None:
    factor = 1
    if other[0].isdigit() and not other.startswith("1/"):
        number, other = other.split(" ", 1)
        factor = float(number)
    first, second = read_unit(one), read_unit(other)
    assert first is not None
    assert second is not None
    assert same_kind(first, second)
    assert float(first.factor) == pytest.approx(float(second.factor) * factor, rel=1e-12)


@pytest.mark.parametrize("text", ["apples", "m//s", "^2", "m^", "(m", "m)", "m^99999999999", "kk", "or m", "m s or"])
def test_what_is_no_unit(text: str) -> None:
    assert read_unit(text) is None
