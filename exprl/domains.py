"""Routing by a problem's domain: which component of a family is meant for it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

from exprl.component import Choice, Component
from exprl.config.keys import joined
from exprl.errors import ConfigError, DataError, did_you_mean
from exprl.types import Problem

T = TypeVar("T")


def label_of(domain: str) -> str:
    """A domain in the names of metrics: signs that loggers do not take, or take for levels, are underscores.

    >>> label_of("algebra/linear & more")
    'algebra_linear _ more'
    """
    return re.sub(r"[^\w .-]", "_", domain)


class Routing(Component):
    """A component that hands each problem to the one of its family that the problem's domain has.

    Whoever derives from it declares `domains` with `choose_each` and `default` with `choose`.
    """

    @classmethod
    def check_options(cls, config: Any) -> None:
        """A route at least, each for a domain with a name."""
        if not config.domains:
            raise ConfigError("domains: must hold a route at least, for example {math: {name: ...}}.")
        if not all(name.strip() for name in config.domains):
            raise ConfigError("domains: a domain's name must not be empty.")


class Routes(Generic[T]):
    """What each domain has: one of `domains` by its name, or else the `default`.

    >>> routes = Routes({"math": 1, "code": 2}, None, "reward")
    >>> routes["math"], routes.places(["code", "math", "code"])
    (1, {'domains.math': [1], 'domains.code': [0, 2]})
    >>> Routes({"math": 1}, 3, "reward").places(["law", "math"])
    {'domains.math': [1], 'default': [0]}

    Args:
        domains: what the domains have.
        default: what every other has; None: none is allowed.
        key: where the routes stand in an experiment, for messages.
    """

    def __init__(self, domains: Mapping[str, T], default: T | None, key: str) -> None:
        self.domains, self.default, self.key = domains, default, key

    def __getitem__(self, domain: str) -> T:
        """What a domain has; raises `DataError` where no route takes it."""
        found = self.domains.get(domain, self.default)
        if found is None:
            raise DataError(f"the domain {domain!r} has no route. {self._advice(domain)}")
        return found

    def items(self) -> Iterator[tuple[str, T]]:
        """Each route with its key."""
        yield from ((joined("domains", name), own) for name, own in self.domains.items())
        if self.default is not None:
            yield "default", self.default

    def split(self, domains: Sequence[str]) -> Iterator[tuple[str, T, list[int]]]:
        """The routes that are taken, each with its key and the places of what takes it."""
        places = self.places(domains)
        yield from ((key, own, places[key]) for key, own in self.items() if key in places)

    def places(self, domains: Sequence[str]) -> dict[str, list[int]]:
        """The places in a list of domains by the keys of their routes; raises `DataError` where one has none."""
        found: dict[str, list[int]] = {key: [] for key, _ in self.items()}
        for place, domain in enumerate(domains):
            self[domain]  # raises
            found[joined("domains", domain) if domain in self.domains else "default"].append(place)
        return {key: places for key, places in found.items() if places}

    def check(self, problems: Sequence[Problem], source: str = "") -> None:
        """Raise `DataError` naming the first problem whose domain has no route, and `source`, where it is from."""
        for problem in problems:
            if self.default is None and problem.domain not in self.domains:
                where = f"{source}: " if source else ""
                raise DataError(
                    f"{where}problem {problem.id!r} has the domain {problem.domain!r}, for which {self.key} has no "
                    f"route. {self._advice(problem.domain, f'{source}.' if source else '')}"
                )

    def unused(self, problems: Sequence[Problem]) -> list[str]:
        """The domains that have a route and no problem."""
        found = {problem.domain for problem in problems}
        return [name for name in self.domains if name not in found]

    def _advice(self, domain: str, above: str = "") -> str:
        return (
            f"{did_you_mean(domain, self.domains)} Or set {self.key}.default, for every other domain. (A row's domain "
            f"is what its column {above}columns.domain says, and math where none is named.)"
        )


def check_labels(problems: Sequence[Problem]) -> None:
    """Raise `DataError` where two domains would be one in the names of metrics."""
    first: dict[str, str] = {}
    for problem in problems:
        other = first.setdefault(label_of(problem.domain), problem.domain)
        if other != problem.domain:
            raise DataError(
                f"problem {problem.id!r}: its domain {problem.domain!r} and the domain {other!r} of others are both "
                f"{label_of(other)!r} in the names of metrics, which would add them up. Rename one of them in the data."
            )


def check_routes(choice: Choice, key: str, problems: Sequence[Problem], source: str) -> None:
    """Raise `DataError` where a component routes by domain and a problem's has no route, before anything is built.

    Args:
        choice: the component.
        key: where an experiment chooses it.
        problems: what it will be asked about.
        source: the key of the experiment that the problems are from.
    """
    if issubclass(choice.cls, Routing):
        Routes(choice.config.domains, choice.config.default, key).check(problems, source)
