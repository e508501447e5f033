"""The engine that samples with the policy's own Hugging Face model, in process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any

from exprl.checks.memory import memory_for
from exprl.component import given, option
from exprl.config.ranges import PositiveInt
from exprl.engines.base import Engine, Sampling, check_request
from exprl.engines.ends import Ends, ends_of, pad_id
from exprl.registry import ENGINES
from exprl.resources import Resources
from exprl.text.tokenization import decode_with_ends
from exprl.types import Prompt, Rollout

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from exprl.engines.decoding import Arrivals, Decoded
    from exprl.models.base import LanguageModel
    from exprl.models.steps import Steps

Slot = tuple[int, int]
"""A rollout to sample: its prompt's index, and its place in the group."""

_WORTH_PACKING = 32
"""Tokens a rollout from which the weights are packed first: that takes as long as a few steps, and can save a third."""


@ENGINES.register("transformers")
class TransformersEngine(Engine):
    """Samples with the policy's own weights through transformers: no second model, runs anywhere torch does.

    A rollout depends on the seed, the place of its prompt in the call and its place in the group, never on what else
    is in its batch (up to floating-point noise). A rollout that meets a stop string keeps the token that completed it.
    """

    batch_size: PositiveInt = option(
        default=64, help="rollouts decoded at a time; memory and speed grow with it", free=True
    )
    cuda_graphs: bool = option(
        default=True,
        help="on a GPU, record a step of sampling and replay it, which takes a fraction of the time: for models of the "
        "usual kind (Llama, Mistral, Qwen2, Qwen3) in float32, with mixed precision or without, from 32 tokens a "
        "rollout; false spares the memory of the weights once more",
        free=True,
    )

    policy: LanguageModel = given(Resources.need_policy, help="whose weights sample")

    def setup(self) -> None:
        """No step has been made."""
        self._policy_version = 0

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[tuple[int, Rollout]]:
        """Yield `(index of the prompt, rollout)` as each finishes; the model is in eval mode until the last one.

        Raises (at the call, before anything is sampled):
            TypeError: something other than a `Prompt` is given.
            ModelError: a prompt and `max_new_tokens` together exceed the model's context.
            ValueError: temperature 0 or below.
        """
        check_request(prompts, sampling, context=self.policy.context_length, whose=self.policy.name)
        return self._stream(tuple(prompts), sampling)

    def sync(self, policy_version: int) -> None:
        """Note the version: the weights themselves are the policy's own and already current."""
        self._policy_version = policy_version

    def _stream(self, prompts: tuple[Prompt, ...], sampling: Sampling) -> Iterator[tuple[int, Rollout]]:
        model, tokenizer = self.policy.model, self.policy.tokenizer
        ends = ends_of(model, tokenizer, sampling.stop)
        # neighbours of like length need little padding
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index].token_ids))
        slots = [(index, sample) for index in order for sample in range(sampling.n)]
        version = self._policy_version
        spared = ", or set rollout.cuda_graphs=false" if model.device.type == "cuda" and self.cuda_graphs else ""
        with memory_for(
            "sampling", f"Lower rollout.batch_size ({self.batch_size}){spared}; a run goes on with it by --resume."
        ):
            for alike in self._together(slots, prompts):
                for decoded in self._decoded(prompts, alike, sampling, ends):
                    index, place = alike[decoded.slot]
                    yield index, _rollout(prompts[index], decoded, tokenizer, version, place)

    def _together(self, slots: list[Slot], prompts: tuple[Prompt, ...]) -> list[list[Slot]]:
        """What can be decoded together: all, or prompts of one length alone where the model cannot pad."""
        from exprl.models.incremental import reading_of

        with self.policy.inference():
            pads = reading_of(self.policy.model).pads
        return [list(x) for _, x in groupby(slots, key=lambda slot: None if pads else len(prompts[slot[0]].token_ids))]

    def _decoded(
        self, prompts: tuple[Prompt, ...], slots: list[Slot], sampling: Sampling, ends: Ends
    ) -> Iterator[Decoded]:
        """Rows as they finish; between two of them the model is as its user has it."""
        from exprl.engines.decoding import Decoding
        from exprl.models.linear import packed

        waiting, inference = iter(slots), self.policy.inference
        model, count = self.policy.model, min(len(slots), self.batch_size)

        def arrive(at_most: int) -> Arrivals | None:
            batch = list(islice(waiting, at_most))
            return self._arrivals(prompts, batch, sampling) if batch else None

        worth_packing = sampling.max_new_tokens >= _WORTH_PACKING
        with inference():
            first = arrive(count)
            assert first is not None
            continuing = self._continuing(count) if worth_packing else None
            rows = Decoding(model, first, sampling, ends, arrive, continuing=continuing).run()
        with packed(model, count) if worth_packing and continuing is None else nullcontext():
            while True:
                with inference():
                    decoded = next(rows, None)
                if decoded is None:
                    return
                yield decoded

    def _continuing(self, rows: int) -> Callable[[Any], Steps] | None:
        """What makes steps of about `rows` rows faster than the model itself; None: nothing does."""
        from exprl.models.kv_cache import takes_rows
        from exprl.models.recorded import RecordedSteps
        from exprl.models.steps import MergedSteps, ModelSteps, merged

        model, on_gpu = self.policy.model, self.policy.model.device.type == "cuda"
        weights = merged(model, rows) if self.cuda_graphs or not on_gpu else None
        if weights is None:
            return None
        faster = RecordedSteps if on_gpu else MergedSteps
        return lambda cache: faster(weights, cache) if takes_rows(cache) else ModelSteps(model, cache)

    def _arrivals(self, prompts: tuple[Prompt, ...], batch: list[Slot], sampling: Sampling) -> Arrivals:
        """Rows for these slots; a prompt is read once for all its slots among them."""
        import torch

        from exprl.engines.decoding import Arrivals
        from exprl.engines.prefill import prefill
        from exprl.engines.sampling import uniforms_for

        rows = {index: row for row, index in enumerate(dict.fromkeys(index for index, _ in batch))}
        uniforms = [
            uniforms_for(sampling.seed, sampling.number(index), sample, sampling.max_new_tokens)
            for index, sample in batch
        ]
        pad = pad_id(self.policy.tokenizer)
        distinct = prefill(self.policy.model, [prompts[index].token_ids for index in rows], pad)
        return Arrivals(
            prefilled=distinct.repeated([rows[index] for index, _ in batch]), uniforms=torch.stack(uniforms)
        )


def _rollout(prompt: Prompt, decoded: Decoded, tokenizer: PreTrainedTokenizerBase, version: int, place: int) -> Rollout:
    text, ends = decode_with_ends(tokenizer, decoded.token_ids)
    return Rollout(
        prompt=prompt,
        token_ids=tuple(decoded.token_ids),
        text=text,
        token_ends=tuple(ends),
        sampler_logprobs=tuple(decoded.logprobs),
        finish_reason=decoded.finish_reason,
        policy_version=version,
        place=place,
    )
