"""What `gpu.py` finds out, in order of value."""

from __future__ import annotations

from dataclasses import dataclass

UNFINISHED = 75
"""How a stage ends that used up its own budget and goes on when it is called again (EX_TEMPFAIL of sysexits.h)."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One thing to find out.

    Attributes:
        name: as --only and --again take it.
        question: what its figures answer.
        command: after the interpreter; `{out}` is the folder of the results, `{own}` one that is empty at its start.
        seconds: about what it takes; with less left it is not begun.
        after: the stage that leaves behind what this one builds on.
    """

    name: str
    question: str
    command: tuple[str, ...]
    seconds: int
    after: str | None = None


def stages(device: str) -> list[Stage]:
    """In order of value."""
    return _on_gpu() if device == "cuda" else _in_miniature()


def _on_gpu() -> list[Stage]:
    large = ("--config", "qwen3-0.6b", "qwen3-4b-16k")
    whole = ("--shape", "qwen3-0.6b", "--precision", "bf16", "--rollouts", "32", "--repeats", "2")
    return [
        _tests("-n", "12", "tests/unit/kernels", "tests/unit/test_recorded.py", seconds=120),
        *_runs("gpu", first=120, second=60),
        _kernels("--device", "cuda", "--budget-seconds", "150", seconds=170),
        _update(*large, seconds=200),
        Stage(
            name="compiled",
            question="And with its layers compiled?",
            command=("benchmarks/update_step.py", *large, "--variant", "ours", "--compile-layers"),
            seconds=100,
        ),
        _steps(*whole, seconds=110),
        Stage(
            name="blocks",
            question="Are the kernels' blocks and warps the best ones here?",
            command=("benchmarks/kernels.py", "--sweep"),
            seconds=120,
        ),
    ]


def _in_miniature() -> list[Stage]:
    size = ("--tokens", "256", "--hidden", "64", "--vocabulary", "1000", "--dtype", "float32", "--repeats", "1")
    return [
        _tests("tests/unit/kernels/test_policy_loss.py", seconds=60),
        *_runs("cpu", first=180, second=60),
        _kernels("--device", "cpu", "--budget-seconds", "60", *size, seconds=75),
        _update("--config", "tiny", "--variant", "ours", seconds=60),
        _steps("--small", "--variant", "exprl", seconds=60),
    ]


def _tests(*options: str, seconds: int) -> Stage:
    return Stage(
        name="tests",
        question="Do the kernels give on this device what float64 gives, bit for bit the same twice?",
        command=("-m", "pytest", "-q", "-p", "no:cacheprovider", *options),
        seconds=seconds,
    )


def _runs(accelerator: str, *, first: int, second: int) -> list[Stage]:
    """Of the miniature world, three steps each; the first warms the policy up, which the second finds."""
    short = ("trainer.max_steps=3", "evaluation.source.count=8", f"trainer.accelerator={accelerator}")
    run = ("-m", "exprl", "train", "configs/quickstart.yaml", *short, "run_dir={own}/run")
    mixed = (*run, "trainer.precision=bf16-mixed")
    return [
        Stage(name="step", question="Does a whole run train here?", command=run, seconds=first),
        Stage(name="bf16", question="And in mixed precision?", command=mixed, seconds=second, after="step"),
    ]


def _kernels(*options: str, seconds: int) -> Stage:
    kept = ("--markdown", "{out}/kernels.md", "--keep", "{out}/kernels-tables.json")
    return Stage(
        name="kernels",
        question="How fast are the kernels, and how much memory do they take, beside those of peers?",
        command=("benchmarks/kernels.py", *options, *kept),
        seconds=seconds,
    )


def _update(*options: str, seconds: int) -> Stage:
    return Stage(
        name="update",
        question="What does one update cost, at 4K and, of a 4B model, at 16K tokens?",
        command=("benchmarks/update_step.py", *options),
        seconds=seconds,
    )


def _steps(*options: str, seconds: int) -> Stage:
    return Stage(
        name="steps",
        question="How fast are whole steps beside TRL's?",
        command=("benchmarks/step.py", *options),
        seconds=seconds,
    )
