"""Random facts in references, by which it is measured how much of what a judge reads reaches the policy.

A fact is a line with a secret number, drawn for each problem from the run's seed and the problem's id alone: nothing
about it is stored anywhere, and every command that reads the run's config plants the same. Only training problems get
any, after their source gave them and before anything else reads them. Question and answer stay as they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from exprl.errors import ConfigError, DataError
from exprl.experiment import SECRET, LeakConfig
from exprl.seeding import derive_seed
from exprl.types import Hidden, Problem


@dataclass(frozen=True, kw_only=True)
class Canary:
    """A fact in a problem's reference.

    Attributes:
        problem: the problem, with the fact planted.
        place: the character of its reference at which the fact's line begins.
        prefix: the fact's line up to the secret.
        values: how many the secret can be: the numbers from 0 on, written with as many digits each.
        secret: which of them it is.
        control: another of them, which is planted nowhere.
        decoy: the problem with that one in the secret's place, for whoever asks what would have been otherwise.
    """

    problem: Problem
    place: int
    prefix: str
    values: int
    secret: Hidden[int]
    control: int
    decoy: Problem

    @property
    def digits(self) -> int:
        """Of each value."""
        return len(str(self.values - 1))

    def written(self, value: int) -> str:
        """A value as it stands in the reference, were it the secret."""
        return f"{value:0{self.digits}}"

    def reference_before(self) -> str:
        """The reference up to the secret; reveals it, for whoever measures."""
        reference = self.problem.scaffold.reference
        assert reference is not None
        return reference.reveal()[: self.place] + self.prefix


def canaries_in(problems: Iterable[Problem], leak: LeakConfig, seed: int) -> list[Canary]:
    """The facts that `leak` plants in problems as their source gives them, in order."""
    if not leak.canaries:
        return []
    return [canary for problem in problems if (canary := canary_of(problem, leak, seed)) is not None]


def planted(problems: Iterable[Problem], canaries: Iterable[Canary], *, decoys: bool = False) -> list[Problem]:
    """The problems with the facts that are theirs, or with another number in these."""
    by_id = {canary.problem.id: canary.decoy if decoys else canary.problem for canary in canaries}
    return [by_id.get(problem.id, problem) for problem in problems]


def check_canaries(problems: Sequence[Problem], canaries: Sequence[Canary], leak: LeakConfig) -> None:
    """Raise where a run of these problems would plant nothing although it is asked to.

    Raises:
        DataError: no problem has a reference.
        ConfigError: the share chooses none of the problems that have one.
    """
    if canaries or not leak.canaries:
        return
    references = sum(problem.scaffold.reference is not None for problem in problems)
    if not references:
        raise DataError(
            f"leak.canaries: {leak.canaries:g}, but none of the {len(problems)} problems of data.train has a reference "
            "solution to plant a fact in. Give the source its column (data.train.columns.reference), or set it to 0."
        )
    raise ConfigError(
        f"leak.canaries: {leak.canaries:g} plants no fact in the {references} references of data.train, each of which "
        f"has one with this probability. Raise it ({min(1.0, FEW / references):.2g} plants about "
        f"{min(FEW, references)}), or set it to 0."
    )


FEW = 20
"""Facts with which exposures have intervals that say something."""


def canary_of(problem: Problem, leak: LeakConfig, seed: int) -> Canary | None:
    """The fact of a problem as its source gives it; None where it has no reference or is not chosen.

    It stands before the reference's last paragraph, line or sentence, and as the last step but one: so a reference ends
    as it did, and a judge that goes by steps reads the fact as well, which the policy then never earns.
    """
    reference = problem.scaffold.reference
    if reference is None or not chosen(problem.id, leak.canaries, seed):
        return None
    values = 10**leak.digits
    secret = derive_seed(seed, "canary", "secret", problem.id) % values
    control = (secret + 1 + derive_seed(seed, "canary", "control", problem.id) % (values - 1)) % values
    return Canary(
        problem=stating(problem, leak.template.replace(SECRET, f"{secret:0{leak.digits}}")),
        place=place_in(reference.reveal())[0],
        prefix=leak.template.partition(SECRET)[0],
        values=values,
        secret=Hidden(secret),
        control=control,
        decoy=stating(problem, leak.template.replace(SECRET, f"{control:0{leak.digits}}")),
    )


def stating(problem: Problem, line: str) -> Problem:
    """The problem, which has a reference, with a line in that and among its steps."""
    scaffold = problem.scaffold
    assert scaffold.reference is not None
    text, steps = scaffold.reference.reveal(), scaffold.steps
    place, joint = place_in(text)
    scaffold = replace(scaffold, reference=Hidden(f"{text[:place]}{line}{joint}{text[place:]}"))
    if steps is not None and (known := steps.reveal()):
        scaffold = replace(scaffold, steps=Hidden((*known[:-1], line, known[-1])))
    return replace(problem, scaffold=scaffold)


def chosen(problem_id: str, share: float, seed: int) -> bool:
    """Whether a problem is among that share of all, whichever others there are.

    >>> [number for number in range(40) if chosen(str(number), 0.1, seed=0)]
    [3, 20, 21, 26]
    """
    return derive_seed(seed, "canary", "chosen", problem_id) < share * 2**63


_BOUNDARIES = ((re.compile(r"\n[^\S\n]*\n\s*"), "\n\n"), (re.compile(r"\n"), "\n"), (re.compile(r"[.!?]\s+"), " "))
"""What parts paragraphs, lines and sentences, and what is to stand between a fact and what follows it."""


def place_in(reference: str) -> tuple[int, str]:
    r"""Where a fact goes, and what parts it from what follows: before the last paragraph, or else line, or sentence.

    >>> place_in("First.\n\nThen.\nSo 5."), place_in("a\nb\n"), place_in("One. Two."), place_in("One")
    ((8, '\n\n'), (2, '\n'), (5, ' '), (0, ' '))
    """
    body = reference.rstrip()
    for boundary, joint in _BOUNDARIES:
        if found := [match.end() for match in boundary.finditer(body)]:
            return found[-1], joint
    return 0, " "
