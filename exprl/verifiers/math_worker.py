"""The process in which math-verify runs: one JSON line in, `{"gold": ..., "answer": ..., "seconds": ...}`, one out.

Started by `MathVerifier` as a script, so that it imports nothing but math-verify. A comparison that takes too long
ends the process: `10^{10^{10}}` computes inside one C call that no Python signal handler can interrupt, while
faulthandler's watchdog thread can.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import sys
from pathlib import Path

MEMORY_BYTES = 4 << 30


def is_equal(gold: str, answer: str) -> bool:
    r"""Whether two LaTeX answers are the same value by math-verify.

    Both are read as what stands in `\boxed{}`, never searched for the expression that fits best. Timeouts are off:
    math-verify's are signals, which do not reach C code.
    """
    from math_verify import parse, verify

    def read(text: str) -> list[object]:
        return list(parse(rf"\boxed{{{text}}}", parsing_timeout=None))

    return bool(verify(read(gold), read(answer), timeout_seconds=None))


def serve() -> None:
    """Answer requests from standard input until it is closed."""
    import math_verify  # noqa: F401 - the slow import, before the first request's clock starts

    logging.disable(logging.CRITICAL)
    _limit_memory()
    # What a library prints must not mix with the replies.
    replies, sys.stdout = sys.stdout, sys.stderr
    with Path(os.devnull).open("w") as nowhere:
        print("ready", file=replies, flush=True)
        for line in sys.stdin:
            request = json.loads(line)
            faulthandler.dump_traceback_later(request["seconds"], exit=True, file=nowhere)
            try:
                equal = is_equal(request["gold"], request["answer"])
            except (RecursionError, MemoryError):
                equal = False
            faulthandler.cancel_dump_traceback_later()
            print(json.dumps(equal), file=replies, flush=True)


def _limit_memory() -> None:
    if sys.platform != "win32":
        import resource

        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        limit = MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(MEMORY_BYTES, hard)
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


if __name__ == "__main__":
    serve()
