"""The engine that samples with the policy's own Hugging Face model, in process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from exprl.component import option
from exprl.config.ranges import PositiveInt
from exprl.engines.base import Engine, Sampling
from exprl.engines.ends import Ends, ends_of, pad_id
from exprl.errors import ModelError
from exprl.registry import ENGINES
from exprl.text.tokenization import decode_with_ends
from exprl.types import Prompt, Rollout

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from exprl.engines.decoding import Decoded, Decoding
    from exprl.models.base import LanguageModel
    from exprl.resources import Resources


@ENGINES.register("transformers")
class TransformersEngine(Engine):
    """Samples with the policy's own weights through transformers: no second copy, runs anywhere torch does.

    A rollout depends on the seed, the place of its prompt in the call and its place in the group, never on what else
    is in its batch (up to floating-point noise). A rollout that meets a stop string keeps the token that completed it.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Engine.Config):
        """What every engine has, and how many rollouts are decoded at a time."""

        batch_size: PositiveInt = option(64, "rollouts decoded at a time; memory and speed grow with it")

    config: Config

    def __init__(self, config: Config, model: LanguageModel) -> None:
        super().__init__(config)
        self._language_model = model
        self._policy_version = 0

    @classmethod
    def from_config(cls, config: Any, resources: Resources) -> TransformersEngine:
        """An engine on the run's policy."""
        return cls(config, resources.need_policy("engine 'transformers'"))

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[tuple[int, Rollout]]:
        """Yield `(index of the prompt, rollout)` as each finishes; the model is in eval mode until the last one.

        Raises (at the call, before anything is sampled):
            TypeError: something other than a `Prompt` is given.
            ModelError: a prompt and `max_new_tokens` together exceed the model's context.
            ValueError: temperature 0 or below.
        """
        for prompt in prompts:
            if not isinstance(prompt, Prompt):
                raise TypeError(f"an engine takes Prompt objects only, but got {type(prompt).__name__}")
        if sampling.temperature <= 0:
            raise ValueError(f"temperature must be above 0, but got {sampling.temperature}; top_k=1 samples greedily")
        self._check_lengths(prompts, sampling.max_new_tokens)
        return self._stream(tuple(prompts), sampling)

    def sync(self, policy_version: int) -> None:
        """Note the version: the weights themselves are the policy's own and already current."""
        self._policy_version = policy_version

    def _check_lengths(self, prompts: Sequence[Prompt], max_new_tokens: int) -> None:
        context = self._language_model.context_length
        for prompt in prompts:
            length = len(prompt.token_ids)
            if length == 0:
                raise ModelError(f"problem {prompt.problem_id!r}: the prompt has no tokens; check the prompt template.")
            if context is not None and length + max_new_tokens > context:
                raise ModelError(
                    f"problem {prompt.problem_id!r}: {length} prompt tokens + {max_new_tokens} max_new_tokens = "
                    f"{length + max_new_tokens}, but {self._language_model.name} has a context of {context} tokens. "
                    f"Set max_new_tokens to at most {max(context - length, 0)}, or drop prompts this long."
                )

    def _stream(self, prompts: tuple[Prompt, ...], sampling: Sampling) -> Iterator[tuple[int, Rollout]]:
        model, tokenizer = self._language_model.model, self._language_model.tokenizer
        ends = ends_of(model, tokenizer, sampling.stop)
        # neighbours of like length need little padding
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index].token_ids))
        slots = [(index, sample) for index in order for sample in range(sampling.n)]
        for batch in self._batches(slots, prompts):
            version = self._policy_version
            for decoded in self._decoded(prompts, batch, sampling, ends):
                index = batch[decoded.slot][0]
                yield index, _rollout(prompts[index], decoded, tokenizer, version)

    def _batches(self, slots: list[tuple[int, int]], prompts: tuple[Prompt, ...]) -> Iterator[list[tuple[int, int]]]:
        """Of prompts of one length alone where the model cannot pad."""
        from exprl.models.incremental import reading_of

        with self._language_model.inference():
            together = reading_of(self._language_model.model).pads
        for _, alike in groupby(slots, key=lambda slot: None if together else len(prompts[slot[0]].token_ids)):
            rest = list(alike)
            for start in range(0, len(rest), self.config.batch_size):
                yield rest[start : start + self.config.batch_size]

    def _decoded(
        self, prompts: tuple[Prompt, ...], batch: list[tuple[int, int]], sampling: Sampling, ends: Ends
    ) -> Iterator[Decoded]:
        """Rows as they finish; between two of them the model is as its user has it."""
        with self._language_model.inference():
            rows = self._decoding(prompts, batch, sampling, ends).run()
        while True:
            with self._language_model.inference():
                decoded = next(rows, None)
            if decoded is None:
                return
            yield decoded

    def _decoding(
        self, prompts: tuple[Prompt, ...], batch: list[tuple[int, int]], sampling: Sampling, ends: Ends
    ) -> Decoding:
        import torch

        from exprl.engines.decoding import Decoding
        from exprl.engines.prefill import prefill
        from exprl.engines.sampling import uniforms_for

        rows = {index: row for row, index in enumerate(dict.fromkeys(index for index, _ in batch))}
        uniforms = [
            uniforms_for(sampling.seed, sampling.number(index), sample, sampling.max_new_tokens)
            for index, sample in batch
        ]
        model = self._language_model.model
        distinct = prefill(model, [prompts[index].token_ids for index in rows], pad_id(self._language_model.tokenizer))
        prefilled = distinct.repeated([rows[index] for index, _ in batch])  # a prompt is read once for all its slots
        return Decoding(model, prefilled, torch.stack(uniforms), sampling, ends)


def _rollout(prompt: Prompt, decoded: Decoded, tokenizer: PreTrainedTokenizerBase, version: int) -> Rollout:
    text, ends = decode_with_ends(tokenizer, decoded.token_ids)
    return Rollout(
        prompt=prompt,
        token_ids=tuple(decoded.token_ids),
        text=text,
        token_ends=tuple(ends),
        sampler_logprobs=tuple(decoded.logprobs),
        finish_reason=decoded.finish_reason,
        policy_version=version,
    )
