"""Supervised training on reference solutions: here, and only here, the policy is MEANT to read them.

A baseline to compare ExpRL with. `rl` never imports this module (tests/integration/test_leak.py holds it to that).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from exprl.engines.base import Engine
from exprl.errors import ModelError
from exprl.kernels import TokenLoss
from exprl.models.base import LanguageModel
from exprl.objectives import Objective, PolicyTokens
from exprl.text.chat import reply_end
from exprl.text.encoding import encoder_of
from exprl.text.prompts import PromptBuilder
from exprl.training.batching import TokenSequence
from exprl.training.policy_module import PolicyModule, Shown
from exprl.training.update import PolicyUpdate
from exprl.types import Problem


class Likelihood(Objective):
    """-A log π of responses nobody sampled; `demonstration` gives each token A = 1: their negative log-prob."""

    def weighted_loss(self, tokens: PolicyTokens) -> TokenLoss:
        """No ratio, no clip, no KL term."""
        return TokenLoss(-tokens.advantages * tokens.logp, {})


class SupervisedUpdate(PolicyUpdate):
    """The update of the likelihood, which has fewer statistics: nothing here was sampled from the policy."""

    statistics: ClassVar[tuple[str, ...]] = ("loss", "entropy")


class SFTModule(PolicyModule):
    """Maximises the token-mean log-prob of the references of a step's problems; prompts carry no loss.

    Args:
        policy: the model to train.
        engine: is given the weights of each step, for the evaluation.
        prompts: question to prompt.
        options: see `PolicyModule`.
    """

    shown: ClassVar[Shown] = (*PolicyModule.shown, ("sft/length_mean", "length", ".0f"))

    def __init__(self, policy: LanguageModel, engine: Engine, prompts: PromptBuilder, **options: Any) -> None:
        super().__init__(policy, engine, **options)
        self.prompts = prompts

    def training_step(self, problems: list[Problem], batch_idx: int) -> None:
        """One step on this rank's problems."""
        del batch_idx
        own = [demonstration(problem, self.prompts, self.language_model) for problem in problems]
        everyone = self.world.gather(own, f"the update of step {self.steps_done + 1}")
        demonstrations = [sequence for rank in everyone for sequence in rank]
        computing = self.policy_update()
        with self.changing_policy():
            updates = [computing.share(part) for part in computing.parts(demonstrations)]
            metrics = self.update_policy(computing, updates)
        tokens = sum(len(sequence.response_ids) for sequence in demonstrations)
        self.report({"sft/length_mean": tokens / len(demonstrations), **metrics, **self.timing(tokens)})

    def policy_update(self) -> PolicyUpdate:
        """The likelihood at temperature 1: nothing was sampled."""
        return SupervisedUpdate(
            self.language_model,
            Likelihood(),
            replace(self.update, aggregation="token"),  # of references, which have no length limit
            temperature=self.temperature,
            world=self.world,
            device=self.device,
        )


def demonstration(problem: Problem, prompts: PromptBuilder, policy: LanguageModel) -> TokenSequence:
    """The problem's prompt and its reference, ended as the chat template ends a reply, else with the end of sequence.

    The reference is text from outside: nothing in it becomes a control token. It is no thinking either: where the chat
    template opens that, it stands behind.

    Raises:
        ModelError: together they are longer than the policy's context, the tokenizer has no end of sequence, or the
            chat template no place for a reply without thinking.
    """
    reference = problem.scaffold.reference
    assert reference is not None, "the method checks"
    tokenizer = policy.tokenizer
    written = reply_end(tokenizer)
    end = tokenizer.eos_token_id if written is None else written
    if not isinstance(end, int):
        raise ModelError(f"model: the tokenizer of {policy.name} has no end-of-sequence token to end a reference with.")
    text = reference.reveal()
    ids = (*encoder_of(tokenizer).plain(text), end)
    sequence = TokenSequence(
        prompt_ids=prompts.build(problem.question, problem.domain, thinking=False).token_ids,
        response_ids=ids,
        advantages=(1.0,) * len(ids),
    )
    context = policy.context_length
    if context is not None and sequence.total_tokens > context:
        raise ModelError(
            f"data.train: problem {problem.id!r}: its prompt and reference have {sequence.total_tokens} tokens, but "
            f"the context of {policy.name} has {context}. Drop the row, or choose a model with a longer context."
        )
    return sequence
