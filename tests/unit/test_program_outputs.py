"""When what a program printed or returned is what was wanted."""

from __future__ import annotations

import numpy
import pytest

from exprl.execution.compare import same_output, same_value
from exprl.execution.inside import values
from exprl.execution.inside.serve import of_numpy


@pytest.mark.parametrize(
    ("printed", "expected", "same"),
    [
        ("3", "3\n", True),
        ("a  b \n\n", "a b", True),
        ("a\nb", "a b", False),
        ("0.30000000000000004", "0.3", True),
        ("0.31", "0.3", False),
        ("1.0", "1", False),
        ("10000000000000001", "10000000000000000", False),
        ("1e-3", "0.001", True),
        ("nan", "0.5", False),
        ("", "", True),
        ("", "0.0", False),
        ("a\u2028b", "a\nb", False),
        ("a\x1cb\x85c\fd\ve", "a\nb\nc\nd\ne", False),
        ("a\r\nb\r\n", "a\nb", True),
        ("a\u00a0b", "a b", True),
        ("1_000.0", "1000.0", False),
        ("\u0661.0", "1.0", False),
        ("+1e3", "1000.0", True),
        ("1000", "1000.0", True),
        ("1000.0", "1e3", True),
        ("infinity", "1e999", False),
        (".5", "0.5", True),
    ],
)
def test_outputs(printed: str, expected: str, same: bool) -> None:
    assert same_output(printed, expected) is same


@pytest.mark.parametrize(
    ("value", "expected", "same"),
    [
        ((1, 2), [1, 2], True),
        ({1: "a"}, {"1": "a"}, True),
        (10**400, 1.0, False),
        (float("nan"), float("nan"), True),
        (float("nan"), 1.0, False),
        ("1", 1, False),
        ([1], [1, 2], False),
        (None, None, True),
        ({1}, [1], False),
        (1.0, 1, True),
        (True, 1, False),
        (1, True, False),
        (True, True, True),
        (float(2**53), 2**53 + 1, False),
        (975460423000.0, 975460423723, False),
        (1, 1.0000001, True),
        (1 + 0j, 1, False),
        ({1: 3, "1": 2}, {"1": 2}, False),
        ({True: 2, None: 3, 1.5: 4}, {"true": 2, "null": 3, "1.5": 4}, True),
    ],
)
def test_values(value: object, expected: object, same: bool) -> None:
    assert same_value(value, expected) is same


@pytest.mark.parametrize("value", [1, 2.5, "ä", None, True, [1, (2, {3: {4}})], frozenset({1}), b"\x00", 1j])
def test_plain_values_pass_as_they_are(value: object) -> None:
    passed = values.load(values.dump({"value": value}))["value"]
    assert passed == value
    assert type(passed) is type(value)


@pytest.mark.parametrize("line", [b"", b"[]", b"[" * 10**6, b'{"value": {"type": "object", "items": []}}', b"\xff"])
def test_what_is_no_value_is_refused(line: bytes) -> None:
    with pytest.raises((ValueError, RecursionError)):
        values.load(line)


def test_whole_numbers_pass_at_any_length() -> None:
    sent = {"value": [-(10**5000)]}
    assert values.load(values.dump(sent)) == sent
    assert not same_value({10**5000: 1}, {"1": 1})


def test_objects_do_not_pass() -> None:
    with pytest.raises(TypeError, match="no plain value"):
        values.dump({"value": object()})


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (numpy.int64(3), 3),
        (numpy.bool_(True), True),
        (numpy.float32(0.5), 0.5),
        (numpy.arange(4).reshape(2, 2), [[0, 1], [2, 3]]),
        (numpy.array(7), 7),
        ([numpy.int8(1), {numpy.int64(2): (numpy.float16(3),)}], [1, {2: (3.0,)}]),
        (numpy.array([numpy.int64(1), None], dtype=object), [1, None]),
        (numpy.array(["a"]), ["a"]),
    ],
)
def test_what_is_numpys_is_returned_as_plain_values(value: object, plain: object) -> None:
    passed = values.load(values.dump({"value": value}, other=of_numpy))["value"]
    assert passed == plain
    assert repr(passed) == repr(plain)
    with pytest.raises(
        TypeError, match="no plain value"
    ):  # a test program does not call with other values than it says
        values.dump({"value": value})


@pytest.mark.parametrize(
    "value", [object(), numpy.longdouble(1), numpy.datetime64("2020-01-01"), numpy.array([object()])]
)
def test_objects_do_not_pass_as_numpys(value: object) -> None:
    with pytest.raises(TypeError, match="no plain value"):
        values.dump({"value": value}, other=of_numpy)
