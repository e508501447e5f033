"""The judge backend on the servers that sample: a judge that is the policy, as it trains or as it was."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from exprl.component import given
from exprl.engines.completions import Completion
from exprl.engines.http import RequestFailedError
from exprl.engines.servers.fleet import NoServerLeftError
from exprl.engines.vllm_server import VLLMServerEngine
from exprl.errors import ConfigError
from exprl.judges.backends.base import JudgeBackend, JudgeModel, Query, QueuedBackend, Reply
from exprl.judges.backends.served import reply_in, request_for
from exprl.judges.backends.setting import Setting
from exprl.judges.backends.tokens import JudgeTokenizer
from exprl.judges.prefixes import Prefix
from exprl.judges.prompting import JudgePrompt
from exprl.registry import BACKENDS
from exprl.terminal.progress import OnProgress
from exprl.terminal.wording import counted

if TYPE_CHECKING:
    from exprl.engines.servers.fleet import Address
    from exprl.resources import Resources

_Asked = tuple[Future[tuple[Completion, "Address"]], tuple[int, ...]]
"""A request under way, and the ids of the labels whose probabilities it asks for."""

_ALL_TRAINS = (
    "all of the policy trains, so the servers that sample no longer hold the frozen weights. Set weights: live; or "
    "lora.rank above 0, with which they keep the base; or say where else: backend.name=server (servers of its own) or "
    "backend.name=transformers (the trainer's process)."
)


@BACKENDS.register("vllm_server")
class VLLMServerBackend(QueuedBackend[_Asked]):
    """Asks the servers of `rollout.name=vllm_server`, which hold the policy's weights, while rollouts are sampled.

    Where only an adapter trains they hold the frozen initial policy, too: frozen weights are the base beside it.

    Prompts about one problem go where its beginning is in the prefix cache. What a server that dies leaves is asked of
    the others, or of one that is started again; a request that a server in good health refuses is a reply with status
    error or timeout.

    """

    overlaps: ClassVar[bool] = True

    engine: VLLMServerEngine = given(default=None, help="that samples; without one the backend is not open yet")
    live: bool = given(default=True, help="whether the judge's weights train; if not it asks the base of an adapter")

    def setup(self) -> None:
        """Frozen weights must be there."""
        super().setup()
        if self.engine is not None and not self.live and self.engine.base is None:
            raise ConfigError(f"backend 'vllm_server': {_ALL_TRAINS}")

    @property
    def is_open(self) -> bool:
        """Whether it has its engine."""
        return self.engine is not None

    @property
    def identity(self) -> str:
        """Model, precision, and how often it was updated."""
        base = "" if self.live else " without its adapter"
        return f"{self.engine.policy.name}{base} in {self.engine.precision} updated {counted(self.updates, 'time')}"

    @cached_property
    def tokens(self) -> JudgeTokenizer:
        """Of the policy."""
        return JudgeTokenizer(self.engine.policy.tokenizer, self.engine.policy.name)

    @classmethod
    def constrains(cls, config: Any, model: JudgeModel, setting: Setting) -> bool:
        """Always."""
        del config, model, setting
        return True

    @classmethod
    def check_model(cls, config: Any, model: JudgeModel, setting: Setting) -> None:
        """The servers hold the policy as it trains, beside an adapter the initial one, and nothing else."""
        del config
        judge = f"judge {model.judge!r}"
        if model.weights == "own":
            raise ConfigError(
                f"{judge}: the servers that sample hold the policy, but its model is one of its own. Set "
                "backend.name=server for servers of its own, or backend.name=transformers."
            )
        if setting.engine is None:
            return
        if not setting.samples_with_servers:
            raise ConfigError(f"{judge}: backend.name=vllm_server needs rollout.name=vllm_server.")
        if model.weights == "frozen" and not setting.adapter:
            raise ConfigError(f"{judge}: {_ALL_TRAINS}")

    @classmethod
    def open(cls, config: Any, model: JudgeModel, resources: Resources) -> JudgeBackend:
        """On the engine that samples."""
        cls.check_model(config, model, Setting.built(resources))
        return cls.made(config, engine=resources.need_engine(f"judge {model.judge!r}"), live=model.weights == "live")

    def room(self, prompt: JudgePrompt) -> tuple[int | None, int | None]:
        """The prompt's length in tokens, and the servers' longest sequence."""
        return len(self.tokens.encode(prompt)), self.engine.longest

    def run(self, queries: Sequence[Query], on_progress: OnProgress) -> list[Reply]:
        """See `JudgeBackend`; verdicts of weights other than these are refused, like rollouts of them."""
        replies = super().run(queries, on_progress)
        if queries:
            self.engine.check_answers()
        return replies

    def sync(self) -> None:
        """Weights that train are other ones now: what was begun with the old ones is dropped."""
        if self.live:
            self.updates += 1
            self.close()

    def close(self) -> None:
        """Drop what nobody waits for any more."""
        for request, _ in self._started.values():
            request.cancel()
        self._started.clear()

    def _submit(self, query: Query) -> _Asked:
        ids, label_ids = self.encoded(query)
        whose = {} if self.live else {"model": self.engine.base}
        return self.engine.ask(_beginning(query.prompt), {**request_for(query, ids), **whose}), label_ids

    def _answer(self, query: Query, work: _Asked) -> Reply:
        request, label_ids = work
        try:
            completion, address = request.result()
        except RequestFailedError as error:
            return Reply(status="timeout" if error.timed_out else "error", text=str(error))
        except NoServerLeftError as error:
            self.engine.go_on(error)
            return self._answer(query, self._submit(query))
        return reply_in(completion, query, label_ids, self.tokens, address)


def _beginning(prompt: JudgePrompt) -> tuple[bytes, ...]:
    """What tells the beginnings of prompts apart: what comes from outside before the attempt, which is last."""
    outside = [p.digest for p in prompt.pieces if not isinstance(p, Prefix) and not p.ours]
    attempt_is_text = not any(isinstance(piece, Prefix) for piece in prompt.pieces)
    return tuple(outside[:-1] if attempt_is_text and len(outside) > 1 else outside)
