"""What all ranks of a run must have alike, compared before any work: ranks that differ would train nobody's policy."""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import exprl
from exprl import config as configuration
from exprl.data.fingerprint import fingerprint
from exprl.errors import RanksDifferError
from exprl.training.world import World

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from exprl.build import Build
    from exprl.experiment import Experiment
    from exprl.types import Problem

PACKAGES = (
    "torch", "lightning", "transformers", "tokenizers", "numpy", "peft", "vllm", "triton", "flash-attn", "datasets",
    "math-verify", "reasoning-gym",
)  # fmt: skip
"""What a step's numbers may depend on, beside the packages of plugins."""

SHOWN = 5
"""Differences in a message."""

SAMPLED = 65_536
"""Elements looked at of each weight: all of a small tensor, and enough of a large one to tell two models apart."""


def check_start(world: World, experiment: Experiment, run_dir: Path) -> None:
    """Raise `RanksDifferError` on every rank if two differ in config, code or packages; all ranks together."""
    if world.size > 1:
        facts = {**settings(experiment), "run_dir": str(run_dir), **code(experiment.plugins), **versions()}
        check_alike(world.gather(facts, "comparing how the ranks were started"))


def check_loaded(world: World, build: Build) -> None:
    """Raise `RanksDifferError` on every rank if two differ in problems, policy or tokenizer; all ranks together."""
    if world.size == 1:
        return
    for name, problems in (("data.train", build.train_problems), ("evaluation.source", build.evaluation_problems)):
        check_problems(world, name, problems)
    facts = {
        "the tokenizer": of_tokenizer(build.policy.tokenizer),
        "the policy's weights": of_weights(build.policy.model),
    }
    check_alike(world.gather(facts, "comparing the policy of the ranks"))


# ------------------------------------------------------------------ what is compared


def settings(experiment: Experiment) -> dict[str, str]:
    """Every option by its key."""
    return dict(_flat(configuration.to_node(experiment)))


def _flat(node: Any, path: str = "") -> list[tuple[str, str]]:
    if not isinstance(node, dict):
        return [(path, json.dumps(node, default=str))]
    return [item for key, value in node.items() for item in _flat(value, f"{path}.{key}" if path else str(key))]


def code(plugins: Sequence[str]) -> dict[str, str]:
    """A digest of exprl's own files, and one of each plugin's."""
    own = {"exprl's code": digest_of_files(Path(exprl.__file__).parent)}
    return own | {f"the code of the plugin {name}": digest_of_module(name) for name in plugins}


def versions() -> dict[str, str]:
    """Python's version and that of every package whose code may matter."""
    plugins = {entry.dist.name for entry in entry_points(group="exprl.plugins") if entry.dist is not None}
    names = dict.fromkeys((*PACKAGES, *sorted(plugins)))
    return {"Python": platform.python_version(), **{f"the package {name}": _version(name) for name in names}}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def digest_of_module(name: str) -> str:
    """Of an imported module's file, or of all files of a package."""
    file = getattr(sys.modules.get(name), "__file__", None)
    if file is None:
        return "no file"
    path = Path(file)
    return digest_of_files(path.parent if path.stem == "__init__" else path)


def digest_of_files(path: Path) -> str:
    """Of a file, or of names and contents of all files in a folder; what Python compiled of them aside."""
    files = (
        [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    )
    total = hashlib.sha256()
    for file in files:
        total.update(f"{file.relative_to(path)}\0{hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()[:16]


def of_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """A digest of ids and chat template."""
    parts = (sorted(tokenizer.get_vocab().items()), tokenizer.chat_template, tokenizer.special_tokens_map)
    return hashlib.sha256(repr(parts).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def of_weights(model: PreTrainedModel) -> str:
    """A digest of the bits of some elements of every weight, which is the same whatever the device."""
    total = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        flat = tensor.detach().reshape(-1)
        some = flat[:: max(1, flat.numel() // SAMPLED)].cpu().contiguous()
        total.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        total.update(some.view(torch.uint8).numpy().tobytes() if some.numel() else b"")
    return total.hexdigest()[:16]


# ------------------------------------------------------------------ what is said


def check_alike(everyone: Sequence[Mapping[str, str]]) -> None:
    """Raise `RanksDifferError` if the facts of two ranks differ, naming what, and how each rank has it."""
    names = dict.fromkeys(name for facts in everyone for name in facts)
    found = [name for name in names if len({facts.get(name) for facts in everyone}) > 1]
    if not found:
        return
    shown = "\n".join(
        f"  {name}: {_by_rank([facts.get(name, 'missing') for facts in everyone])}" for name in found[:SHOWN]
    )
    more = f"\n  and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    raise RanksDifferError(
        f"the ranks differ, so the run does not start:\n{shown}{more}\nStart every rank with the same command, and "
        "give every machine the same files and packages."
    )


def _by_rank(values: Sequence[str]) -> str:
    """Who has which value, the same ones together.

    >>> _by_rank(["1", "1", "2"])
    '1 on rank 0, 1; 2 on rank 2'
    """
    ranks: dict[str, list[str]] = {}
    for rank, value in enumerate(values):
        ranks.setdefault(value, []).append(str(rank))
    return "; ".join(f"{value} on rank {', '.join(holders)}" for value, holders in ranks.items())


def check_problems(world: World, name: str, problems: Sequence[Problem]) -> None:
    """Raise `RanksDifferError` naming the first problem that two ranks do not have alike."""
    own = fingerprint(problems)
    digest = hashlib.sha256(json.dumps(list(own.items())).encode()).hexdigest()
    if len(set(world.gather(digest, f"comparing {name}"))) == 1:
        return
    first, *others = world.gather(own, f"comparing {name} problem by problem")
    rank, other = next(
        (rank, other) for rank, other in enumerate(others, start=1) if list(other.items()) != list(first.items())
    )
    raise RanksDifferError(
        f"the ranks differ, so the run does not start: {name} has {len(first)} problems on rank 0 and {len(other)} on "
        f"rank {rank}; {_difference(list(first.items()), list(other.items()), rank)}. Give every machine the same data."
    )


def _difference(first: Sequence[tuple[str, str]], other: Sequence[tuple[str, str]], rank: int) -> str:
    """Where two lists of ids with digests part."""
    for number, ((one, digest), (two, other_digest)) in enumerate(zip(first, other, strict=False), start=1):
        if one != two:
            return f"problem {number} is {one!r} on rank 0 and {two!r} on rank {rank}"
        if digest != other_digest:
            return f"question, reference or answer of {one!r} (problem {number}) is another"
    longer, holder = (first, 0) if len(first) > len(other) else (other, rank)
    number = min(len(first), len(other))
    return f"problem {number + 1}, {longer[number][0]!r}, is on rank {holder} alone"
