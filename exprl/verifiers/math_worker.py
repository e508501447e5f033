"""The process in which math-verify runs: one JSON line in, `{"gold": ..., "answer": ..., "seconds": ...}`, one out.

Started by `WorkerPool` as a script, so that it imports nothing but math-verify. Limits count the CPU time of this
process, so that a busy machine turns no right answer wrong: an alarm ends what Python computes, and the process lives
on; where a C call computes (`10^{10^{10}}`), which no signal handler can interrupt, a second alarm that nobody handles
ends the process, also when nobody waits for it any more. On Windows, which has neither, the pool's own limit does.
Answers are parsed by a grammar and never evaluated as Python.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import signal
import sys
from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache
from typing import Any

MEMORY_BYTES = 4 << 30
GRACE_SECONDS = 0.5
"""From the alarm to the end of the process, of CPU time."""

_DECIMAL = re.compile(r"-?(\d*)\.(\d+)")
_SIGNIFICANT = 6
"""Digits from which a decimal may stand for an exact value that rounds to it: 0.333333 for 1/3, 0.33 not."""
_DIGITS = 40
_CLOSE = Fraction(1, 10**12)
_RELATION = re.compile(r"[<>]|\\(?:le|ge|ne)(?![a-zA-Z])")
_OR = re.compile(r"\\text\{\s*or\s*\}|(?<![a-zA-Z\\])or(?![a-zA-Z])")
_COMPLEX = re.compile(r"(?<![a-zA-Z\\])i(?![a-zA-Z])|\\(?:imath|mathbb\{C\})|\\sqrt\s*\{?\s*-")
_SAMPLES = (Fraction(7391, 10007), Fraction(13007, 7919), Fraction(5, 1709))


class OutOfTimeError(BaseException):
    """Raised by the alarm; no `Exception`, since sympy and math-verify catch those."""


def is_equal(gold: str, answer: str) -> bool:
    """Whether two answers, in the LaTeX of `notation.plain_latex`, are the same value.

    math-verify decides, but for what it leaves to absolute rounding: numbers are exact here, and what it holds to be
    equal must also be so relative to its size.
    """
    from math_verify import verify

    complex_numbers = bool(_COMPLEX.search(gold) or _COMPLEX.search(answer))
    first, second = _read(gold, complex_numbers), _read(answer, complex_numbers)
    if first is None or second is None:
        return False
    # Its own timeouts are signals of whole seconds.
    if verify(first, second, allow_set_relation_comp=True, timeout_seconds=None):
        return not _far_apart(first, second)
    return _rounds_to(answer, first) or _rounds_to(gold, second) or _is_symbol(first, second)


@lru_cache(maxsize=256)  # the golds of a batch come again and again
def _read(latex: str, complex_numbers: bool) -> Any:
    """The sympy object of `latex`; None where the grammar does not take it. "or" between relations is a union."""
    from sympy import Union

    parts = _OR.split(latex)
    if len(parts) > 1 and all(_RELATION.search(part) for part in parts):
        sets = [part.as_set() for part in (_parse(part, complex_numbers) for part in parts) if part is not None]
        return Union(*sets) if len(sets) == len(parts) else None
    return _parse(latex, complex_numbers)


def _parse(latex: str, complex_numbers: bool) -> Any:
    from latex2sympy2_extended import NormalizationConfig, latex2sympy

    # Units are split off before, by rules that keep `5 m` from `5 km`.
    rules = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none")
    last_side = [latex.rpartition("=")[2]] if "=" in latex and "," not in latex else []
    for text in (latex, *last_side):
        with contextlib.suppress(Exception):  # its errors are of no one kind
            expression = _exact(latex2sympy(text, is_real=not complex_numbers, normalization_config=rules))
            return _with_imaginary_unit(expression) if complex_numbers else expression
    return None


def _with_imaginary_unit(expression: Any) -> Any:
    """The grammar reads `i` as a variable."""
    from sympy import I

    return expression.subs({symbol: I for symbol in expression.free_symbols if symbol.name == "i"})


def _exact(expression: Any) -> Any:
    """`expression` with decimals as fractions: math-verify rounds what holds a float to six decimals."""
    from sympy import Float, MatrixBase, Rational

    if isinstance(expression, MatrixBase):
        return expression.applyfunc(_exact)
    if not expression.has(Float):
        return expression
    return expression.xreplace({number: Rational(str(number)) for number in expression.atoms(Float)})


def _far_apart(first: Any, second: Any) -> bool:
    """Whether two expressions differ relative to their size at sample points; False where that cannot be computed.

    Differences below 1e-15 are none to math-verify, whatever they are differences of.
    """
    from sympy import Expr

    if not (isinstance(first, Expr) and isinstance(second, Expr)):
        return False
    symbols = sorted(first.free_symbols | second.free_symbols, key=str)
    point = {symbol: _SAMPLES[place % len(_SAMPLES)] + place for place, symbol in enumerate(symbols)}
    try:
        one, other = (complex(expression.subs(point).evalf(_DIGITS)) for expression in (first, second))
    except (TypeError, ValueError, OverflowError, ArithmeticError):
        return False
    return abs(one - other) > float(_CLOSE) * max(abs(one), abs(other))


def _is_symbol(first: Any, second: Any) -> bool:
    """Whether one is a variable alone, and the other simplifies to it.

    math-verify compares a lone symbol as text, for words; what is left to this process has none.
    """
    from sympy import Expr, Symbol, simplify

    both = (first, second)
    if not all(isinstance(side, Expr) for side in both) or not any(isinstance(side, Symbol) for side in both):
        return False
    return simplify(first - second).is_zero is True


def _rounds_to(decimal: str, exact: Any) -> bool:
    """Whether `decimal` is a decimal of enough digits and `exact` an exact number that rounds to it."""
    from sympy import Expr

    match = _DECIMAL.fullmatch(decimal)
    if match is None or len((match[1] + match[2]).lstrip("0")) < _SIGNIFICANT:
        return False
    if not (isinstance(exact, Expr) and exact.is_number and exact.is_real):
        return False
    return bool(round(Fraction(str(exact.evalf(_DIGITS))), len(match[2])) == Fraction(decimal))


def serve() -> None:
    """Answer requests from standard input until it is closed."""
    import math_verify  # noqa: F401 - the slow imports, before the first request's clock starts

    logging.disable(logging.CRITICAL)
    _limit_memory()
    # What a library prints must not mix with the replies.
    replies, sys.stdout = sys.stdout, sys.stderr
    print("ready", file=replies, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        equal = _answer(request["gold"], request["answer"], request["seconds"])
        print(json.dumps(equal), file=replies, flush=True)


def _answer(gold: str, answer: str, seconds: float) -> bool | None:
    """`is_equal`; None where its time ran out, False where sympy raises whatever it raises."""
    with _alarm(seconds) as rang:
        try:
            equal = is_equal(gold, answer)
        except OutOfTimeError:
            return None
        except Exception:  # noqa: BLE001 - not shown to be equal
            equal = False
    return None if rang else equal  # a bare `except:` of sympy may have swallowed the alarm


@contextlib.contextmanager
def _alarm(seconds: float) -> Iterator[list[bool]]:
    """Raise `OutOfTimeError` after `seconds` of CPU, and again until it ends; what it yields is not empty then."""
    rang: list[bool] = []
    if not hasattr(signal, "setitimer"):  # Windows
        yield rang
        return

    def ring(*_: object) -> None:
        rang.append(True)
        raise OutOfTimeError

    signal.signal(signal.SIGPROF, ring)
    signal.setitimer(signal.ITIMER_PROF, seconds, GRACE_SECONDS / 4)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds + GRACE_SECONDS)  # SIGVTALRM, which ends a process
    try:
        yield rang
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def _limit_memory() -> None:
    if sys.platform != "win32":
        import resource

        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        limit = MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(MEMORY_BYTES, hard)
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


if __name__ == "__main__":
    serve()
