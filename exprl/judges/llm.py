"""Judges that ask a language model for a level from 1 to 5."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from exprl.component import option, title_of
from exprl.config.ranges import NonEmpty, Share, Tokens
from exprl.errors import ConfigError, JudgeError
from exprl.judges.backends.base import Query, Reply
from exprl.judges.base import Judge
from exprl.judges.model_judge import ModelJudge
from exprl.judges.prefixes import prefix_of
from exprl.judges.prompting import JudgePrompt, compose, read_prompt
from exprl.judges.scoring import SHORTEST_CONSTRAINED, Scoring, judgement_of, query_for, reply_instructions
from exprl.judges.templates import read_template
from exprl.judges.verdict import without_claims
from exprl.resources import Resources
from exprl.terminal.progress import OnProgress, no_progress
from exprl.types import VIEWS, Hidden, Judgement, JudgeRequest, Problem, Question, Scaffold


class LLMJudge(ModelJudge):
    """Grades with a language model, by its rationale or by the probabilities it gives the scores."""

    scoring: Scoring = option(
        default="expected",
        help="expected: mean score under the probabilities of 1..5, one token; rationale: let it write first",
    )
    max_new_tokens: Tokens = option(default=512, help="length limit of a rationale in tokens (the paper: 2048)")
    constrained: bool = option(
        default=False,
        help="rationale: make every reply end in a score; its text then has at most max_new_tokens characters",
    )
    min_mass: Share = option(
        default=0.01,
        help="expected: below this total probability of the five scores the judgement counts as unparseable",
    )

    prompt: NonEmpty = option(
        default="math",
        help="what it is told: math, science or code, or a text file of your own with the same places; under "
        "no_reference the one beside it whose name ends in _no_reference",
    )

    @classmethod
    def check_options(cls, config: Any) -> None:
        """Only a rationale can be constrained, and it needs room."""
        if config.constrained and (config.scoring != "rationale" or config.max_new_tokens < SHORTEST_CONSTRAINED):
            raise ConfigError(
                f"constrained: needs scoring: rationale and max_new_tokens of at least {SHORTEST_CONSTRAINED}, but "
                f"they are {config.scoring} and {config.max_new_tokens}."
            )

    @classmethod
    def preflight(cls, config: Any) -> None:
        """Its prompt must be there, with the places that are filled."""
        read_template(config.prompt, reference=cls.needs_reference)

    @classmethod
    def file_texts(cls, config: Any) -> dict[str, str]:
        """Its prompt as it stands in the file."""
        prompt = f"the judge's prompt {config.prompt}"
        return super().file_texts(config) | {prompt: read_template(config.prompt, reference=cls.needs_reference)}

    def setup(self) -> None:
        """Read the prompt: a run has one, whatever becomes of the file."""
        super().setup()
        self.template = read_template(self.config.prompt, reference=self.needs_reference)

    @abstractmethod
    def contents(self, problem: Problem) -> Mapping[str, str]:
        """What of the problem the judge is shown, by the slot of the template."""

    def judge(self, requests: Sequence[JudgeRequest], on_progress: OnProgress = no_progress) -> list[Judgement]:
        """One judgement a request; prompts beyond the model's context come back with status `error`."""
        return self.cache.run(self.backend, [self.query(request) for request in requests], self.judged, on_progress)

    def judged(self, reply: Reply) -> Judgement:
        """The judgement in a reply."""
        return judgement_of(reply, self.scoring, self.min_mass)

    def start(self, requests: Sequence[JudgeRequest]) -> None:
        """Let the backend begin with requests that `judge` will be asked."""
        self.cache.start(self.backend, [self.query(request) for request in requests])

    def texts(self) -> dict[str, str]:
        """The prompts with the beginning of the reply, and the model's chat template."""
        texts = {"the judge's chat template": self.backend.chat_template}
        for view in VIEWS:
            query = self.query(JudgeRequest(problem=_SLOTS, trace="{attempt}", view=view))
            texts[f"the judge's prompt for a {view}"] = f"{query.prompt.message}\n{query.reply_start}"
        return texts

    def query(self, request: JudgeRequest) -> Query:
        """What the backend is asked for one request."""
        config = self.config
        return query_for(
            self.prompt_for(request), config.scoring, config.max_new_tokens, constrained=config.constrained
        )

    def prompt_for(self, request: JudgeRequest) -> JudgePrompt:
        """The prompt for one request: the attempt comes last, so that prompts for longer prefixes continue it."""
        return compose(
            self.template,
            instructions={"view": read_prompt(request.view), "reply": reply_instructions(self.scoring)},
            contents={**self.contents(request.problem), "attempt": prefix_of(request).made(without_claims)},
        )

    def check(self, problems: Sequence[Problem]) -> None:
        """Also raise where the model cannot be asked so, or a prompt without any attempt exceeds its context."""
        super().check(problems)
        for problem in problems[:1]:
            self.backend.check(self.query(JudgeRequest(problem=problem, trace="")))
        reply = self.max_new_tokens if self.scoring == "rationale" else 0
        for problem in problems:
            length, context = self.backend.room(self.prompt_for(JudgeRequest(problem=problem, trace="")))
            if length is not None and context is not None and length + reply >= context:
                raise JudgeError(
                    f"problem {problem.id!r}: the judge's prompt has {length} tokens before any attempt, which with "
                    f"{reply} for the reply leaves no room in the judge's context of {context}. Drop the row, lower "
                    "max_new_tokens, or choose a judge with a longer context."
                )


_SLOTS = Problem(
    question=Question(problem_id="", text="{problem}"),
    scaffold=Scaffold(reference=Hidden("{reference}"), answer=Hidden("{answer}"), steps=Hidden(("{step}",))),
)
"""Stands for every problem where only a prompt's own text is wanted."""


class ReferenceJudge(LLMJudge):
    """A language model that sees the problem, the reference solution and the attempt."""

    def contents(self, problem: Problem) -> Mapping[str, str]:
        """Problem and reference."""
        reference = problem.scaffold.reference
        if reference is None:
            raise JudgeError(f"problem {problem.id!r} has no reference solution for judge {title_of(self)}.")
        return {"problem": problem.question.text, "reference": reference.reveal()}

    @classmethod
    def preflight_without_reference(cls, config: Any) -> None:
        """The prompt that shows no reference must be there."""
        UnaidedJudge.preflight(config)

    def without_reference(self, resources: Resources) -> Judge:
        """The same model, asked the same way by the prompt that shows none."""
        del resources
        return UnaidedJudge.made(self.config, backend=self.backend)


class UnaidedJudge(LLMJudge):
    """A language model that sees the problem and the attempt: the same rubric, and no reference solution."""

    needs_reference: ClassVar[bool] = False

    def contents(self, problem: Problem) -> Mapping[str, str]:
        """The question, and nothing of the scaffold."""
        return {"problem": problem.question.text}

    def without_reference(self, resources: Resources) -> Judge:
        """Itself: it is shown none."""
        del resources
        return self
