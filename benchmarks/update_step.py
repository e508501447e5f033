"""One policy update on random weights and synthetic rollouts: exprl's `PolicyUpdate` against TRL's GRPOTrainer.

    python benchmarks/update_step.py > table.md                                   the tiny config, on a CPU
    python benchmarks/update_step.py --config cpu-16k --variant ours
    python benchmarks/update_step.py --config qwen3-0.6b qwen3-4b-16k             on a GPU

An update is forward, backward, gradient clipping and AdamW. TRL's side is `GRPOTrainer._compute_loss` with the loss
`dapo`, the token mean of the whole batch, on the same sequences in micro-batches of the same budget; both compute
log-probs and entropies. Every variant runs in a fresh process, one after another. tokens/s counts prompts and responses
and no padding. The model FLOPs behind the MFU are

    6 · N · tokens + 6 · V · D · response tokens + Σ over sequences of 6 · layers · heads · head size · length²

with N the parameters outside embedding and LM head; what checkpointing computes again does not count. Peak memory
holds weights, gradients and optimizer state too: on a GPU all that is allocated, on a CPU the peak of the resident
memory less what was resident after a tiny update.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

ROOT = Path(__file__).parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import measuring  # noqa: E402
from measuring import Memory, device_name, leave, limit_memory, synchronize, versions  # noqa: E402
from update_step_sides import BUILDERS, CONFIGS, Config, Gradients, build_model, build_rollouts  # noqa: E402

from exprl.experiment import OptimizerConfig  # noqa: E402
from exprl.training.batching import TokenSequence  # noqa: E402
from exprl.training.optimizer import build_optimizer  # noqa: E402
from exprl.training.parallel import clip_gradients  # noqa: E402

PEAK_FLOPS = {"H100": 989e12, "H200": 989e12}
"""Dense bf16, by what is in the device's name."""

VARIANTS = {"ours": "exprl", "trl": "TRL"}


def main() -> int:
    """The exit status: 1 where an update of exprl's own failed."""
    options = parse()
    if options.here:
        print(json.dumps(in_this_process(options.here, CONFIGS[options.config[0]], options)))
        return 0
    wanted = list(VARIANTS) if options.variant == "all" else [options.variant]
    rows = []
    if not options.json:
        print(header(options), flush=True)
    for name in options.config:
        if not options.json:
            print(f"\n## {name}\n\n{describe(CONFIGS[name], options)}\n\n{TABLE_HEAD}", flush=True)
        found = {}
        for variant in wanted:
            found[variant] = in_fresh_process(variant, name, options)
            rows.append({"config": name, "variant": variant, **found[variant]})
            if not options.json:
                print(table_row(VARIANTS[variant], found[variant]), flush=True)
        if options.variant == "all" and CONFIGS[name].compare:
            found["both"] = in_fresh_process("both", name, options)
            rows.append({"config": name, "variant": "both", **found["both"]})
        if not options.json:
            print("\n" + "\n".join(comparison(found)), flush=True)
    if options.json:
        print(json.dumps({"versions": versions("trl"), "device": device_name(), "rows": rows}, indent=2))
    return int(any("failed" in row for row in rows if row["variant"] == "ours"))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", nargs="+", choices=CONFIGS, default=["tiny"], help="model and rollouts")
    parser.add_argument("--variant", choices=[*VARIANTS, "all"], default="all", help="whose update")
    parser.add_argument("--packing", action="store_true", help="exprl: end to end instead of padded (TRL always pads)")
    parser.add_argument("--compile-layers", action="store_true", help="exprl: the decoder layers by torch.compile")
    parser.add_argument("--no-checkpointing", action="store_true", help="keep all activations, in both")
    parser.add_argument("--repeats", type=int, default=3, help="timed updates; the median counts")
    parser.add_argument("--threads", type=int, default=2, help="of torch, on a CPU")
    parser.add_argument("--memory-gib", type=float, default=8.0, help="on a CPU: what a variant may take")
    parser.add_argument("--limit", type=float, default=900.0, help="seconds for a variant")
    parser.add_argument("--seed", type=int, default=0, help="of weights, lengths, tokens and advantages")
    parser.add_argument("--json", action="store_true", help="print JSON instead of Markdown")
    parser.add_argument("--here", choices=[*VARIANTS, "both"], help="measure in this process; what the program calls")
    options = parser.parse_args()
    if options.repeats < 1:
        parser.error(f"--repeats must be at least 1, but got {options.repeats}")
    return options


