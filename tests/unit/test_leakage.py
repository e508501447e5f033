import random

import pytest

from exprl.data.leakage import leaked_ngram, longest_shared_ngram, words
from tests.waiting import linear

REFERENCE = "Let n be even. Then n = 2k, so n^2 = 4k^2 is divisible by 4."
QUESTION = "Is the square of an even number n divisible by 4?"


def longest_by_trying(first: list[str], second: list[str]) -> int:
    runs = {tuple(second[i:j]) for i in range(len(second)) for j in range(i, len(second) + 1)}
    spans = [(i, j) for i in range(len(first)) for j in range(i, len(first) + 1)]
    return max((j - i for i, j in spans if tuple(first[i:j]) in runs), default=0)


@pytest.mark.parametrize(
    ("first", "second", "length"),
    [
        ("", "", 0),
        ("a", "", 0),
        ("a b c", "a b c", 3),
        ("a b c", "c b a", 1),
        ("x a b a b y", "a b a b a", 4),
        ("a a a a", "b a a b a a a", 3),
        ("one two", "three four", 0),
    ],
)
def test_worked_by_hand(first, second, length):
    assert longest_shared_ngram(first.split(), second.split()) == length
    assert longest_shared_ngram(second.split(), first.split()) == length


def test_agrees_with_trying_every_run():
    generator = random.Random(0)
    for _ in range(300):
        first, second = ([generator.choice("abc") for _ in range(generator.randrange(16))] for _ in range(2))
        assert longest_shared_ngram(first, second) == longest_by_trying(first, second)


def test_long_texts_take_no_time():
    text = [str(i % 97) for i in range(30_000)]
    with linear():
        assert longest_shared_ngram(text, text) == 30_000


def test_words_ignore_capitals_and_spacing():
    assert words("N^2  =\n4k^2.") == ["n", "^", "2", "=", "4k", "^", "2", "."]


def test_prompt_made_from_the_question_does_not_leak():
    assert leaked_ngram(f"You are a mathematician. {QUESTION} Think step by step.", REFERENCE, QUESTION) is None


def test_reference_in_the_text_is_found_whatever_its_spacing():
    leaked = leaked_ngram(f"{QUESTION}\nHint: THEN  n =\n2k, so proceed.", REFERENCE, QUESTION)
    assert leaked == "then n = 2k , so"


def test_leak_must_be_longer_than_what_the_question_explains():
    # "divisible by 4" is shared with the question: a run of the same length elsewhere is no evidence
    assert longest_shared_ngram(words(QUESTION), words(REFERENCE)) == 3
    assert leaked_ngram("so n ^", REFERENCE, QUESTION) is None
    assert leaked_ngram("so n ^ 2", REFERENCE, QUESTION) == "so n ^ 2"


def test_empty_texts():
    assert leaked_ngram("", REFERENCE, QUESTION) is None
    assert leaked_ngram("anything", "", QUESTION) is None
