"""The check at the start of a run: engine, trainer and the model's own forward pass give the same tokens the same odds.

The engine samples a few tokens as it always does, with its prompts padded and its cache kept; the trainer computes
their log-probs as it always does, padded, and packed where it packs; and the model's own forward pass, one sequence at
a time and nothing cached, says what is right.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from exprl.checks.compilers import compile_errors
from exprl.engines.base import Engine, Sampling, generated
from exprl.engines.canary import allowed_gap, canary_of
from exprl.errors import ExprlError, ModelError, first_line
from exprl.models.base import LanguageModel
from exprl.training.batching import TokenSequence, collate
from exprl.training.policy import response_logprobs
from exprl.types import Prompt

if TYPE_CHECKING:
    from exprl.kernels import Backend

_PROMPTS, _NEW = (17, 9), 8
"""Tokens of the two prompts, unequal so that one is padded, and of what is sampled after each."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Log-probs [N] of the same N sampled tokens, as each computes them.

    Attributes:
        own: by the model's own forward pass.
        others: by everybody else, under the name messages use.
        allowed: largest mean absolute difference.
        seconds: what the check took.
    """

    own: Tensor
    others: dict[str, Tensor]
    allowed: float
    seconds: float = 0.0

    @property
    def gaps(self) -> dict[str, float]:
        """Each one's mean absolute difference from the model's own forward pass."""
        return {name: float((logp - self.own).abs().mean()) for name, logp in self.others.items()}

    @property
    def line(self) -> str:
        """The numbers in one line."""
        means = ", ".join(
            f"{name} {float(self.others[name].mean()):z.4f} (off by {gap:.1g})" for name, gap in self.gaps.items()
        )
        return (
            f"start check on {len(self.own)} tokens, mean log-prob: model's own forward {float(self.own.mean()):z.4f}, "
            f"{means}; allowed {self.allowed:g}, {self.seconds:.1f} s"
        )

    def demand(self, name: str) -> None:
        """Raise `ModelError` with all figures unless every gap is within what is allowed."""
        off = [who for who, gap in self.gaps.items() if not gap <= self.allowed]
        if off:
            raise ModelError(
                f"{name}: {' and '.join(off)} and the model's own forward pass disagree, so the run would train on "
                f"wrong log-probs ({self.line}). If that is precision alone, raise update.gap_tolerance; if only the "
                "packed trainer is off, set update.packing=false; if only the engine is, choose another rollout.name; "
                "otherwise this model's family is not computed rightly here: choose another model."
            )


def check_agreement(
    policy: LanguageModel,
    engine: Engine,
    *,
    packed: bool,
    temperature: float = 1.0,
    backend: Backend = "auto",
    allowed: float | None = None,
    frozen: LanguageModel | None = None,
) -> Agreement:
    """Compare them on what the engine samples after a fixed text.

    Args:
        policy: the model that trains, whole weights on its device.
        engine: with the same weights.
        packed: whether the trainer packs.
        temperature: of the run's sampling.
        backend: who computes the trainer's log-probs.
        allowed: mean absolute difference of log-probs; None: by precision.
        frozen: the frozen initial policy, whose trainer's and own log-probs are compared too.

    Raises:
        ModelError: they differ by more than that.
    """
    start = time.perf_counter()
    try:
        sequences = sampled(policy, engine, temperature)
    except ExprlError:
        raise
    except Exception as error:
        raise ModelError(
            f"{policy.name}: the engine {engine.registered_name} cannot sample from a {type(policy.model).__name__} "
            f"({first_line(error)}). Choose another model, or another rollout.name."
        ) from error
    allowed = allowed or allowed_gap(policy, engine.precision, temperature=temperature)
    others = {f"engine {engine.registered_name}": torch.tensor([p for s in sequences for p in s.sampler_logprobs])}
    for name, packing in (("trainer", False), ("packed trainer", True))[: 1 + packed]:
        others[name] = trainer_logprobs(policy, sequences, packed=packing, temperature=temperature, backend=backend)
    own = own_logprobs(policy, sequences, temperature)
    found = Agreement(own=own, others=others, allowed=allowed, seconds=time.perf_counter() - start)
    found.demand(policy.name)
    if frozen is not None:
        same = trainer_logprobs(frozen, sequences, packed=packed, temperature=temperature, backend=backend)
        own = own_logprobs(frozen, sequences, temperature)
        Agreement(own=own, others={"trainer": same}, allowed=allowed).demand(frozen.name)
    return found


@compile_errors()
def sampled(policy: LanguageModel, engine: Engine, temperature: float) -> list[TokenSequence]:
    """What the engine samples after two pieces of a fixed text, twice each, the pieces cut to fit the context."""
    longest = min(policy.context_length or _PROMPTS[0] + _NEW, _PROMPTS[0] + _NEW)
    text = canary_of(policy, max(longest - _NEW, 1))
    prompts = [
        Prompt(problem_id="start check", text="", token_ids=text[:length])
        for length in (len(text), max(min(_PROMPTS[1], len(text) - 1), 1))
    ]
    sampling = Sampling(n=2, temperature=temperature, max_new_tokens=min(_NEW, max(longest - len(text), 1)))
    rollouts = [rollout for _, rollout in generated(engine, prompts, sampling)]
    return [
        TokenSequence(
            prompt_ids=rollout.prompt.token_ids,
            response_ids=rollout.token_ids,
            advantages=(0.0,) * len(rollout),
            sampler_logprobs=rollout.sampler_logprobs,
        )
        for rollout in sorted(rollouts, key=lambda rollout: (len(rollout.prompt.token_ids), rollout.token_ids))
    ]


@compile_errors()
def trainer_logprobs(
    model: LanguageModel, sequences: Sequence[TokenSequence], *, packed: bool, temperature: float, backend: Backend
) -> Tensor:
    """[N] log-probs of the responses in one micro-batch, on the CPU."""
    pad = model.tokenizer.pad_token_id
    batch = collate(
        sequences, pad_token_id=pad if isinstance(pad, int) else 0, device=model.model.device, packed=packed
    )
    with model.inference():
        return response_logprobs(model.model, batch, temperature=temperature, backend=backend).logp.float().cpu()


@compile_errors()
def own_logprobs(model: LanguageModel, sequences: Sequence[TokenSequence], temperature: float) -> Tensor:
    """[N] log-probs of the responses by the model's plain forward pass, on the CPU."""
    parts = []
    with model.inference():
        for sequence in sequences:
            ids = torch.tensor([sequence.ids], device=model.model.device)
            logits = model.model(input_ids=ids, use_cache=False).logits[0, len(sequence.prompt_ids) - 1 : -1]
            logprobs = (logits.float() / temperature).log_softmax(-1)
            parts.append(logprobs.gather(-1, ids[0, len(sequence.prompt_ids) :, None])[:, 0])
    return torch.cat(parts).cpu()
