"""Programs that try to pass without solving, and programs that attack the machine, from `tests/data/hostile`.

The problem is `mix(x)`, x * x + 7; as a whole program it reads x and prints that.
"""

from __future__ import annotations

import re
from pathlib import Path

FOLDER = Path(__file__).parent / "data/hostile"


def programs(name: str) -> dict[str, str]:
    """Those of a file by their titles, each behind a line `### title`."""
    _, *parts = re.split(r"^### (.+)\n", (FOLDER / f"{name}.txt").read_text(), flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2], strict=True))


HACKS = programs("hacks")
ATTEMPTS = programs("attempts")
ENDLESS = programs("endless")
