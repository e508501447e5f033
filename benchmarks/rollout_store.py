"""CPU seconds to write and read the rollouts of a step, and bytes, in the store's format and in others.

The baseline is gzipped JSON lines with lists of numbers. Run with `python benchmarks/rollout_store.py 72 16384`: how
many rollouts (72: what a rank of eight has of a step of 576), and tokens of each. Parquet needs pyarrow. Each is read
back to the same Python objects, which is checked.
"""

from __future__ import annotations

import base64
import gzip
import io
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from exprl.rollouts.format import decode, encode
from exprl.rollouts.stored import StoredGroup
from exprl.types import Prompt, Question, Rollout

VOCABULARY = 50_000
REPEATS = 3
Fields = list[tuple[tuple[int, ...], tuple[float, ...], tuple[int, ...], str]]


@dataclass(frozen=True)
class Way:
    """A format: writing the groups, and reading back what `fields` gives."""

    name: str
    write: Callable[[Sequence[StoredGroup]], bytes]
    read: Callable[[bytes], Fields]


def main() -> None:
    """Every format, interleaved; medians."""
    rollouts, tokens = (int(argument) for argument in sys.argv[1:3]) if len(sys.argv) > 2 else (72, 16_384)
    groups = made(rollouts, tokens)
    expected = fields(groups)
    ways = [
        Way("JSON lines, gzip (baseline)", write_lists, read_lists),
        Way("the same, base64", write_base64, read_base64),
    ]
    ways += parquet()
    ways.append(Way("exprl", lambda given: encode(given, step=1), read_store))
    spent: dict[str, list[tuple[float, float]]] = {way.name: [] for way in ways}
    sizes: dict[str, int] = {}
    for _ in range(REPEATS):
        for way in ways:
            start = time.process_time()
            content = way.write(groups)
            written = time.process_time()
            found = way.read(content)
            spent[way.name].append((written - start, time.process_time() - written))
            sizes[way.name] = len(content)
            assert found == expected, way.name
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, numpy {np.__version__}")
    print(f"{rollouts} rollouts of {tokens} tokens; CPU seconds, medians of {REPEATS}\n")
    print("| format | write | read | bytes a token | MB | baseline / it: write, read, size |")
    print("|---|---:|---:|---:|---:|---|")
    [base_write, base_read], base_size = median(spent[ways[0].name]), sizes[ways[0].name]
    for way in ways:
        [write, read], size = median(spent[way.name]), sizes[way.name]
        ratios = f"{base_write / write:.1f}, {base_read / read:.1f}, {base_size / size:.1f}"
        print(
            f"| {way.name} | {write:.2f} | {read:.2f} | {size / rollouts / tokens:.2f} | {size / 1e6:.1f} | {ratios} |"
        )


def median(pairs: Sequence[tuple[float, float]]) -> list[float]:
    return [statistics.median(column) for column in zip(*pairs, strict=True)]


def made(rollouts: int, tokens: int) -> list[StoredGroup]:
    """Words drawn as often as those of a language are, with log-probs as of a policy that is mostly sure."""
    random = np.random.default_rng(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [" " + "".join(random.choice(list(letters), random.integers(1, 8))) for _ in range(VOCABULARY)]
    shares = 1 / np.arange(1, VOCABULARY + 1) ** 1.05
    prompt = Prompt(problem_id="p", text="?", token_ids=(1,))
    groups = []
    for _ in range(rollouts):
        ids = random.choice(VOCABULARY, size=tokens, p=shares / shares.sum()).tolist()
        logprobs = (-(random.exponential(0.4, size=tokens) ** 2)).astype(np.float32)
        rollout = Rollout(
            prompt=prompt,
            token_ids=tuple(ids),
            text="".join(words[number] for number in ids),
            token_ends=tuple(np.cumsum([len(words[number]) for number in ids]).tolist()),
            sampler_logprobs=tuple(logprobs.tolist()),
            finish_reason="stop",
        )
        question = Question(problem_id="p", text="?")
        groups.append(StoredGroup(question=question, domain="math", digest=None, rollouts=(rollout,)))
    return groups


def fields(groups: Sequence[StoredGroup]) -> Fields:
    return [(r.token_ids, r.sampler_logprobs, r.token_ends, r.text) for group in groups for r in group.rollouts]


# ------------------------------------------------------------------ formats


def zipped(rows: Sequence[dict[str, Any]]) -> bytes:
    content = io.BytesIO()
    with gzip.GzipFile(fileobj=content, mode="wb", compresslevel=1) as file:
        file.writelines(json.dumps(row).encode() + b"\n" for row in rows)
    return content.getvalue()


def unzipped(content: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in gzip.decompress(content).splitlines()]


def write_lists(groups: Sequence[StoredGroup]) -> bytes:
    return zipped([{"ids": i, "logprobs": p, "ends": e, "text": t} for i, p, e, t in fields(groups)])


def read_lists(content: bytes) -> Fields:
    return [(tuple(r["ids"]), tuple(r["logprobs"]), tuple(r["ends"]), r["text"]) for r in unzipped(content)]


def packed(values: Sequence[float], dtype: type[np.generic]) -> str:
    return base64.b64encode(np.asarray(values, dtype).tobytes()).decode()


def unpacked(text: str, dtype: type[np.generic]) -> Any:
    return np.frombuffer(base64.b64decode(text), dtype)


def write_base64(groups: Sequence[StoredGroup]) -> bytes:
    return zipped(
        [
            {
                "ids": packed(i, np.int32),
                "logprobs": packed(p, np.float32),
                "ends": packed(np.diff(e, prepend=0), np.int32),
                "text": t,
            }
            for i, p, e, t in fields(groups)
        ]
    )


def read_base64(content: bytes) -> Fields:
    return [
        (
            tuple(unpacked(r["ids"], np.int32).tolist()),
            tuple(unpacked(r["logprobs"], np.float32).tolist()),
            tuple(np.cumsum(unpacked(r["ends"], np.int32)).tolist()),
            r["text"],
        )
        for r in unzipped(content)
    ]


def read_store(content: bytes) -> Fields:
    with tempfile.NamedTemporaryFile(suffix=".npz") as file:
        Path(file.name).write_bytes(content)
        return fields(decode(Path(file.name))[1])


def parquet() -> list[Way]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        return []

    def write(groups: Sequence[StoredGroup]) -> bytes:
        ids, logprobs, ends, texts = zip(*fields(groups), strict=True)
        columns = {
            "ids": pyarrow.array([np.asarray(one, np.int32) for one in ids]),
            "logprobs": pyarrow.array([np.asarray(one, np.float32) for one in logprobs]),
            "ends": pyarrow.array([np.diff(one, prepend=0).astype(np.int32) for one in ends]),
            "text": list(texts),
        }
        content = io.BytesIO()
        parquet.write_table(pyarrow.table(columns), content, compression="zstd")
        return content.getvalue()

    def read(content: bytes) -> Fields:
        table = parquet.read_table(io.BytesIO(content))
        numbers = zip(*(table[name] for name in ("ids", "logprobs", "ends", "text")), strict=True)
        return [
            (
                tuple(i.values.to_numpy().tolist()),
                tuple(p.values.to_numpy().tolist()),
                tuple(np.cumsum(e.values.to_numpy()).tolist()),
                t.as_py(),
            )
            for i, p, e, t in numbers
        ]

    return [Way("Parquet, zstd", write, read)]


if __name__ == "__main__":
    main()
