"""The candidate's side of calls: its function is called with what comes in, what it returns goes out."""

import os
import sys
from collections.abc import Callable
from typing import Any

from . import values
from .faults import builtin_name


def serve(load: Callable[[], dict[str, Any]], entry_point: str, requests: int, replies: int) -> None:
    """Answer each request line; what the program does to this process harms nobody but itself.

    `load` runs the program and gives its names.
    """
    try:
        names = load()
    except BaseException as error:
        os.write(replies, values.dump({"raised": builtin_name(error)}))
        raise
    if entry_point not in names:
        os.write(replies, values.dump({"undefined": True}))
        return
    function = names[entry_point]
    os.write(replies, values.dump({"loaded": True}))
    with os.fdopen(requests, "rb") as lines, os.fdopen(replies, "wb") as out:
        for line in lines:
            out.write(_reply(function, values.load(line)))
            out.flush()


def _reply(function: Callable[..., Any], request: dict[str, Any]) -> bytes:
    try:
        value = function(*request["args"], **request["kwargs"])
    except BaseException as error:  # noqa: BLE001 - a program may raise whatever it likes
        return values.dump({"raised": builtin_name(error), "message": str(error)[:200]})
    try:
        return values.dump({"value": value}, other=of_numpy)
    except BaseException:  # noqa: BLE001 - the program's own objects take part
        return values.dump({"raised": "RuntimeError", "message": "it returns what is no plain value"})


def of_numpy(value: Any) -> Any:
    """Numpy's scalars as numbers and its arrays as lists; raises TypeError for all else.

    What a program has put in the place of numpy gains nothing: what it gives must be plain as well.
    """
    numpy = sys.modules.get("numpy")
    found = (getattr(numpy, "generic", None), getattr(numpy, "ndarray", None))
    kinds: Any = tuple(kind for kind in found if isinstance(kind, type))
    if not isinstance(value, kinds):
        return values.refused(value)
    return value.tolist()
