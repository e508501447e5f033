"""The judge backend on vLLM: on the engine that samples, or on one of its own."""

from __future__ import annotations

import math
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any

from exprl.component import given, option
from exprl.config.ranges import Range
from exprl.engines.ends import ends_of
from exprl.engines.vllm import VLLMEngine
from exprl.engines.vllm_options import HostOptions, check_installed
from exprl.engines.vllm_requests import Ticket
from exprl.errors import ConfigError
from exprl.judges.backends.base import JudgeBackend, JudgeModel, Query, QueuedBackend, Reply
from exprl.judges.backends.setting import Setting
from exprl.judges.backends.tokens import JudgeTokenizer
from exprl.judges.backends.transformers import load_own
from exprl.judges.prompting import JudgePrompt
from exprl.registry import BACKENDS
from exprl.terminal.wording import counted

if TYPE_CHECKING:
    from exprl.engines.vllm_host import VLLMHost
    from exprl.resources import Resources


@BACKENDS.register("vllm")
class VLLMBackend(HostOptions, QueuedBackend[Ticket | Reply]):
    """Runs a judge in vLLM, while rollouts are still being sampled.

    Live weights are those of the sampling engine, so the judge shares it; so are frozen ones where only an adapter
    trains: the judge then asks the base. Other frozen weights and a model of its own take a second engine in this
    process. The prompts for the prefixes of one rollout begin alike, and vLLM's prefix cache computes what they share
    once.

    """

    gpu_memory_utilization: Annotated[float, Range(gt=0, lt=1)] = option(
        default=0.3, help="share of a GPU's memory for the judge's own engine"
    )

    host: VLLMHost = given(default=None, help="the engine; without one the backend is not open yet")
    live: bool = given(default=False, help="whether the judge's weights train")
    shared: bool = given(
        default=False,
        help="whether the engine is the rollouts'; shared but not live asks the base of a model with an adapter",
    )

    @property
    def is_open(self) -> bool:
        """Whether it has its engine."""
        return self.host is not None

    @cached_property
    def tokens(self) -> JudgeTokenizer:
        """Of the engine's model."""
        return JudgeTokenizer(self.host.language_model.tokenizer, self.host.language_model.name)

    @property
    def _shared(self) -> bool:
        return self.shared or self.live

    @classmethod
    def preflight(cls, config: Any) -> None:
        """VLLM must be there."""
        del config
        check_installed()

    @classmethod
    def constrains(cls, config: Any, model: JudgeModel, setting: Setting) -> bool:
        """Always."""
        del config, model, setting
        return True

    @classmethod
    def check_model(cls, config: Any, model: JudgeModel, setting: Setting) -> None:
        """Live weights are in the engine of the rollouts alone."""
        del config
        if model.weights == "live" and setting.engine is not None and not setting.samples_with_vllm:
            raise ConfigError(
                f"judge {model.judge!r}: live weights in vLLM need rollout.name=vllm, whose engine holds them."
            )

    @classmethod
    def open(cls, config: Any, model: JudgeModel, resources: Resources) -> JudgeBackend:
        """On the sampling engine, or on one of its own with the run's frozen copy or the judge's own model."""
        from exprl.engines.vllm_host import VLLMHost

        cls.check_model(config, model, Setting.built(resources))
        judge = f"judge {model.judge!r}"
        if model.weights == "live":
            engine = resources.need_engine(judge)
            assert isinstance(engine, VLLMEngine)
            return cls.made(config, host=engine.host, live=True)
        if model.weights == "frozen" and (host := host_with_base(resources)) is not None:
            return cls.made(config, host=host, shared=True)
        source = load_own(model, resources) if model.weights == "own" else resources.need_initial_policy(judge)
        # judges alike share an engine: each has its own memory
        host = resources.once(("judge's vLLM", id(source), config), lambda: VLLMHost(source, config))
        return cls.made(config, host=host)

    @property
    def identity(self) -> str:
        """Model, precision, and how often it was updated."""
        base = " without its adapter" if self._shared and not self.live else ""
        return f"{self.host.language_model.name}{base} in {self.host.dtype} updated {counted(self.updates, 'time')}"

    def sync(self) -> None:
        """Weights that train are other weights now: what was begun with the old ones is dropped."""
        if self.live:
            self.updates += 1
            self.host.cancel(work for work in self._started.values() if isinstance(work, Ticket))
            self._started.clear()

    def prepare(self) -> None:
        """Start the engine: sharded weights can only be read by all ranks together."""
        self.host.start()

    def close(self) -> None:
        """Shut down an engine of its own; a shared one is closed by the rollouts' engine."""
        if not self._shared:
            self.host.close()

    def room(self, prompt: JudgePrompt) -> tuple[int | None, int | None]:
        """The prompt's length in tokens, and vLLM's longest sequence."""
        return len(self.tokens.encode(prompt)), self.host.max_model_len

    def _submit(self, query: Query) -> Ticket | Reply:
        ids, labels = self.encoded(query)
        new = query.max_new_tokens or 1
        if len(ids) + new > self.host.max_model_len:
            return Reply(
                status="error",
                text=f"judge prompt of {len(ids)} tokens + {new} new ones exceeds max_model_len "
                f"{self.host.max_model_len}",
            )
        model, tokenizer = self.host.language_model.model, self.host.language_model.tokenizer
        ends = sorted(ends_of(model, tokenizer).token_ids)
        constraint = {"regex": query.pattern} if query.pattern else {}
        return self.host.submit(
            ids,
            labels=labels,
            adapter=self.live or not self._shared,
            max_tokens=new,
            temperature=0.0,
            stop_token_ids=ends,
            **constraint,
        )

    def _answer(self, query: Query, work: Ticket | Reply) -> Reply:
        from exprl.engines.vllm_host import step_all

        if isinstance(work, Reply):
            return work
        ticket = work
        while ticket.output is None:
            step_all()
        if query.labels:
            return Reply(probabilities=tuple(map(math.exp, ticket.output.label_logprobs)))
        tokenizer = self.host.language_model.tokenizer
        text = str(tokenizer.decode(list(ticket.output.token_ids), skip_special_tokens=True))
        text = text if query.pattern else self.tokens.reply_opening + text
        return Reply(text=text, finished=ticket.output.finish_reason == "stop")


def host_with_base(resources: Resources) -> VLLMHost | None:
    """The rollouts' engine where it also computes the frozen initial policy, since only an adapter trains."""
    engine = resources.engine() if resources.engine is not None else None
    return engine.host if isinstance(engine, VLLMEngine) and engine.host.adapted else None
