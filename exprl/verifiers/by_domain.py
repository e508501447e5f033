"""A verifier of each domain's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from exprl.component import choose, choose_each
from exprl.domains import Routes, Routing
from exprl.errors import DataError, SeveralErrors
from exprl.registry import VERIFIERS
from exprl.types import Problem
from exprl.verifiers.base import Verifier


@VERIFIERS.register("by_domain")
class ByDomainVerifier(Routing, Verifier):
    """The verifier of the problem's domain."""

    domains: Mapping[str, Verifier] = choose_each(VERIFIERS, help="the verifier of each domain, by the domain's name")
    default: Verifier | None = choose(VERIFIERS, default=None, help="that of every other domain; null: there is none")

    def setup(self) -> None:
        """The routes."""
        super().setup()
        self.routes = Routes(self.domains, self.default, "verifier")

    def verify(self, problem: Problem, response: str) -> bool:
        """As that of its domain; raises `DataError` where there is none."""
        return self.routes[problem.domain].verify(problem, response)

    def verify_batch(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[bool]:
        """Each by that of its domain, which is given all of its own in one call; a false verdict's giver is named."""
        found: dict[int, bool] = {}
        for _, verifier, places in self._split(problems):
            own = [problems[place] for place in places], [responses[place] for place in places]
            found |= zip(places, verifier.verdicts(*own), strict=True)
        return [found[place] for place in range(len(problems))]

    def explain(self, problem: Problem, response: str) -> str:
        """As that of its domain."""
        return self.routes[problem.domain].explain(problem, response)

    def knows(self, problem: Problem) -> bool:
        """As that of its domain."""
        return self.routes[problem.domain].knows(problem)

    def check(self, problems: Sequence[Problem]) -> None:
        """Every domain needs a route, whose verifier looks at the problems that it will be asked about."""
        self.routes.check(problems)
        for _, verifier, places in self._split(problems):
            verifier.check([problems[place] for place in places])

    def gold(self, problem: Problem) -> str | None:
        """As that of its domain."""
        return self.routes[problem.domain].gold(problem)

    def unreadable(self, problems: Sequence[Problem]) -> list[str]:
        """Those that the verifiers of their domains cannot read."""
        return [
            problem_id
            for _, verifier, places in self._split(problems)
            for problem_id in verifier.unreadable([problems[place] for place in places])
        ]

    def refusal(self, unreadable: Sequence[str], problems: Sequence[Problem]) -> DataError:
        """What the verifiers of the domains say of their own."""
        said = []
        for _, verifier, places in self._split(problems):
            own = [problems[place] for place in places]
            if found := [problem.id for problem in own if problem.id in set(unreadable)]:
                said.append(verifier.refusal(found, own))
        return SeveralErrors(said) if len(said) > 1 else said[0]

    def _split(self, problems: Sequence[Problem]) -> list[tuple[str, Verifier, list[int]]]:
        return list(self.routes.split([problem.domain for problem in problems]))
