"""Who says whether a trace shows a behaviour: patterns of words, or a language model that is asked.

Four behaviours, those the paper counts in traces:

- `verification`: it checks its own result or step.
- `self_correction`: it says that something it wrote is wrong.
- `backtracking`: it goes back to an earlier point of its own attempt.
- `exploration`: it tries another way, or starts again.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from exprl.component import Component, choose, option, required_choice, title_of
from exprl.config.ranges import Share
from exprl.evaluation.phrases import Finder
from exprl.judges.backends.base import JudgeBackend, JudgeModel, Query, Reply
from exprl.judges.backends.setting import Setting
from exprl.judges.pairing import one_each
from exprl.judges.prompting import compose, read_prompt
from exprl.judges.yes_no import instruction, probability_of_yes, yes_no
from exprl.models.provider import ModelProvider
from exprl.registry import BACKENDS, BEHAVIOURS, MODELS
from exprl.resources import Resources
from exprl.terminal.progress import OnProgress, no_progress

BEHAVIOUR_NAMES = ("verification", "self_correction", "backtracking", "exploration")

Shown = dict[str, bool | None]
"""Whether one trace shows each behaviour; None where that could not be found out."""


class BehaviourDetector(Component):
    """Says of each trace which behaviours it shows."""

    registered_family: ClassVar[str] = "behaviour"

    def texts(self) -> dict[str, str]:
        """The texts that shape its verdicts beside its config, by what they are: a run goes on with the same."""
        return {}

    @abstractmethod
    def detect(self, texts: Sequence[str], on_progress: OnProgress = no_progress) -> list[Shown]:
        """One verdict a text, in order, with every name of `BEHAVIOUR_NAMES`; `on_progress` is told of texts done."""


# ------------------------------------------------------------------ by words


@BEHAVIOURS.register("lexical")
class LexicalDetector(BehaviourDetector):
    """English phrases with which models do each of the four; cheap, and blind to what is not put in such words.

    It errs on both sides: a solution that quietly tries a second formula is missed, and a quoted "let me double-check"
    counts. Compare rates between runs rather than read one by itself.
    """

    def setup(self) -> None:
        """Compile the phrases."""
        self._finder = Finder()

    def detect(self, texts: Sequence[str], on_progress: OnProgress = no_progress) -> list[Shown]:
        """See `BehaviourDetector`; every verdict is given."""
        found: list[Shown] = []
        for text in texts:
            found.append({**self._finder.shown(text)})
            on_progress(1)
        return found


# ------------------------------------------------------------------ by a model

QUESTIONS: Mapping[str, str] = {
    "verification": "Does the writer check a result or a step of their own, for example by computing it a second way, "
    "or by putting it back into the problem?",
    "self_correction": "Does the writer state that something they wrote before is wrong, and change it?",
    "backtracking": "Does the writer give up the point they have reached and go back to an earlier one of the attempt?",
    "exploration": "Does the writer try a different way of solving the problem, or start the solution again?",
}
WORD = "Answer"


@BEHAVIOURS.register("judged")
class JudgedDetector(BehaviourDetector):
    """Asks a language model a yes-or-no question for each behaviour, and reads the probabilities of the two answers."""

    model: ModelProvider | str = required_choice(MODELS, help="the model that reads the traces")
    backend: JudgeBackend = choose(BACKENDS, default="transformers", help="who runs it")
    min_mass: Share = option(default=0.1, help="below this total probability of the two answers there is no verdict")

    def part(self, name: str, handed: Any, resources: Resources) -> Any:
        """The backend, open on a model of its own, beside the policy where there is one."""
        if name != "backend" or (handed is not None and handed.is_open):
            return super().part(name, handed, resources)
        provider: Any = self.model  # built: an option of its type may be text as well
        model = replace(self._model(self.config), provider=provider)
        return self.config.backend.cls.open(self.config.backend.config, model, resources)

    def setup(self) -> None:
        """See that the model can be asked."""
        self.backend.check(query("", BEHAVIOUR_NAMES[0]))

    @classmethod
    def check_fit(cls, config: Any, experiment: Any) -> None:
        """Its backend must be able to run its model in this run."""
        config.backend.cls.check_model(config.backend.config, cls._model(config), Setting.planned(experiment))

    def detect(self, texts: Sequence[str], on_progress: OnProgress = no_progress) -> list[Shown]:
        """See `BehaviourDetector`; a failed or undecided answer is None."""
        queries = [query(text, name) for text in texts for name in BEHAVIOUR_NAMES]
        replies = self.backend.run(queries, no_progress)
        answers = iter(one_each(queries, replies, Reply, f"judge backend {title_of(self.backend)}"))
        found: list[Shown] = []
        for _ in texts:
            found.append({name: self._verdict(next(answers)) for name in BEHAVIOUR_NAMES})
            on_progress(1)
        return found

    def texts(self) -> dict[str, str]:
        """The questions, and the model's chat template."""
        questions = "\n\n".join(query("{attempt}", name).prompt.message for name in BEHAVIOUR_NAMES)
        return {
            "the questions about behaviours": questions,
            "the chat template of their judge": self.backend.chat_template,
        }

    @classmethod
    def _model(cls, config: Any) -> JudgeModel:
        return JudgeModel(weights="own", own=config.model, judge=f"{cls.registered_name} (behaviour)")

    def _verdict(self, reply: Reply) -> bool | None:
        yes = probability_of_yes(reply, self.min_mass)
        return None if yes is None else yes > 0.5


def query(text: str, behaviour: str) -> Query:
    """The question about one behaviour of one trace; the trace comes last in the shared part, the question after it."""
    asked = {"question": QUESTIONS[behaviour], "verdict": instruction(WORD)}
    return yes_no(compose(read_prompt("behaviour"), asked, {"attempt": text}), WORD)
