"""Lightning is quiet where exprl uses it, and as it was for everybody else."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator

import pytest
from lightning import Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from exprl.terminal.quiet import quiet_lightning


class Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines = list[str]()

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture
def kept() -> Iterator[Kept]:
    logger, handler = logging.getLogger("lightning.pytorch"), Kept()
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


def talk() -> None:
    """What a Trainer says when it is made, and a warning as its connectors give them."""
    Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False)
    exec("warn('too few workers')", {"__name__": "lightning.pytorch.trainer", "warn": rank_zero_warn})


def test_it_says_nothing_inside_and_all_of_it_afterwards(kept: Kept) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with quiet_lightning():
            talk()
        assert (kept.lines, caught) == ([], [])
        talk()
    assert any("GPU available" in line for line in kept.lines)
    assert [str(warning.message) for warning in caught] == ["too few workers"]


def test_an_error_ends_it_too(kept: Kept) -> None:
    with pytest.raises(RuntimeError), quiet_lightning():
        raise RuntimeError
    talk()
    assert kept.lines
