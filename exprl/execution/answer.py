"""Which program a response answers with."""

from __future__ import annotations

import ast
import re
import warnings

from exprl.execution.tests import CallTests, ProgramTests, Tests
from exprl.text.thinking import without_thinking

_FENCE = re.compile(
    r"""
    ^(?P<indent>[ \t]*(?:(?:[-*+]|\d+[.)])[ ]+)?)      # the block may be an item of a list
    (?P<fence>```+|~~~+)(?P<info>[^\n`]*)\n
    (?:(?P<code>.*?^(?:(?!(?P=fence))[^\n])*)(?P=fence)[`~]*[ \t]*$  # the closing fence may end the last line
    |(?P<rest>.*)\Z)
    """,
    re.MULTILINE | re.DOTALL | re.VERBOSE,
)
_PYTHON = re.compile(r"\s*\{?\s*\.?py(thon)?(3(\.\d+)?)?(?![\w-])", re.IGNORECASE)
"""A block's label: `python`, `py3`, or Pandoc's `{.python}`."""
_STOPS = re.compile(r"\n(?=class |def |@|if |print|#|```)")
"""Where a completion of a function is over: the stop strings of HumanEval's paper (Chen et al. 2021)."""


def program_of(response: str, tests: Tests) -> str | None:
    """The program in a response, made complete where it completes the tests' prompt; None where there is none.

    It is the last fenced block that is labelled as Python, else the last without a label, of what is said after
    thinking. Where the tests name a function, it is the last that writes it out: what follows is an example of its use,
    or was cut off. Without any block, the whole reply counts if it is code by itself: it must parse, and define the
    entry point or (a whole program) call something. For tests with a prompt it may also be a bare completion of that.
    """
    said = without_thinking(response)
    if said is None:
        return None
    said = said.replace("\r\n", "\n")
    wanted = tests.entry_point if isinstance(tests, CallTests | ProgramTests) else None
    block = _block(said, wanted)
    if isinstance(tests, ProgramTests):
        return _for_prompt(block, said, tests)
    if block is not None:
        return block
    return said if _is_code(said, wanted) else None


def _block(said: str, wanted: str | None) -> str | None:
    """The last of the blocks that say most of the function `wanted`; of those that say the same a labelled one."""
    found = [block for block in _FENCE.finditer(said) if _PYTHON.match(block["info"]) or not block["info"].strip()]
    if not found:
        return None

    def says(place: int) -> tuple[int, bool, int]:
        return _says(found[place], wanted), bool(found[place]["info"].strip()), place

    return _code(found[max(range(len(found)), key=says)])


def _says(block: re.Match[str], wanted: str | None) -> int:
    """2: the function is written out, 1: it is imported, 0: neither, or it is left empty as in a prompt.

    A closed block that writes it and is no Python counts as well: it is the response's word, and wrong. One that
    was cut off is not.
    """
    if wanted is None:
        return 0
    code = _code(block)
    tree = _parsed(code)
    if tree is None:
        begun = re.search(rf"^(async[ ]+)?(def|class)[ ]+{re.escape(wanted)}\b", code, re.MULTILINE)
        return 2 if begun and block["code"] is not None else 0
    binding = [node for node in tree.body if wanted in _names(node) and not _is_empty(node)]
    written = any(not isinstance(node, ast.Import | ast.ImportFrom) for node in binding)
    return 2 if written else int(bool(binding))


def _is_empty(node: ast.stmt) -> bool:
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and all(
        isinstance(one, ast.Pass) or (isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant))
        for one in node.body
    )


def _code(block: re.Match[str]) -> str:
    code = block["rest"] if block["code"] is None else block["code"]
    return _outdented(code.rstrip(" \t"), len(block["indent"]))


def _outdented(code: str, width: int) -> str:
    """Without the fence's own indentation (CommonMark 0.31, 4.5), if the code was indented along with it."""
    if code.lstrip("\n")[:width].strip():
        return code
    return re.sub(rf"^[ \t]{{0,{width}}}", "", code, flags=re.MULTILINE)


def _for_prompt(block: str | None, said: str, tests: ProgramTests) -> str | None:
    """A program behind its prompt, whose imports and helpers it may lean on, or a completion of the prompt."""
    code = said if block is None else block
    if _defines(code, tests.entry_point):
        whole = _behind(tests.prompt, code)
        return whole if tests.prompt and _parsed(whole) is not None else code
    if not tests.prompt:
        return block
    for completion in (code, _STOPS.split(code, maxsplit=1)[0]):
        if completion.strip() and _parsed(tests.prompt + completion) is not None:
            return tests.prompt + completion
    return block


def _behind(prompt: str, code: str) -> str:
    """Both, as one program: what it wants of `__future__` has to stand first."""
    tree = _parsed(code)
    wanted = [node for node in tree.body if _of_future(node)] if tree else []
    if tree is None or not wanted:
        return f"{prompt}\n\n{code}"
    rest = ast.Module(body=[node for node in tree.body if node not in wanted], type_ignores=[])
    return "\n".join([*map(ast.unparse, wanted), prompt, "", ast.unparse(rest)])


def _of_future(node: ast.stmt) -> bool:
    return isinstance(node, ast.ImportFrom) and node.module == "__future__"


def _is_code(text: str, entry_point: str | None) -> bool:
    if entry_point is not None:
        return _defines(text, entry_point)
    tree = _parsed(text)
    return tree is not None and any(isinstance(node, ast.Call) for node in ast.walk(tree))


def _defines(text: str, name: str) -> bool:
    tree = _parsed(text)
    return tree is not None and any(name in _names(node) for node in tree.body)


def _names(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        return {target.id for target in targets if isinstance(target, ast.Name)}
    if isinstance(node, ast.Import | ast.ImportFrom):
        return {alias.asname or alias.name for alias in node.names}
    return set()


def _parsed(text: str) -> ast.Module | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what Python thinks of a policy's style
            return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
