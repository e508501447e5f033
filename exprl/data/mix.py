"""Problems of several sources, of each so many in a step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any

from exprl.component import choose_each, option
from exprl.config.ranges import Range
from exprl.data.base import ProblemSource
from exprl.data.order import Part, shares
from exprl.errors import ColumnError, ConfigError, DataError, did_you_mean
from exprl.registry import SOURCES
from exprl.types import Problem

Weight = Annotated[float, Range(ge=1e-6, le=1e6)]


@SOURCES.register("mix")
class MixSource(ProblemSource):
    """Several sources; a training step draws from each by its weight, and an evaluation takes all of all."""

    sources: Mapping[str, ProblemSource] = choose_each(SOURCES, help="each source by a name, which begins its ids")
    weights: dict[str, Weight] = option(
        default={}, by_key=True, help="how much of a step is of a source, beside the others; 1 of one that is not named"
    )
    as_domains: bool = option(default=False, help="a source's name is the domain of all of its problems")

    @classmethod
    def check_options(cls, config: Any) -> None:
        """Names must be names, and weights those of sources."""
        if not config.sources:
            raise ConfigError("sources: must hold a source at least, for example {math: {name: champ}}.")
        for name in config.sources:
            if not name.strip() or "/" in name:
                raise ConfigError(f"sources: a name is not empty and has no / in it, but got {name!r}.")
        for name in config.weights:
            if name not in config.sources:
                raise ConfigError(f"weights.{name}: there is no such source. {did_you_mean(name, config.sources)}")

    def load(self) -> list[Problem]:
        """All problems of all sources, in their order; ids begin with the source's name and a slash."""
        return self.load_parts()[0]

    def load_parts(self) -> tuple[list[Problem], list[Part]]:
        """Also one part of each source, or several of one that is a mix itself.

        Raises:
            DataError: of a source, naming it.
        """
        every: list[Problem] = []
        parts: list[Part] = []
        for name, source in self.sources.items():
            try:
                problems, inner = source.load_parts()
            except ColumnError as error:
                raise error.under(f"sources.{name}") from error
            if not problems:
                raise DataError(f"sources.{name}: no problems. Check the path, the filters and `limit`.")
            every += [self._named(problem, name) for problem in problems]
            parts += self._weighted(inner, name)
        return every, parts

    def _named(self, problem: Problem, name: str) -> Problem:
        question = replace(problem.question, problem_id=f"{name}/{problem.id}")
        return replace(problem, question=question, domain=name if self.as_domains else problem.domain)

    def _weighted(self, parts: list[Part], name: str) -> list[Part]:
        """The parts of a source, with its weight shared among them."""
        weight = self.weights.get(name, 1.0)
        named = [f"{name}/{part.name}" for part in parts] if len(parts) > 1 else [name]
        return [
            replace(part, name=own, weight=weight * share)
            for part, own, share in zip(parts, named, shares(parts), strict=True)
        ]
