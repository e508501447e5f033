"""The judge backend that runs a Hugging Face model in this process and computes common beginnings of prompts once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from exprl.checks.compilers import compile_errors
from exprl.checks.memory import memory_for
from exprl.component import given, option
from exprl.config.ranges import PositiveInt
from exprl.judges.backends.base import JudgeBackend, JudgeModel, Query, Reply
from exprl.judges.backends.tokens import JudgeTokenizer
from exprl.judges.prompting import JudgePrompt
from exprl.models.base import LanguageModel, check_vocabulary
from exprl.registry import BACKENDS
from exprl.terminal.progress import OnProgress
from exprl.terminal.wording import counted

if TYPE_CHECKING:
    from exprl.judges.backends.local_model import LocalModel
    from exprl.models.provider import ModelProvider
    from exprl.resources import Resources


@BACKENDS.register("transformers")
class TransformersBackend(JudgeBackend):
    """Runs a judge in this process through transformers, greedily, in eval mode and without gradients."""

    batch_tokens: PositiveInt = option(
        default=4096, help="prompt tokens in one forward pass, common beginnings counted once", free=True
    )
    batch_size: PositiveInt = option(default=64, help="prompts judged at a time", free=True)

    language_model: LanguageModel = given(
        default=None,
        help="its weights are read at every call, so a policy in training judges with its current ones; without one "
        "the backend is not open yet",
    )
    live: bool = given(default=False, help="whether those weights train")
    share_prefixes: bool = given(
        default=True, help="compute what prompts have in common once; False: for models and measurements without"
    )
    beside: LanguageModel | None = given(default=None, help="move the model to where this one is, before each call")

    @property
    def is_open(self) -> bool:
        """Whether it has its model."""
        return bool(self.language_model)

    @cached_property
    def tokens(self) -> JudgeTokenizer:
        """Of its model."""
        return JudgeTokenizer(self.language_model.tokenizer, self.language_model.name)

    @cached_property
    def _local(self) -> LocalModel:
        from exprl.judges.backends.local_model import LocalModel  # imports torch and transformers

        return LocalModel(self.language_model, share_prefixes=self.share_prefixes)

    @classmethod
    def open(cls, config: Any, model: JudgeModel, resources: Resources) -> JudgeBackend:
        """On the policy, the run's frozen copy of it, or a model of its own on the policy's device."""
        judge = f"judge {model.judge!r}"
        if model.weights == "live":
            return cls.made(config, language_model=resources.need_policy(judge), live=True)
        if model.weights == "frozen":
            return cls.made(config, language_model=resources.need_initial_policy(judge), beside=resources.policy)
        return cls.made(config, language_model=load_own(model, resources), beside=resources.policy)

    @property
    def identity(self) -> str:
        """The model's name, and how often it was updated."""
        return f"{self.language_model.name} updated {counted(self.updates, 'time')}"

    def sync(self) -> None:
        """Weights that train are other weights now."""
        self.updates += self.live

    def run(self, queries: Sequence[Query], on_progress: OnProgress) -> list[Reply]:
        """See `JudgeBackend`; queries of one kind are computed together."""
        replies: dict[Query, Reply] = {}
        kinds = dict.fromkeys((q.labels, q.reply_start, q.max_new_tokens) for q in queries)
        for labels, reply_start, max_new_tokens in kinds:
            of_kind = [
                q
                for q in queries
                if (q.labels, q.reply_start, q.max_new_tokens) == (labels, reply_start, max_new_tokens)
            ]
            prompts = [q.prompt for q in of_kind]
            if labels:
                answers = self.label_probabilities(prompts, labels, reply_start, on_progress)
            else:
                answers = self.complete(prompts, max_new_tokens, on_progress)
            replies.update(zip(of_kind, answers, strict=True))
        return [replies[query] for query in queries]

    def complete(self, prompts: Sequence[JudgePrompt], max_new_tokens: int, on_progress: OnProgress) -> list[Reply]:
        """The greedy reply to each prompt; a reply cut off at `max_new_tokens` is returned as far as it came."""

        def answer(rows: list[list[int]]) -> list[Reply]:
            replies = [Reply()] * len(rows)
            for decoded in self._local.greedy(rows, max_new_tokens):
                text = str(self.language_model.tokenizer.decode(decoded.token_ids, skip_special_tokens=True))
                finished = decoded.finish_reason == "stop"
                replies[decoded.slot] = Reply(text=self.tokens.reply_opening + text, finished=finished)
            return replies

        return self._run([self.tokens.encode(prompt) for prompt in prompts], max_new_tokens, answer, on_progress)

    def label_probabilities(
        self, prompts: Sequence[JudgePrompt], labels: Sequence[str], reply_start: str, on_progress: OnProgress
    ) -> list[Reply]:
        """The probability of each label as the token after `reply_start`."""
        if not prompts:
            return []
        encoded = [self.tokens.encode_for_labels(prompt, reply_start, labels) for prompt in prompts]
        label_ids = list(encoded[0][1])

        def answer(rows: list[list[int]]) -> list[Reply]:
            return [Reply(probabilities=tuple(row)) for row in self._local.label_probabilities(rows, label_ids)]

        return self._run([ids for ids, _ in encoded], 0, answer, on_progress)

    def room(self, prompt: JudgePrompt) -> tuple[int, int | None]:
        """The prompt's length in tokens, and the model's context length."""
        return len(self.tokens.encode(prompt)), self.language_model.context_length

    def _run(
        self,
        sequences: list[list[int]],
        new_tokens: int,
        answer: Callable[[list[list[int]]], list[Reply]],
        on_progress: OnProgress,
    ) -> list[Reply]:
        """Answer in batches; sequences beyond the context get a reply with status error."""
        context = self.language_model.context_length
        replies = [_too_long(len(ids), new_tokens, context) for ids in sequences]
        fitting = [index for index, reply in enumerate(replies) if reply is None]
        on_progress(len(sequences) - len(fitting))
        model = self.language_model.model
        if self.beside is not None:
            model.to(self.beside.model.device)  # type: ignore[arg-type]
        from exprl.models.modes import in_own_precision  # imports torch

        less = f"Lower the judge's backend.batch_tokens ({self.batch_tokens}); a run goes on with it by --resume."
        with self.language_model.inference(), in_own_precision(model), compile_errors(), memory_for("judging", less):
            sequences_that_fit = [sequences[index] for index in fitting]
            for batch in self._local.batches(sequences_that_fit, self.batch_tokens, self.batch_size):
                indices = [fitting[row] for row in batch]
                for index, reply in zip(indices, answer([sequences[index] for index in indices]), strict=True):
                    replies[index] = reply
                on_progress(len(indices))
        return [reply for reply in replies if reply is not None]


def provider_of(model: JudgeModel, resources: Resources) -> ModelProvider:
    """What provides the model that a judge names for itself."""
    assert model.own is not None
    provider: ModelProvider = model.provider or model.own.build(resources)
    return provider


def load_own(model: JudgeModel, resources: Resources) -> LanguageModel:
    """The model a judge names for itself, without gradients; loaded once for all judges of a run that name it."""
    return resources.once(("own model", model.own), lambda: _loaded(model, resources))


def _loaded(model: JudgeModel, resources: Resources) -> LanguageModel:
    language_model = provider_of(model, resources).load()
    check_vocabulary(language_model)
    language_model.model.requires_grad_(False)
    return language_model


def _too_long(length: int, new_tokens: int, context: int | None) -> Reply | None:
    if context is None or length + new_tokens <= context:
        return None
    return Reply(
        status="error",
        text=f"judge prompt of {length} tokens + {new_tokens} new ones exceeds the judge's context of {context}",
    )
