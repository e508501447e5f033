"""The judge that marks milestones: a language model says of each whether a trace has established it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property, partial
from typing import Any, ClassVar

from exprl.component import choose, option
from exprl.config.fields import choices_in
from exprl.config.ranges import NonEmpty, Share, Tokens
from exprl.errors import ConfigError, JudgeError, PathError, RubricError
from exprl.files.disk import check_ordinary, local_path, reason
from exprl.judges.backends.base import Reply
from exprl.judges.base import Judge
from exprl.judges.marking import Asked, in_parts, kept
from exprl.judges.milestones import milestone_query
from exprl.judges.model_judge import ModelJudge
from exprl.judges.pairing import one_each
from exprl.judges.rubric_file import Entry, RubricFile, Wanted, read_entries
from exprl.judges.rubric_writing import writing_query, written_rubric
from exprl.judges.rubrics import Milestone, Rubric, own_rubrics
from exprl.judges.same_model import Weights
from exprl.judges.verdict import HIGHEST, LOWEST
from exprl.judges.yes_no import probability_of_yes
from exprl.models.provider import ModelProvider
from exprl.registry import JUDGES, MODELS
from exprl.resources import Resources
from exprl.terminal.progress import OnProgress, no_progress
from exprl.types import VIEWS, Judgement, JudgeRequest, Problem, Question, Scaffold

log = logging.getLogger(__name__)

NAMED = 3
"""Problems that a message names."""


@JUDGES.register("rubric")
class RubricJudge(ModelJudge):
    """Marks which milestones of the problem's rubric a trace has established, by a language model.

    A milestone is a question answered by one token, of which the probability of yes is read. The score is the weight of
    what is established: 1 + 4 times the sum of weight times probability. Rubrics come from the file `rubrics`, which
    `exprl rubric` makes of the references; without one from the column `rubric`, or else from the steps of the
    reference, one milestone each. Of several rubrics of a problem, one for each reference, the best counts. A problem
    whose rubric could not be made is a failed judgement.
    """

    rubrics: NonEmpty | None = option(
        default=None, help="file made by `exprl rubric`; null: the rows' column `rubric`, or else their steps"
    )
    monotone: bool = option(
        default=False,
        help="a milestone that a prefix of a rollout has established stays so in the longer ones: it is paid once",
    )
    max_missing: Share = option(
        default=0.05, help="a run whose problems lack a rubric more often than this share is refused"
    )
    model: ModelProvider | str | None = choose(
        MODELS, default=None, help="the judge's own model; null: the policy's, see weights"
    )
    weights: Weights = option(
        default="frozen", help="without a model of its own: frozen, the initial policy; live, the policy as it trains"
    )
    min_mass: Share = option(
        default=0.1, help="below this total probability of yes and no the judgement counts as unparseable"
    )
    max_new_tokens: Tokens = option(
        default=1024, help="length limit of a rubric in tokens, where `exprl rubric` has the model write it"
    )
    constrained: bool = option(default=False, help="make every rubric that is written have the form that is read")

    @classmethod
    def check_options(cls, config: Any) -> None:
        """Only the policy's weights train."""
        if config.model is not None and config.weights == "live":
            raise ConfigError("weights: live are the policy's, but `model` names another. Set weights: frozen.")

    @classmethod
    def check_fit(cls, config: Any, experiment: Any) -> None:
        """Also: segments that are shown alone have no order in which milestones could stay established."""
        super().check_fit(config, experiment)
        for path, choice in choices_in(experiment.reward, "reward"):
            alone = getattr(choice.config, "show", None) == "segment"
            if config.monotone and alone and any(within.config is config for _, within in choices_in(choice, path)):
                raise ConfigError(f"monotone: needs prefixes, but {path}.show is segment. Set one of them otherwise.")

    @classmethod
    def preflight(cls, config: Any) -> None:
        """The file must be there."""
        if config.rubrics is None:
            return
        path = local_path(config.rubrics, "rubrics")
        try:
            check_ordinary(path)
            path.open("rb").close()
        except OSError as error:
            raise PathError(
                f"rubrics: {path} cannot be read ({reason(error)}). `exprl rubric CONFIG --output {path}` makes it."
            ) from error

    def setup(self) -> None:
        """No rubric has been read yet."""
        super().setup()
        self._known: dict[Problem, tuple[Rubric, ...] | RubricError] = {}

    # -------------------------------------------------------------- rubrics

    def rubrics_of(self, problem: Problem) -> tuple[Rubric, ...]:
        """Those that a trace is marked by; raises `RubricError` where there is none, or a bad one."""
        if problem not in self._known:
            self._known[problem] = _rubrics(problem, self._file)
        found = self._known[problem]
        if isinstance(found, RubricError):
            raise found
        return found

    @cached_property
    def _file(self) -> RubricFile | None:
        return _read(self.rubrics)

    def write(self, rubrics: Sequence[Wanted], on_progress: OnProgress = no_progress) -> list[Entry]:
        """Have the model write rubrics, greedily, and read them strictly; one that fails is an entry that says why.

        `on_progress` is called with the number of rubrics written, or failed.

        Raises:
            ModelError: the model's chat template loses the message, or fails.
        """
        queries = [
            writing_query(one.problem.question.text, one.origin, self.max_new_tokens, constrained=self.constrained)
            for one in rubrics
        ]
        for query in queries[:1]:
            self.backend.check(query)
        replies = one_each(queries, self.backend.run(queries, on_progress), Reply, "the backend of judge 'rubric'")
        return [one.entry(partial(written_rubric, reply)) for one, reply in zip(rubrics, replies, strict=True)]

    # -------------------------------------------------------------- marking

    def judge(self, requests: Sequence[JudgeRequest], on_progress: OnProgress = no_progress) -> list[Judgement]:
        """One judgement a request; one whose problem has no rubric, or of which a question failed, has failed."""
        asked = [self._asked(request) for request in requests]
        queries = [query for one in asked for query in one.queries]
        answers: Iterator[Judgement] = iter(())
        if queries:
            report = in_parts(on_progress, len(queries), sum(not one.failed for one in asked))
            answers = iter(self.cache.run(self.backend, queries, self.judged, report))
        on_progress(sum(bool(one.failed) for one in asked))
        marked = [one.marked(answers) for one in asked]
        if self.monotone:
            marked = kept(requests, marked)
        return [one if isinstance(one, Judgement) else one.judgement() for one in marked]

    def judged(self, reply: Reply) -> Judgement:
        """One answer as a judgement, which is what is kept of it: 1 for no, 5 for yes."""
        yes = probability_of_yes(reply, self.min_mass)
        if yes is not None:
            return Judgement(score=LOWEST + (HIGHEST - LOWEST) * yes)
        if reply.status != "ok":
            return Judgement(score=None, status=reply.status, rationale=reply.text)
        note = f"yes and no have less of the probability than min_mass {self.min_mass:g}: {reply.probabilities}"
        return Judgement(score=None, status="unparseable", rationale=note)

    def start(self, requests: Sequence[JudgeRequest]) -> None:
        """Let the backend begin with requests that `judge` will be asked."""
        self.cache.start(self.backend, [query for request in requests for query in self._asked(request).queries])

    def _asked(self, request: JudgeRequest) -> Asked:
        try:
            rubrics = self.rubrics_of(request.problem)
        except RubricError as error:
            return Asked(rubrics=(), queries=(), failed=f"problem {request.problem.id!r} has no rubric: {error}")
        queries = tuple(milestone_query(request, milestone) for rubric in rubrics for milestone in rubric.milestones)
        return Asked(rubrics=rubrics, queries=queries)

    # -------------------------------------------------------------- a run

    def check(self, problems: Sequence[Problem]) -> None:
        """Raise `JudgeError` where too many problems have no rubric, or one leaves no room for any attempt."""
        _ = self._file  # a file that cannot be read is no matter of single problems
        found: list[tuple[Problem, tuple[Rubric, ...]]] = []
        missing: list[str] = []
        for problem in problems:
            try:
                found.append((problem, self.rubrics_of(problem)))
            except RubricError as error:
                missing.append(f"problem {problem.id!r}: {error}")
        if missing:
            self._tell_missing(missing, len(problems))
        for problem, rubrics in found[:1]:
            self.backend.check(milestone_query(_nothing_yet(problem), rubrics[0].milestones[0]))
        for problem, rubrics in found:
            self._check_room(problem, rubrics)

    @classmethod
    def check_data(cls, config: Any, problems: Sequence[Problem], resources: Resources) -> None:
        """Raise `JudgeError` where too many problems have no rubric."""
        super(Judge, cls).check_data(config, problems, resources)  # a row may have a rubric and no reference
        file = _read(config.rubrics)
        missing = [
            f"problem {p.id!r}: {known}" for p in problems if isinstance(known := _rubrics(p, file), RubricError)
        ]
        if len(missing) > config.max_missing * len(problems):
            raise JudgeError(_refused(missing, len(problems), config.max_missing))

    def texts(self) -> dict[str, str]:
        """The question about a milestone, and the model's chat template."""
        texts = {"the judge's chat template": self.backend.chat_template}
        for view in VIEWS:
            query = milestone_query(JudgeRequest(problem=_SLOTS, trace="{attempt}", view=view), _MILESTONE)
            texts[f"the judge's question for a {view}"] = f"{query.prompt.message}\n{query.reply_start}"
        return texts

    @classmethod
    def file_texts(cls, config: Any) -> dict[str, str]:
        """Which rubrics the file holds."""
        file = _read(config.rubrics)
        return super().file_texts(config) | ({f"the rubrics {file.name}": file.digests()} if file is not None else {})

    def without_reference(self, resources: Resources) -> Judge:
        """The same model, asked the same way by one rubric for all problems, which nothing but words goes into."""
        del resources
        return GenericRubricJudge.made(self.config, backend=self.backend)

    def _tell_missing(self, missing: Sequence[str], count: int) -> None:
        if len(missing) > self.max_missing * count:
            raise JudgeError(_refused(missing, count, self.max_missing))
        log.warning("%s Their judgements will have failed.", _without_rubric(missing, count))

    def _check_room(self, problem: Problem, rubrics: Iterable[Rubric]) -> None:
        milestones = [milestone for rubric in rubrics for milestone in rubric.milestones]
        longest = max(milestones, key=lambda milestone: len(milestone.title) + len(milestone.what))
        length, context = self.backend.room(milestone_query(_nothing_yet(problem), longest).prompt)
        if length is not None and context is not None and length >= context:
            raise JudgeError(
                f"problem {problem.id!r}: the question about milestone {longest.title!r} has {length} tokens before "
                f"any attempt, which leaves no room in the judge's context of {context}. Shorten the milestone, drop "
                "the row, or choose a judge with a longer context."
            )


