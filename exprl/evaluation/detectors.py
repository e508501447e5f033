"""Who says whether a trace shows a behaviour: patterns of words, or a language model that is asked.

Four behaviours, those the paper counts in traces:

- `verification`: it checks its own result or step.
- `self_correction`: it says that something it wrote is wrong.
- `backtracking`: it goes back to an earlier point of its own attempt.
- `exploration`: it tries another way, or starts again.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from exprl.component import Component, choose, option, required_choice
from exprl.config.ranges import Share
from exprl.judges.backends.base import JudgeBackend, JudgeModel, Query, Reply
from exprl.judges.backends.setting import Setting
from exprl.judges.pairing import one_each
from exprl.judges.prompting import compose, read_prompt
from exprl.models.provider import ModelProvider
from exprl.registry import BACKENDS, BEHAVIOURS, MODELS
from exprl.resources import Resources
from exprl.terminal.progress import OnProgress, no_progress

BEHAVIOUR_NAMES = ("verification", "self_correction", "backtracking", "exploration")

Shown = dict[str, bool | None]
"""Whether one trace shows each behaviour; None where that could not be found out."""


class BehaviourDetector(Component):
    """Says of each trace which behaviours it shows."""

    def texts(self) -> dict[str, str]:
        """The texts that shape its verdicts beside its config, by what they are: a run goes on with the same."""
        return {}

    @abstractmethod
    def detect(self, texts: Sequence[str], on_progress: OnProgress = no_progress) -> list[Shown]:
        """One verdict a text, in order, with every name of `BEHAVIOUR_NAMES`; `on_progress` is told of texts done."""


# ------------------------------------------------------------------ by words

# Problems are full of people who check, return and try again. So a pattern asks for the writer (`let me`, `we should`)
# or for something only a solution has (`my answer`, `step 3`, `another method`).
_WE = (
    r"\b(?:let me|let's|let us|(?:i|we)(?:'ll| will| can| could| should| must| need to| have to)?) "
    r"(?:just |now |also |quickly |instead |perhaps |actually |first )*"
)
_SAYS = r"(?:^|[.!?:\n]\s*)(?:(?:so|now|okay|ok|hmm|wait|but|no)[,. ]+)*"  # where a sentence or line begins
_WORK = (
    r"(?:final |last |previous )?(?:answers?|results?|work|working|calculations?|computation|arithmetic|algebra|"
    r"solutions?|steps?|reasoning|equations?|conditions?)\b"
)
_WAY = r"(?:approach|method|way|strategy|idea|path|angle|route|technique|formula|substitution)\b"
_OTHER = r"(?:a |an |some |the )?(?:\w+ )?(?:different|another|other|alternative|new|fresh)"
_EARLIER = (
    r"(?:step|equation|line|case|(?:the|my|our) (?:previous|earlier|original|first|last|start|beginning|definition))\b"
)
_WRONG = (
    r"(?:(?:'s| is| was| looks| seems) (?:wrong|incorrect|not right|not correct|a mistake|an error|off)|"
    r" (?:isn't|can't be|cannot be|doesn't look) (?:right|correct))\b"
)

PATTERNS: Mapping[str, tuple[str, ...]] = {
    "verification": (
        rf"{_WE}(?:double|re|cross|sanity)[- ]?check\b",
        rf"{_WE}(?:verify|confirm|check) (?:if |whether |that |this\b|it\b|each step)",
        rf"\b(?:check|verify|confirm|test)(?:ing)? (?:this|that|my|our|the|these|each|both) {_WORK}",
        rf"\b(?:double|re|cross|sanity)[- ]?check(?:ing)? (?:my|our|this|that|the) {_WORK}",
        r"\b(?:plug|put|substitut)\w* (?:this|that|it|them|these|the \w+|[a-z] ?= ?\S+) back\b",
        r"\b(?:as a (?:quick |sanity )?|quick |sanity )check\b",
        rf"{_SAYS}(?:check|verification)\s*:",
        r"\b(?:which|this) (?:checks out|confirms (?:the|my|our|that))\b",
    ),
    "self_correction": (
        r"\b(?:i|we)(?:'ve| have)? made (?:a|an|some|the|another) (?:\w+ )?(?:mistake|error|slip)\b",
        r"\b(?:i|we)(?:'ve| have)? (?:mis(?:calculated|read|counted|computed|stated|applied)|mixed up)\b",
        r"\b(?:i|we) (?:was|were|am) (?:wrong|mistaken|incorrect)\b",
        r"\bmy (?:mistake|error|bad)\b",
        rf"{_SAYS}(?:oops|correction|scratch that)\b",
        rf"\b(?:wait|hmm|no|oops|actually)\b[,.! ]+(?:no[, ]+)?(?:that|this|it){_WRONG}",
        rf"{_SAYS}(?:that|this){_WRONG}",
        rf"{_WE}(?:fix|correct|redo|recompute|recalculate) (?:this|that|it|my|the|these)\b",
    ),
    "backtracking": (
        rf"{_WE}(?:go|step|turn|come|jump) back to {_EARLIER}",
        rf"{_WE}(?:go|step) back(?: and\b|[.,:;]| a (?:step|bit|moment))",
        rf"{_WE}(?:backtrack|rewind|retrace|undo)\b",
        rf"\b(?:going|stepping|turning|returning) (?:back )?to {_EARLIER}",
        rf"{_WE}return to {_EARLIER}",
        rf"{_SAYS}(?:back to {_EARLIER}|backtracking\b)",
        r"\b(?:i|we|this|it)(?:'ve| have| has|'s)? (?:reached|hit|is|at|leads to|led to) a dead end\b",
        r"\bthis(?: path| route| approach| way)? (?:leads|led|goes|gets us|is getting us) nowhere\b",
    ),
    "exploration": (
        rf"{_WE}(?:try|consider|use|take|explore|look for|think of|find|attempt) {_OTHER} {_WAY}",
        rf"{_WE}(?:approach|attack|look at|think about|see) (?:this|it|the problem) (?:differently\b|another way\b|"
        r"(?:from|in) (?:a different|another)\b)",
        rf"\b(?:another|a different|an alternative) {_WAY} (?:is|would be|might|could|to (?:solve|see|do|get))\b",
        rf"{_WE}(?:start|begin) (?:all )?(?:over|again|afresh|anew|from scratch)\b",
        rf"{_SAYS}(?:starting|beginning) (?:all )?(?:over|again|afresh|anew|from scratch)\b",
        rf"{_SAYS}(?:alternatively\b|another {_WAY})",
        r"\bwhat if (?:i|we) (?:try|tried|use|used|consider|instead|start|started|rewrite|rewrote)\b",
        rf"{_WE}try (?:something else|again|instead)\b",
    ),
}


@BEHAVIOURS.register("lexical")
class LexicalDetector(BehaviourDetector):
    """English phrases with which models do each of the four; cheap, and blind to what is not put in such words.

    It errs on both sides: a solution that quietly tries a second formula is missed, and a quoted "let me double-check"
    counts. Compare rates between runs rather than read one by itself.
    """

    def setup(self) -> None:
        """Compile the phrases."""
        self._patterns = {
            name: re.compile("|".join(f"(?:{pattern})" for pattern in patterns), re.MULTILINE)
            for name, patterns in PATTERNS.items()
        }

    def detect(self, texts: Sequence[str], on_progress: OnProgress = no_progress) -> list[Shown]:
        """See `BehaviourDetector`; every verdict is given."""
        found: list[Shown] = []
        for text in texts:
            plain = normal(text)
            found.append({name: pattern.search(plain) is not None for name, pattern in self._patterns.items()})
            on_progress(1)
        return found


def normal(text: str) -> str:
    r"""Lower case, straight apostrophes, one space between words; lines stay, since some patterns begin one.

    >>> normal("Let’s  CHECK\nthis")
    "let's check\nthis"
    """
    return re.sub(r"[ \t]+", " ", text.lower().replace("\u2019", "'"))


# ------------------------------------------------------------------ by a model

QUESTIONS: Mapping[str, str] = {
    "verification": "Does the writer check a result or a step of their own, for example by computing it a second way, "
    "or by putting it back into the problem?",
    "self_correction": "Does the writer state that something they wrote before is wrong, and change it?",
    "backtracking": "Does the writer give up the point they have reached and go back to an earlier one of the attempt?",
    "exploration": "Does the writer try a different way of solving the problem, or start the solution again?",
}
LABELS = ("Y", "N")
REPLY_START = "Answer: "


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
        return self.config.backend.cls.open(self.config.backend.config, self._model(self.config), resources)

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
        answers = iter(one_each(queries, replies, Reply, f"judge backend {self.backend.registered_name!r}"))
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
        # `not >=`: NaN is no verdict either
        if reply.status != "ok" or not sum(reply.probabilities) >= self.min_mass:
            return None
        yes, no = reply.probabilities
        return yes > no


def query(text: str, behaviour: str) -> Query:
    """The question about one behaviour of one trace; the trace comes last in the shared part, the question after it."""
    prompt = compose(read_prompt("behaviour"), {"question": QUESTIONS[behaviour]}, {"attempt": text})
    return Query(prompt=prompt, labels=LABELS, reply_start=REPLY_START)
