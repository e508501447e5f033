"""The judge backend that asks an OpenAI-compatible server, for judges on other machines or shared by several runs."""

from __future__ import annotations

from concurrent.futures import Future
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from exprl.component import given, option
from exprl.engines.completions import Completion
from exprl.engines.http import CompletionServer, RequestFailedError, ServerDeadError, ServerOptions
from exprl.errors import ConfigError, JudgeError
from exprl.judges.backends.base import JudgeBackend, JudgeModel, Query, QueuedBackend, Reply
from exprl.judges.backends.served import reply_in, request_for
from exprl.judges.backends.setting import Setting
from exprl.judges.backends.tokens import JudgeTokenizer
from exprl.judges.backends.transformers import provider_of
from exprl.judges.prompting import JudgePrompt
from exprl.registry import BACKENDS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from exprl.resources import Resources

_Asked = tuple[Future[Completion], tuple[int, ...]]
"""A request under way, and the ids of the labels whose probabilities it asks for."""


@BACKENDS.register("server")
class ServerBackend(ServerOptions, QueuedBackend[_Asked]):
    """Asks a server such as vLLM's: concurrent requests, retries with back-off, a time limit on every wait.

    Prompts go as token ids to `/completions`, made with the judge model's own tokenizer, so that text from outside can
    spell no control token. A request that still fails after its retries, or is answered with anything but a completion,
    is a reply with status timeout or error; a server that is dead ends the call with a `JudgeError`.

    """

    overlaps: ClassVar[bool] = True

    structured_outputs: bool = option(
        default=False, help="whether the server understands vLLM's structured_outputs, which constrained=true needs"
    )

    tokenizer: PreTrainedTokenizerBase = given(
        default=None, help="of the served model; without one the backend is not open yet"
    )

    def setup(self) -> None:
        """See that the server can be asked at all."""
        super().setup()
        if self.is_open:
            self._server = CompletionServer(self)

    @property
    def is_open(self) -> bool:
        """Whether it has its tokenizer."""
        return self.tokenizer is not None

    @property
    def identity(self) -> str:
        """The model's name, and where it is."""
        return f"{self.model} at {self.url}"

    @cached_property
    def tokens(self) -> JudgeTokenizer:
        """Of the served model."""
        return JudgeTokenizer(self.tokenizer, self.model)

    @classmethod
    def constrains(cls, config: Any, model: JudgeModel, setting: Setting) -> bool:
        """Where the server can."""
        del model, setting
        return bool(config.structured_outputs)

    @classmethod
    def check_model(cls, config: Any, model: JudgeModel, setting: Setting) -> None:
        """Live weights are not the server's."""
        del config, setting
        if model.weights == "live":
            raise ConfigError(
                f"judge {model.judge!r}: a server's weights cannot follow the policy. Set weights: frozen, or another "
                "backend."
            )

    @classmethod
    def open(cls, config: Any, model: JudgeModel, resources: Resources) -> JudgeBackend:
        """With the tokenizer of the policy, or of the model the judge names (of which only that is loaded)."""
        cls.check_model(config, model, Setting.built(resources))
        if model.weights == "own":
            return cls.made(config, tokenizer=provider_of(model, resources).load_tokenizer())
        return cls.made(config, tokenizer=resources.need_policy(f"judge {model.judge!r}").tokenizer)

    def room(self, prompt: JudgePrompt) -> tuple[int | None, int | None]:
        """The prompt's length in tokens, and the context length where the config gives it."""
        return len(self.tokens.encode(prompt)), self.context_length

    def close(self) -> None:
        """Drop what nobody waits for any more."""
        for request, _ in self._started.values():
            request.cancel()
        self._started.clear()

    def check(self, query: Query) -> None:
        """Also raise `JudgeError` where the server gives no answer or refuses the key."""
        super().check(query)
        try:
            self._server.knock()
        except RequestFailedError as error:
            raise JudgeError(f"judge server {error} (reward.judge.backend)") from None

    def _submit(self, query: Query) -> _Asked:
        """The request under way, and the ids of the labels whose probabilities it asks for."""
        ids, label_ids = self.encoded(query)
        return self._server.submit(**request_for(query, ids)), label_ids

    def _answer(self, query: Query, work: _Asked) -> Reply:
        request, label_ids = work
        try:
            completion = request.result()
        except ServerDeadError as error:  # no single query's failure: each further one would wait in vain
            raise JudgeError(f"judge server {error} (reward.judge.backend)") from None
        except RequestFailedError as error:
            return Reply(status="timeout" if error.timed_out else "error", text=str(error))
        return reply_in(completion, query, label_ids, self.tokens, self.url)
