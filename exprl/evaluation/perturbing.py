"""Perturbations applied to labelled rollouts, and how far each moves a judge's score."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from random import Random
from typing import TYPE_CHECKING

from exprl.evaluation.perturbations.base import Perturbation
from exprl.rewards.judged import NOTHING_WRITTEN
from exprl.rollouts.importing import rollout_of
from exprl.rollouts.stored import Label, StoredGroup
from exprl.seeding import derive_seed
from exprl.types import AnyReward, Rollout

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ON_ROLLOUTS, ON_EMPTY = 0, 1
"""The steps of what was perturbed: rollouts, and responses in which nothing was written."""
ORIGINAL = "original"
"""What the rollouts themselves are called."""


@dataclass(frozen=True, kw_only=True)
class Perturbed:
    """Rollouts that were changed in one way.

    Attributes:
        name: of the perturbation.
        groups: by step, `ON_ROLLOUTS` and for attacks `ON_EMPTY`; a step in which nothing can be changed is not there.
        places: by step, for each rollout of its groups the number of the one that it was made of; of an empty response
            that of the first to its problem.
    """

    name: str
    groups: Mapping[int, tuple[StoredGroup, ...]]
    places: Mapping[int, tuple[int, ...]]

    @property
    def digest(self) -> str:
        """Of what was written: other rollouts, options or a seed give another one."""
        said = [
            (step, group.problem_id, rollout.text)
            for step, groups in sorted(self.groups.items())
            for group in groups
            for rollout in group.rollouts
        ]
        return hashlib.sha256(repr(said).encode()).hexdigest()[:16]


def labelled(groups: Iterable[StoredGroup], problems: int | None) -> tuple[StoredGroup, ...]:
    """The rollouts that somebody called right or wrong, not graded, of the first so many problems (None: of all)."""
    bases = [base for base in _bases(groups) if base.label.correct is not None]
    names = dict.fromkeys(base.group.problem_id for base in bases)
    chosen = set(list(names)[:problems])
    return _groups(base for base in bases if base.group.problem_id in chosen)


def original(groups: Sequence[StoredGroup]) -> Perturbed:
    """The rollouts as they are, judged beside the others."""
    return _perturbed(ORIGINAL, {ON_ROLLOUTS: list(_bases(groups))})


def perturbed(
    name: str,
    perturbation: Perturbation,
    groups: Sequence[StoredGroup],
    *,
    seed: int,
    tokenizer: PreTrainedTokenizerBase | None,
) -> Perturbed:
    """What a perturbation makes of rollouts: of all, or, an attack, of the wrong ones and of nothing.

    Args:
        name: which it has in the config.
        perturbation: what is done.
        groups: `labelled` rollouts.
        seed: of its random choices, which are those of one rollout alone.
        tokenizer: makes the token ids; None: a token a character.
    """

    def changed(bases: Iterable[_Base], step: int) -> Iterator[_Base]:
        for base in bases:
            random = Random(derive_seed(seed, name, step, base.group.problem_id, base.place))
            text = perturbation.perturb(base.rollout.text, base.group.question.text, random)
            if text is not None:
                yield base.saying(text, tokenizer)

    bases = list(_bases(groups))
    if perturbation.kind != "attack":
        return _perturbed(name, {ON_ROLLOUTS: list(changed(bases, ON_ROLLOUTS))})
    wrong = [base for base in bases if not base.label.correct]
    nothing = [base.saying("", tokenizer) for base in {base.group.problem_id: base for base in bases[::-1]}.values()]
    steps = {ON_ROLLOUTS: wrong, ON_EMPTY: nothing[::-1]}
    return _perturbed(name, {step: list(changed(own, step)) for step, own in steps.items()})


def scores_of(graded: Mapping[int, tuple[StoredGroup, ...]], made: Perturbed, step: int) -> dict[int, float | None]:
    """The score of each graded rollout of a step by its place; None where a judgement failed."""
    if step not in made.groups:
        return {}
    found = [
        whole_score(rollout, reward)
        for group in graded[step]
        for rollout, reward in zip(group.rollouts, group.rewards or (), strict=True)
    ]
    return dict(zip(made.places[step], found, strict=True))


def whole_score(rollout: Rollout, reward: AnyReward) -> float | None:
    """The Likert score of all of a rollout, its last judgement's; of one in which nothing is written, no progress."""
    if not rollout.text.strip():
        return NOTHING_WRITTEN.score
    return reward.judgements[-1].score if reward.judgements else None


# ------------------------------------------------------------------ one rollout


@dataclass(frozen=True)
class _Base:
    """A labelled rollout of a group, and its number among all."""

    group: StoredGroup
    place: int
    rollout: Rollout
    label: Label

    def saying(self, text: str, tokenizer: PreTrainedTokenizerBase | None) -> _Base:
        """The same with another text."""
        own = self.rollout
        rollout = rollout_of(
            text, own.prompt, tokenizer, finish_reason=own.finish_reason, policy_version=own.policy_version
        )
        return replace(self, rollout=rollout)


def _bases(groups: Iterable[StoredGroup]) -> Iterator[_Base]:
    place = 0
    for group in groups:
        for rollout, label in zip(group.rollouts, group.labels or (Label(),) * len(group.rollouts), strict=True):
            yield _Base(group, place, rollout, label)
            place += 1


def _groups(bases: Iterable[_Base]) -> tuple[StoredGroup, ...]:
    """Rollouts in their groups, not graded."""
    found = []
    for _, own in groupby(bases, key=lambda base: id(base.group)):
        members = list(own)
        found.append(
            replace(
                members[0].group,
                rollouts=tuple(base.rollout for base in members),
                labels=tuple(base.label for base in members),
                rewards=None,
                advantages=None,
                verdicts=None,
                scorer=None,
            )
        )
    return tuple(found)


def _perturbed(name: str, steps: Mapping[int, Sequence[_Base]]) -> Perturbed:
    return Perturbed(
        name=name,
        groups={step: _groups(bases) for step, bases in steps.items() if bases},
        places={step: tuple(base.place for base in bases) for step, bases in steps.items() if bases},
    )
