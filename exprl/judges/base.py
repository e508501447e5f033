"""The judge contract."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from exprl.component import Stateful, title_of
from exprl.errors import ConfigError, JudgeError
from exprl.resources import Resources
from exprl.terminal.progress import OnProgress, no_progress
from exprl.types import Judgement, JudgeRequest, Problem


class Judge(Stateful):
    """Grades traces on the Likert scale 1-5. The only side of a run, with verifiers, that reveals a scaffold."""

    registered_family: ClassVar[str] = "judge"

    needs_reference: ClassVar[bool] = True
    reads_all_problems: ClassVar[bool] = False
    """Whether what it says of one depends on which others the run has. Stored rollouts are then graded again only with
    all problems as they were, not just those that were attempted."""

    @classmethod
    def reads_references(cls, config: Any) -> bool:
        """Whether it reads reference solutions with these options; a run in which nothing does holds none."""
        del config
        return cls.needs_reference

    @classmethod
    def preflight_without_reference(cls, config: Any) -> None:
        """Raise what `preflight` would, for what `without_reference` makes of it."""
        del config

    def without_reference(self, resources: Resources) -> Judge:
        """Who grades in its place where no reference may be seen: from problem and attempt alone, or the verifier.

        Judges that have such a form define it, and `no_reference` can stand around them.

        Raises:
            ConfigError: it has none, or lacks something of the run.
        """
        del resources
        raise ConfigError(f"judge {title_of(self)} cannot grade without a reference: it defines no without_reference.")

    @classmethod
    def graded_by(cls, config: Any, problems: Sequence[Problem], seed: int) -> Sequence[Problem]:
        """For each of a run's problems the one by whose scaffold attempts at it are judged: the problem itself."""
        del config, seed
        return problems

    @abstractmethod
    def judge(self, requests: Sequence[JudgeRequest], on_progress: OnProgress = no_progress) -> list[Judgement]:
        """One judgement a request, in order. A failed one is returned with its status, never raised or scored 0.

        `on_progress` is called with the number of requests judged as they are, for a progress bar.
        """

    def start(self, requests: Sequence[JudgeRequest]) -> None:
        """A hint that `judge` will be asked about these soon: a judge that can works on them from now on."""

    def check(self, problems: Sequence[Problem]) -> None:
        """Raise `JudgeError`, naming the first problem that lacks what this judge needs, before a run starts."""
        if self.reads_references(self.config):
            _check_references(problems, title_of(self))

    @classmethod
    def check_data(cls, config: Any, problems: Sequence[Problem], resources: Resources) -> None:
        """Every problem needs a reference where the judge reads it; raises `JudgeError`."""
        super().check_data(config, problems, resources)
        if cls.reads_references(config):
            _check_references(problems, repr(cls.registered_name))


def _check_references(problems: Sequence[Problem], judge: str) -> None:
    for problem in problems:
        if problem.scaffold.reference is None:
            raise JudgeError(
                f"problem {problem.id!r} has no reference solution, but judge {judge} needs one. "
                "Add it, drop the row, or use the judge 'no_reference' or the reward 'sparse'."
            )
