"""A bare torch training loop that borrows its reward side from exprl: no Lightning, no engine, no YAML.

    python examples/plain_loop.py --steps 20

The policy is sampled with transformers' own `generate`; exprl cuts each rollout, judges every prefix against a
reference the policy never sees, and turns the scores into advantages and a loss.
"""

from __future__ import annotations

import argparse

import torch

from exprl import (
    DelimiterSlicer,
    LanguageModel,
    ProcessReward,
    Prompt,
    PromptBuilder,
    ReferenceStepsJudge,
    Reinforce,
    Rollout,
    RolloutGroup,
    SegmentDelta,
    decode_with_ends,
    logprob_entropy,
)
from exprl.chain.model import ChainModel
from exprl.chain.source import ChainSource


def sample(policy: LanguageModel, prompt: Prompt, count: int, max_new_tokens: int) -> tuple[Rollout, ...]:
    """`count` rollouts of one prompt, by any sampler: here transformers' `generate`."""
    ids = torch.tensor([prompt.token_ids])
    with torch.no_grad():
        output = policy.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            top_k=0,
            num_return_sequences=count,
            max_new_tokens=max_new_tokens,
            pad_token_id=policy.tokenizer.pad_token_id,
        )
    return tuple(to_rollout(policy, prompt, row) for row in output[:, len(prompt.token_ids) :].tolist())


def to_rollout(policy: LanguageModel, prompt: Prompt, token_ids: list[int]) -> Rollout:
    """Cut the padding off; the sampler's log-probs are unknown here, so the loss does without them."""
    eos = policy.tokenizer.eos_token_id
    ended = eos in token_ids
    token_ids = token_ids[: token_ids.index(eos) + 1] if ended else token_ids
    text, ends = decode_with_ends(policy.tokenizer, token_ids)
    return Rollout(
        prompt=prompt,
        token_ids=tuple(token_ids),
        text=text,
        token_ends=ends,
        sampler_logprobs=(float("nan"),) * len(token_ids),
        finish_reason="stop" if ended else "length",
    )


def logprobs(policy: LanguageModel, rollout: Rollout) -> torch.Tensor:
    """[T] log-probs of a rollout's tokens, with gradient."""
    start, ids = len(rollout.prompt.token_ids), rollout.prompt.token_ids + rollout.token_ids
    logits = policy.model(input_ids=torch.tensor([ids])).logits[0, start - 1 : -1]
    return logprob_entropy(logits, torch.tensor(rollout.token_ids))[0]


def main() -> None:
    """Train and print the mean progress of each step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20, help="updates of the policy")
    parser.add_argument("--prompts", type=int, default=8, help="prompts a step")
    parser.add_argument("--samples", type=int, default=8, help="rollouts a prompt")
    parser.add_argument("--warmup", type=float, default=0.5, help="step accuracy that the policy starts with")
    options = parser.parse_args()
    torch.manual_seed(0)

    policy = ChainModel(target_accuracy=options.warmup).load()
    problems = ChainSource(steps=8, count=options.steps * options.prompts).load()
    prompts = PromptBuilder(policy.tokenizer)
    slicer = DelimiterSlicer(delimiter="\n", position="end")
    reward = ProcessReward(slicer=slicer, judge=ReferenceStepsJudge())
    advantage = SegmentDelta(scale="rms")
    objective = Reinforce()
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=4e-4, weight_decay=0.0)

    for step in range(options.steps):
        batch = problems[step * options.prompts : (step + 1) * options.prompts]
        groups = [
            RolloutGroup(problem=p, rollouts=sample(policy, prompts.build(p.question), options.samples, 72))
            for p in batch
        ]
        rewards = reward.score(groups)
        reward.check_step(rewards)
        advantages = advantage.estimate(rewards)
        pairs = [
            (rollout, estimate)
            for group, estimates in zip(groups, advantages, strict=True)
            for rollout, estimate in zip(group.rollouts, estimates, strict=True)
            if estimate.valid
        ]
        tokens = sum(len(rollout) for rollout, _ in pairs)
        optimizer.zero_grad()
        for rollout, estimate in pairs:
            logp = logprobs(policy, rollout)
            loss = objective.token_loss(logp, logp.detach(), torch.tensor(estimate.per_token())).loss
            (loss.sum() / tokens).backward()
        torch.nn.utils.clip_grad_norm_(policy.model.parameters(), 1.0)
        optimizer.step()
        finals = [own.values[-1] for group in rewards for own in group if own.values]
        print(f"step {step + 1}: share of the reference's steps reached {sum(finals) / max(len(finals), 1):.3f}")


if __name__ == "__main__":
    main()
