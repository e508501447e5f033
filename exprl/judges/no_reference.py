"""The ablation: whoever grades, without a reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

from exprl.component import given
from exprl.judges.base import Judge
from exprl.judges.wrapping import WrappingJudge, refused
from exprl.registry import JUDGES
from exprl.resources import Resources
from exprl.types import Problem
from exprl.verifiers.base import Verifier


@JUDGES.register("no_reference")
class NoReferenceJudge(WrappingJudge):
    """What the judge it stands around says without a reference: a language model from problem and attempt alone.

    `reference_steps` knows nothing else: in its place the run's verifier says whether the final answer is right.
    """

    needs_reference: ClassVar[bool] = False

    @classmethod
    def check_options(cls, config: Any) -> None:
        """The judge within must have a form without a reference."""
        if not _can_do_without(config.around.cls):
            raise refused(
                config.around,
                "does not say how it grades without a reference, as its class would in without_reference(resources), "
                "which returns the judge in its place",
                _can_do_without,
            )

    @classmethod
    def preflight(cls, config: Any) -> None:
        """The judge within, as it grades here, must have what it needs."""
        config.around.cls.preflight_without_reference(config.around.config)

    @classmethod
    def check_data(cls, config: Any, problems: Sequence[Problem], resources: Resources) -> None:
        """Nothing of what the judge within needs is shown to it."""

    @classmethod
    def file_texts(cls, config: Any) -> dict[str, str]:
        """None: rubrics are not read, and a prompt that shows no reference is another."""
        del config
        return {}

    verifier: Verifier | None = given(
        lambda run, _: run.verifier, default=None, help="asked in place of `reference_steps`"
    )

    def part(self, name: str, handed: Any, resources: Resources) -> Any:
        """What the judge of `around` becomes without a reference."""
        judge: Judge = super().part(name, handed, resources)
        return judge.without_reference(replace(resources, verifier=self.verifier))

    def shown(self, problem: Problem) -> Problem:
        """Without reference and steps."""
        return problem.without_reference()


def _can_do_without(judge: type[Judge]) -> bool:
    return judge.without_reference is not Judge.without_reference
