"""Whether programs can be run in a sandbox here."""

from __future__ import annotations

import pytest

from exprl.errors import ExecutionError
from exprl.execution import Bubblewrap


def reason() -> str | None:
    """Why no sandbox can be had; None: it can."""
    try:
        Bubblewrap.preflight(Bubblewrap.Config())
    except ExecutionError as error:
        return str(error)
    return None


WHY_NOT = reason()
needs_sandbox = pytest.mark.skipif(WHY_NOT is not None, reason=WHY_NOT or "")
