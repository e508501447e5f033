"""Finished tables on disk, from which a later call goes on: a table's cells are always of one call."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from kernel_peers.base import Size
from kernel_peers.measure import Measurement
from kernel_peers.worker import NO_TIME, Cell, Failure

Result = Measurement | Failure


def whole_tables(results: Mapping[Cell, Result], cells: list[Cell]) -> dict[Cell, Result]:
    """The results of those tasks and sizes of which every cell has a figure or a reason of its own."""
    partial = {(x.task, x.size) for x in cells if results.get(x, NO_TIME) == NO_TIME}
    return {x: results[x] for x in cells if (x.task, x.size) not in partial}


def keep(path: Path, about: str, results: Mapping[Cell, Result]) -> None:
    """Whole or not at all; `about` says what they were measured on, and how."""
    rows = [[asdict(cell), type(result).__name__, asdict(result)] for cell, result in results.items()]
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps({"about": about, "results": rows}, indent=1) + "\n")
    part.replace(path)


def read(path: Path, about: str) -> dict[Cell, Result]:
    """What was kept; nothing where that was about something else."""
    content = json.loads(path.read_text()) if path.exists() else {"about": None, "results": []}
    if content["about"] != about:
        return {}
    kinds: dict[str, type[Result]] = {"Measurement": Measurement, "Failure": Failure}
    return {
        Cell(**cell | {"size": Size(**cell["size"])}): kinds[kind](**result)
        for cell, kind, result in content["results"]
    }
