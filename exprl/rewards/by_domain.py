"""A reward of each domain's own."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar

from exprl.checks.contracts import given_by
from exprl.component import choose, choose_each, title_of
from exprl.config.fields import Choice
from exprl.domains import Routes, Routing
from exprl.errors import ColumnError, ConfigError, DataError, JudgeError
from exprl.registry import REWARDS
from exprl.resources import Resources
from exprl.rewards.base import Granularity, Reward
from exprl.rewards.checks import check_rewards
from exprl.rewards.steps import of_route
from exprl.terminal.progress import OnProgress, no_progress
from exprl.types import AnyReward, Problem, Rollout, RolloutGroup

log = logging.getLogger(__name__)


@REWARDS.register("by_domain")
class ByDomainReward(Routing, Reward):
    """The reward of the problem's domain; one step may hold rewards of rollouts and rewards of segments."""

    overlaps: ClassVar[bool] = True

    domains: Mapping[str, Reward] = choose_each(REWARDS, help="the reward of each domain, by the domain's name")
    default: Reward | None = choose(REWARDS, default=None, help="that of every other domain; null: there is no other")

    def setup(self) -> None:
        """The routes."""
        super().setup()
        self.routes = Routes(self.domains, self.default, "reward")

    def part(self, name: str, handed: Any, resources: Resources) -> Any:
        """Each route's is given the problems that take it, so that a wrong reference is one of the same domain."""
        domains = self.config.domains
        if name == "default":
            others = [problem for problem in resources.problems if problem.domain not in domains]
            return super().part(name, handed, replace(resources, problems=others))
        made = {domain: one for domain, one in (handed or {}).items() if isinstance(one, Reward)}
        return {domain: made.get(domain) or one.build(_within(domain, resources)) for domain, one in domains.items()}

    @classmethod
    def reads_references(cls, config: Any) -> bool:
        """If that of any domain does."""
        return any(choice.cls.reads_references(choice.config) for _, choice in _routes_of(config).items())

    @classmethod
    def graded_by(cls, config: Any, problems: Sequence[Problem], seed: int) -> Sequence[Problem]:
        """As each route's says of the problems that take it."""
        found: dict[int, Problem] = {}
        for _, choice, places in _routes_of(config).split([problem.domain for problem in problems]):
            own = [problems[place] for place in places]
            found |= zip(places, choice.cls.graded_by(choice.config, own, seed), strict=True)
        return [found[place] for place in range(len(problems))]

    @classmethod
    def granularities(cls, config: Any) -> dict[str, Granularity]:
        """Those of each domain's."""
        found: dict[str, Granularity] = {}
        for key, choice in _routes_of(config).items():
            try:
                inner = choice.cls.granularities(choice.config)
            except ConfigError as error:
                raise ConfigError(f"{key}.{error}") from error
            found |= {".".join(filter(None, (key, within))): given for within, given in inner.items()}
        return found

    def texts(self) -> dict[str, str]:
        """Those of each domain's, by its key too, as two domains have texts of the same kind."""
        return {f"{key}: {name}": text for key, part in self.lasting().items() for name, text in part.texts().items()}

    def check(self, problems: Sequence[Problem]) -> None:
        """Every domain needs a route, whose reward looks at the problems that it will be asked about."""
        self.routes.check(problems)
        if unused := self.routes.unused(problems):
            found = ", ".join(sorted({problem.domain for problem in problems}))
            log.warning(
                "reward.domains: no training problem has the domain %s, only %s. A row's domain is what its column "
                "data.train.columns.domain says, and math where none is named.",
                ", ".join(unused),
                found,
            )
        for key, reward, places in self.routes.split([problem.domain for problem in problems]):
            with _naming(key):
                reward.check([problems[place] for place in places])

    @classmethod
    def check_data(cls, config: Any, problems: Sequence[Problem], resources: Resources) -> None:
        """Each route's reward looks at the problems that take it."""
        for key, choice, places in _routes_of(config).split([problem.domain for problem in problems]):
            own = [problems[place] for place in places]
            with _naming(key):
                choice.cls.check_data(choice.config, own, replace(resources, problems=own))

    def start(self, problem: Problem, rollout: Rollout) -> None:
        """Let the reward of its domain begin."""
        self.routes[problem.domain].start(problem, rollout)

    def score(
        self, groups: Sequence[RolloutGroup], on_progress: OnProgress = no_progress
    ) -> list[tuple[AnyReward, ...]]:
        """Each group by the reward of its domain, which is given all of its groups in one call.

        Raises:
            RewardError: one of the rewards gives something else than rewards of its rollouts; it is named.
        """
        scored: dict[int, tuple[AnyReward, ...]] = {}
        for key, reward, places in self.routes.split([group.problem.domain for group in groups]):
            own, who = [groups[place] for place in places], f"reward {title_of(reward)} ({key})"
            with given_by(who):
                rewards = reward.score(own, on_progress)
            check_rewards(own, rewards, who)
            scored |= zip(places, rewards, strict=True)
        return [scored[place] for place in range(len(groups))]

    def scorers(self, problems: Sequence[Problem]) -> list[tuple[str, Reward, list[int]]]:
        """The rewards of the problems' domains."""
        return [
            (".".join(filter(None, (key, within))), scorer, [places[own] for own in inner])
            for key, reward, places in self.routes.split([problem.domain for problem in problems])
            for within, scorer, inner in reward.scorers([problems[place] for place in places])
        ]


@contextmanager
def _naming(key: str) -> Iterator[None]:
    """Inside, what is said of problems names the route, whose options are meant."""
    try:
        yield
    except ColumnError as error:
        raise ColumnError(of_route(error.found, key), error.settings, error.otherwise) from error
    except (DataError, JudgeError) as error:
        family = JudgeError if isinstance(error, JudgeError) else DataError
        raise family(of_route(str(error), key)) from error


def _within(domain: str, resources: Resources) -> Resources:
    return replace(resources, problems=[problem for problem in resources.problems if problem.domain == domain])


def _routes_of(config: Any) -> Routes[Choice]:
    return Routes(config.domains, config.default, "reward")