def _read(rubrics: str | None) -> RubricFile | None:
    """The rubrics of a file; None: the rows bring theirs along."""
    if rubrics is None:
        return None
    path = local_path(rubrics, "rubrics")
    return RubricFile(read_entries(path), str(path))


def _rubrics(problem: Problem, file: RubricFile | None) -> tuple[Rubric, ...] | RubricError:
    """Those of a problem, or why it has none."""
    try:
        return own_rubrics(problem) if file is None else file.rubrics(problem)
    except RubricError as error:
        return error


def _without_rubric(missing: Sequence[str], count: int) -> str:
    more = f"; and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
    return f"judge 'rubric': {len(missing)} of {count} problems have no rubric. {'; '.join(missing[:NAMED])}{more}."


def _refused(missing: Sequence[str], count: int, share: float) -> str:
    return (
        f"{_without_rubric(missing, count)} `exprl rubric CONFIG --output FILE` makes rubrics of references, for "
        f"reward.judge.rubrics=FILE; mend them there, drop the rows, or raise max_missing ({share:g})."
    )


class GenericRubricJudge(RubricJudge):
    """The ablation: milestones that fit every problem, so that nothing of a reference is in them."""

    needs_reference: ClassVar[bool] = False

    def rubrics_of(self, problem: Problem) -> tuple[Rubric, ...]:
        """The same for all."""
        del problem
        return (GENERIC,)

    @cached_property
    def _file(self) -> RubricFile | None:
        return None

    def without_reference(self, resources: Resources) -> Judge:
        """Itself."""
        del resources
        return self


GENERIC = Rubric(
    (
        Milestone(
            title="Set-up", what="The problem is set up correctly: what is given and what is asked are understood."
        ),
        Milestone(title="First result", what="A first essential intermediate result is derived correctly."),
        Milestone(title="Main step", what="The main difficulty of the problem is overcome by a correct argument."),
        Milestone(
            title="Final answer", what="The final answer, or the conclusion to be proved, is reached and correct."
        ),
    )
)


def _nothing_yet(problem: Problem) -> JudgeRequest:
    return JudgeRequest(problem=problem, trace="")


_SLOTS = Problem(question=Question(problem_id="", text="{problem}"), scaffold=Scaffold())
_MILESTONE = Milestone(title="{title}", what="{what}")
"""Stand for every problem and milestone where only a prompt's own text is wanted."""