# ---------------------------------------------------------------------- one variant, in its own process


def in_fresh_process(variant: str, config: str, options: argparse.Namespace) -> dict[str, Any]:
    """The measurement, or {"failed": why there is none}."""
    if CONFIGS[config].device == "cuda" and not torch.cuda.is_available():
        return {"failed": "not measured: needs a GPU"}
    flags = ("packing", "compile-layers", "no-checkpointing")
    passed = [f"--{name}" for name in flags if getattr(options, name.replace("-", "_"))]
    for name in ("repeats", "threads", "memory-gib", "seed"):
        passed += [f"--{name}", str(getattr(options, name.replace("-", "_")))]
    command = [__file__, "--config", config, "--here", variant, *passed]
    return measuring.in_fresh_process(command, threads=options.threads, limit=options.limit)


def in_this_process(variant: str, config: Config, options: argparse.Namespace) -> dict[str, Any]:
    """See `in_fresh_process`."""
    if config.device == "cpu":
        torch.set_num_threads(options.threads)
    if variant == "both":
        return agreement(config, options)
    build = BUILDERS[variant]
    if config.device == "cpu":
        take(build, CONFIGS["tiny"], options, updates=1)  # loads what is loaded once
        limit_memory(options.memory_gib)
    memory = Memory(config.device)
    try:
        return asdict(measure(partial(take, build, config, options), memory, config, options))
    except (torch.OutOfMemoryError, MemoryError):
        pass
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):
            raise
    return {"failed": f"out of memory ({memory.total_gib(options.memory_gib):.3g} GiB)"}


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Median `seconds` of an update; `loss` and `grad_norm` are the first update's."""

    seconds: float
    tokens_per_second: float
    mfu: float | None
    peak_gib: float
    loss: float
    grad_norm: float


@dataclass(frozen=True, kw_only=True)
class Taken:
    """Of each update the seconds, the loss and the norm of the gradient."""

    seconds: list[float]
    losses: list[float]
    norms: list[float]
    flops: float


def take(build: Callable[..., Gradients], config: Config, options: argparse.Namespace, *, updates: int) -> Taken:
    """Build model and batch, and update."""
    model = build_model(config, options)
    sequences = build_rollouts(config, options.seed)
    gradients = build(model, sequences, config, options)
    optimizer, _ = build_optimizer(model.model, OptimizerConfig())
    taken = Taken(seconds=[], losses=[], norms=[], flops=model_flops(model.model, sequences))
    for _ in range(updates):
        synchronize(config.device)
        start = time.perf_counter()
        optimizer.zero_grad()
        taken.losses.append(gradients())
        taken.norms.append(clip_gradients(model.model, 1.0))
        optimizer.step()
        synchronize(config.device)
        taken.seconds.append(time.perf_counter() - start)
    return taken


def measure(
    take_updates: Callable[..., Taken], memory: Memory, config: Config, options: argparse.Namespace
) -> Measurement:
    """Time, throughput and memory."""
    taken = take_updates(updates=config.warm_up + options.repeats)
    seconds = statistics.median(taken.seconds[config.warm_up :])
    tokens = sum(sequence.total_tokens for sequence in build_rollouts(config, options.seed))
    peak = next(
        (flops for name, flops in PEAK_FLOPS.items() if config.device == "cuda" and name in device_name()), None
    )
    return Measurement(
        seconds=seconds,
        tokens_per_second=tokens / seconds,
        mfu=None if peak is None else taken.flops / seconds / peak,
        peak_gib=memory.peak_gib(),
        loss=taken.losses[0],
        grad_norm=taken.norms[0],
    )


def model_flops(model: PreTrainedModel, sequences: Sequence[TokenSequence]) -> float:
    """FLOPs of forward and backward, as the module's docstring counts them."""
    config = model.config
    head = model.get_output_embeddings().weight.numel()
    body = sum(x.numel() for x in model.parameters()) - head  # tied: the embedding is the head
    tokens = sum(sequence.total_tokens for sequence in sequences)
    responses = sum(len(sequence.response_ids) for sequence in sequences)
    width = config.num_hidden_layers * config.num_attention_heads * config.head_dim
    squares = sum(sequence.total_tokens**2 for sequence in sequences)
    return float(6 * body * tokens + 6 * head * responses + 6 * width * squares)


