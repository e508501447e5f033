"""The problem-source contract."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from exprl.component import Component
from exprl.data.order import Part
from exprl.types import Problem


class ProblemSource(Component):
    """A finite, ordered list of problems, the same at every load."""

    registered_family: ClassVar[str] = "source"

    @abstractmethod
    def load(self) -> list[Problem]:
        """All problems, ids unique; raises `DataError` naming file, row and column."""

    def load_parts(self) -> tuple[list[Problem], list[Part]]:
        """The same problems, and the parts that a step draws from by weight: most sources are one part."""
        problems = self.load()
        return problems, [Part(name=self.registered_name, count=len(problems), weight=1.0)]
