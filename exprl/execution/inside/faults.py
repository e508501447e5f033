"""What is a test program's own fault, whatever program it tests; only types are told, as texts of tests are hidden."""

import ast
import traceback
from collections.abc import Iterator
from typing import Any

OWN = ("prompt.py", "test.py")
"""What the parts of a test program are compiled as."""


class UnsendableError(BaseException):
    """A test program calls with what is no plain value. No test catches it as if the candidate had raised it."""


def fault(error: BaseException, given: dict[str, str], calls: int) -> str | None:
    """The type of an error that no candidate can have caused; None where one may have.

    It may have once it was called, by what it returned or raised, unless an import of the test program fails, or a name
    is missing that the test program binds nowhere.
    """
    if calls == 0 or isinstance(error, UnsendableError) or _fails_at_import(error, given) or _unbound(error, given):
        return builtin_name(error)
    return None


def builtin_name(error: BaseException) -> str:
    """The name of the nearest built-in type that it is of."""
    return next((kind.__name__ for kind in type(error).__mro__ if kind.__module__ == "builtins"), "Exception")


def _fails_at_import(error: BaseException, given: dict[str, str]) -> bool:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in OWN]
    if not frames:
        return False
    last = frames[-1]
    at = (last.lineno, last.colno)
    return None not in at and any(
        isinstance(node, (ast.Import, ast.ImportFrom))
        and (node.lineno, node.col_offset) <= at < (node.end_lineno, node.end_col_offset)
        for node in _nodes(given[last.filename.removesuffix(".py")])
    )


def _unbound(error: BaseException, given: dict[str, str]) -> bool:
    """By the frame that raised it: a candidate's own is raised in the call of it, and one in `eval` in no file."""
    frames = traceback.extract_tb(error.__traceback__)
    if not isinstance(error, NameError) or not frames or frames[-1].filename not in OWN or error.name is None:
        return False
    return error.name not in {name for part in OWN for name in _bound(given[part.removesuffix(".py")])}


def _nodes(source: str) -> list[ast.AST]:
    try:
        return list(ast.walk(ast.parse(source)))
    except SyntaxError:  # a prompt without a body, which was not run either
        return []


def _bound(source: str) -> Iterator[Any]:
    for node in _nodes(source):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            yield node.id
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.ExceptHandler)):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.alias):
            yield (node.asname or node.name).split(".")[0]
        elif isinstance(node, (ast.MatchAs, ast.MatchStar)):
            yield node.name
        elif isinstance(node, ast.MatchMapping):
            yield node.rest