def agreement(config: Config, options: argparse.Namespace) -> dict[str, Any]:
    """Both losses and gradients on the same weights: the relative differences."""
    model = build_model(config, options)
    sequences = build_rollouts(config, options.seed)
    found = []
    for build in BUILDERS.values():
        gradients = build(model, sequences, config, options)
        model.model.zero_grad()
        loss = gradients()
        flat = torch.cat([x.grad.flatten().double() for x in model.model.parameters() if x.grad is not None])
        found.append((loss, flat))
    (loss, gradient), (other_loss, other_gradient) = found
    return {
        "loss": abs(loss - other_loss) / abs(other_loss),
        "gradient": float((gradient - other_gradient).norm() / other_gradient.norm()),
    }


# ---------------------------------------------------------------------- Markdown

ABOUT = """Forward, backward, gradient clipping and AdamW on random weights and synthetic rollouts, each variant in a
fresh process; seconds are the median. Peak GiB holds weights, gradients and optimizer state too (on a CPU: resident
memory beyond the libraries). MFU is 6·N·tokens + 6·V·D·response tokens + Σ 6·layers·heads·head size·length² over the
peak FLOPS (dense bf16: {peaks}); on a CPU there is none."""

TABLE_HEAD = "| | seconds | tokens/s | MFU | peak GiB | loss | gradient norm |\n|---|---:|---:|---:|---:|---:|---:|"


def header(options: argparse.Namespace) -> str:
    """What is measured, on what."""
    threads = "" if torch.cuda.is_available() else f" threads: {options.threads};"
    machine = f"{device_name()}, Python {platform.python_version()}, {versions('trl')};{threads} {date.today()}."
    command = f"    python benchmarks/update_step.py {' '.join(sys.argv[1:])}".rstrip()
    peaks = ", ".join(f"{name} {flops / 1e12:.0f}e12" for name, flops in PEAK_FLOPS.items())
    return "\n\n".join(["# One policy update", machine, command, ABOUT.format(peaks=peaks)])


def describe(config: Config, options: argparse.Namespace) -> str:
    """A config in a line."""
    sizes = config.shape
    lengths = [sequence.total_tokens for sequence in build_rollouts(config, options.seed)]
    return (
        f"{sizes['num_hidden_layers']} layers of {sizes['hidden_size']}, vocabulary {sizes['vocab_size']:,}, "
        f"{'bf16 on float32 weights' if config.bf16 else 'float32'}; {config.rollouts} rollouts of "
        f"{min(lengths):,} to {max(lengths):,} tokens, micro-batches of {config.micro_batch_tokens:,}, "
        f"{'no ' if options.no_checkpointing else ''}activation checkpointing, "
        f"{'packed (TRL: padded)' if options.packing else 'padded'}; median of {options.repeats}."
    )


def table_row(name: str, result: dict[str, Any]) -> str:
    if "failed" in result:
        return f"| {name} | {result['failed']} | | | | | |"
    mfu = "-" if result["mfu"] is None else f"{100 * result['mfu']:.1f} %"
    return (
        f"| {name} | {result['seconds']:.2f} | {result['tokens_per_second']:,.0f} | {mfu} | {result['peak_gib']:.2f} | "
        f"{result['loss']:.6f} | {result['grad_norm']:.6f} |"
    )


def comparison(found: dict[str, dict[str, Any]]) -> list[str]:
    """Both against each other, where both were measured."""
    measured = [found[name] for name in VARIANTS if name in found and "failed" not in found[name]]
    if len(measured) < len(VARIANTS):
        return ["No comparison: one of the two is missing."]
    own, other = measured
    lines = [
        f"exprl / TRL: seconds {own['seconds'] / other['seconds']:.2f}, memory "
        f"{own['peak_gib'] / other['peak_gib']:.2f}; relative difference of the losses "
        f"{abs(own['loss'] - other['loss']) / abs(other['loss']):.1e}, of the gradients' norms "
        f"{abs(own['grad_norm'] - other['grad_norm']) / other['grad_norm']:.1e}."
    ]
    both = found.get("both", {})
    if "failed" in both:
        lines.append(f"In one process: {both['failed']}.")
    elif both:
        lines.append(
            f"On the same weights in one process: relative difference of the losses {both['loss']:.1e}, of the "
            f"gradients {both['gradient']:.1e}."
        )
    return lines


if __name__ == "__main__":
    leave(main())
