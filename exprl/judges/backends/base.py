"""What a judge needs of a language model, whoever runs it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar

from exprl.component import Choice, Stateful
from exprl.errors import ConfigError
from exprl.judges.backends.setting import Setting
from exprl.judges.backends.tokens import JudgeTokenizer
from exprl.judges.prompting import JudgePrompt
from exprl.terminal.progress import OnProgress
from exprl.types import JudgementStatus

if TYPE_CHECKING:
    from exprl.models.provider import ModelProvider
    from exprl.resources import Resources


@dataclass(frozen=True, kw_only=True)
class Query:
    """One prompt and what is wanted of the reply.

    Attributes:
        prompt: the message.
        max_new_tokens: length limit of the greedy reply; 0 where labels are given.
        labels: instead of a reply, the probability of each of them right after `reply_start`.
        reply_start: how the reply is made to begin.
        pattern: a regular expression the reply is made to match; empty: none. Only backends that constrain take one.
    """

    prompt: JudgePrompt
    max_new_tokens: int = 0
    labels: tuple[str, ...] = ()
    reply_start: str = ""
    pattern: str = ""


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What came back for one query.

    Attributes:
        text: the reply, or what went wrong where `status` is not ok.
        status: ok, or timeout, error, empty.
        probabilities: of each label, where labels were asked for; their sum is at most 1.
        finished: whether the model itself ended a written reply; False where it was cut off, or nobody knows.
    """

    text: str = ""
    status: JudgementStatus = "ok"
    probabilities: tuple[float, ...] = ()
    finished: bool = False


@dataclass(frozen=True, kw_only=True)
class JudgeModel:
    """Whose weights a judge runs on: the initial policy, the policy as it trains, or a model of its own."""

    weights: Literal["frozen", "live", "own"]
    own: Choice | None = None
    provider: ModelProvider | None = None
    """What `own` chooses, where it is built."""
    judge: str = ""
    """The judge's registered name, for messages."""


class JudgeBackend(Stateful):
    """Runs a judge's model. Failures of single queries are replies with a status, never raised."""

    registered_family: ClassVar[str] = "backend"

    updates = 0
    """Policy updates that live weights have seen."""

    @property
    def identity(self) -> str:
        """Names model and weights: the same identity and the same query give the same reply."""
        return ""

    def check_handed(self, model: JudgeModel) -> None:
        """Raise `ConfigError` where this open backend is none for a judge of such a model."""
        self.check_model(self.config, model, Setting())
        trains = getattr(self, "live", False)
        if model.weights != "own" and trains != (model.weights == "live"):
            raise ConfigError(
                f"judge {model.judge!r}: weights={model.weights!r}, but its backend has live={trains}. "
                f"Pass weights={'live' if trains else 'frozen'!r}, or live={not trains} to the backend."
            )

    @property
    def is_open(self) -> bool:
        """Whether it stands on a model; one that holds options alone is opened by the judge it is handed to."""
        return True

    @property
    def tokens(self) -> JudgeTokenizer | None:
        """Makes token ids of prompts, where this side does."""
        return None

    @classmethod
    def constrains(cls, config: Any, model: JudgeModel, setting: Setting) -> bool:
        """Whether it can make a reply of the model match `Query.pattern` in such a run."""
        del config, model, setting
        return False

    @classmethod
    def check_model(cls, config: Any, model: JudgeModel, setting: Setting) -> None:
        """Raise `ConfigError` where this backend cannot run the model in such a run: before loading, and by `open`."""
        del config, model, setting

    @classmethod
    @abstractmethod
    def open(cls, config: Any, model: JudgeModel, resources: Resources) -> JudgeBackend:
        """On the model, loaded and ready; raises `ConfigError` where this backend cannot run it."""

    @abstractmethod
    def run(self, queries: Sequence[Query], on_progress: OnProgress) -> list[Reply]:
        """The reply to each query, in order; `on_progress` is called with the number answered as they are."""

    @abstractmethod
    def room(self, prompt: JudgePrompt) -> tuple[int | None, int | None]:
        """The prompt's length in tokens, and the model's context length; None for what is not known."""

    def encoded(self, query: Query) -> tuple[list[int], tuple[int, ...]]:
        """The ids of a query up to where the reply (to labels: the label) begins, and the ids of its labels.

        Raises:
            ModelError: the chat template loses the message, or fails.
            JudgeError: labels are no single tokens there, or the template makes the model think before an answer.
        """
        assert self.tokens is not None
        if query.labels:
            return self.tokens.encode_for_labels(query.prompt, query.reply_start, query.labels)
        return self.tokens.encode(query.prompt, thinking=not query.pattern), ()

    @property
    def chat_template(self) -> str:
        """The source of the model's chat template, where this side applies it."""
        return self.tokens.template if self.tokens is not None else ""

    def check(self, query: Query) -> None:
        """Raise as `encoded` does, before a run starts; every query of a run is made like this one."""
        if self.tokens is not None:
            self.encoded(query)

    def start(self, queries: Sequence[Query]) -> None:
        """A hint that `run` will ask these soon: a backend that can works on them from now on."""


W = TypeVar("W")


class QueuedBackend(JudgeBackend, Generic[W]):
    """Queries are under way from `start` on, each as a `W`, and collected by `run`."""

    def setup(self) -> None:
        """Nothing is under way."""
        super().setup()
        self._started: dict[Query, W] = {}

    def start(self, queries: Sequence[Query]) -> None:
        """Begin them now; `run` collects the answers."""
        for query in queries:
            if query not in self._started:
                self._started[query] = self._submit(query)

    def run(self, queries: Sequence[Query], on_progress: OnProgress) -> list[Reply]:
        """See `JudgeBackend`; equal queries are asked once."""
        self.start(queries)
        replies: dict[Query, Reply] = {}
        for query in queries:
            if query not in replies:
                replies[query] = self._answer(query, self._started.pop(query))
            on_progress(1)
        return [replies[query] for query in queries]

    @abstractmethod
    def _submit(self, query: Query) -> W:
        """Begin one query."""

    @abstractmethod
    def _answer(self, query: Query, work: W) -> Reply:
        """Wait for what was begun."""
