"""Options that this machine cannot do are refused before a model is loaded or sampled from."""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from exprl.build import Build
from exprl.checks.compilers import compile_errors
from exprl.commands.train import TrainingRun
from exprl.engines import TransformersEngine
from exprl.errors import ConfigError, ModelError
from exprl.experiment import TrainerConfig, UpdateConfig, load_experiment
from exprl.judges.backends.base import Query
from exprl.judges.backends.transformers import TransformersBackend
from exprl.judges.prompting import JudgePrompt, Piece
from exprl.models.base import LanguageModel
from exprl.runs.directory import RunDirectory
from exprl.terminal.console import Console
from exprl.terminal.progress import no_progress
from exprl.training.launch import devices_here
from exprl.training.machine import check_accelerator, check_attention, check_kernels
from exprl.training.start_check import check_agreement
from tests.conftest import character_tokenizer, tiny_llama

CPU = torch.device("cpu")


@pytest.mark.parametrize("accelerator", ["cuda", "mps", "gpu"])
def test_an_accelerator_that_is_not_there(accelerator, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=rf"^trainer\.accelerator: {accelerator}, but PyTorch .* finds none"):
        devices_here(TrainerConfig(accelerator=accelerator), {})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: accelerator != "mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: accelerator == "mps")
    check_accelerator(TrainerConfig(accelerator=accelerator))


def test_triton_on_a_cpu(monkeypatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(
        ConfigError, match=r"^update\.kernels: triton cannot run here: .*Set update\.kernels=auto, eager or compile"
    ):
        check_kernels(UpdateConfig(kernels="triton"), CPU, torch.float32)
    for kernels in ("auto", "eager", "compile"):
        check_kernels(UpdateConfig(kernels=kernels), CPU, torch.float32)


@pytest.mark.parametrize("precision", ["16-true", "64-true", "bf16", "garbage", 32])
def test_a_precision_that_is_not_one_of_them(precision) -> None:
    with pytest.raises(ConfigError, match=rf"^precision: got {precision!r}\..*32-true, bf16-mixed"):
        TrainerConfig(precision=precision)


def test_flex_attention_does_not_train_on_a_cpu() -> None:
    flex, plain = (
        load_experiment(None, ["model.path=x", f"model.attn_implementation={name}"]).model
        for name in ("flex_attention", "sdpa")
    )
    with pytest.raises(ConfigError, match=r"^model\.attn_implementation: flex_attention .*implementation=sdpa"):
        check_attention(flex, CPU)
    check_attention(flex, torch.device("cuda"))
    check_attention(plain, CPU)
    check_attention(load_experiment(None, ["model.name=chain"]).model, CPU)


def builds_nothing(graph: object, inputs: object) -> None:
    raise OSError(
        "C++ compile error\n\nOutput:\nx.cpp: In lambda function:\nx.cpp:7:1: error: 'size' was not declared\n^^"
    )


@pytest.fixture
def uncompilable() -> LanguageModel:
    """A model of which a layer is compiled, which fails at its first use."""
    tokenizer = character_tokenizer()
    model = tiny_llama(len(tokenizer))
    layer: nn.Module = model.model.layers[0].mlp
    layer.forward = torch.compile(layer.forward, backend=builds_nothing)
    return LanguageModel(model=model, tokenizer=tokenizer, name="tiny")


def begin(policy: LanguageModel) -> None:
    check_agreement(policy, TransformersEngine(policy=policy), packed=False)


def evaluate(policy: LanguageModel) -> None:
    build = Build(load_experiment(None, ["model.name=chain", "evaluation.source={name: chain, count: 1}"]))
    vars(build)["policy"] = policy
    build.evaluate(no_progress)


def judge(policy: LanguageModel) -> None:
    query = Query(prompt=JudgePrompt((Piece("?"),)), max_new_tokens=2)
    TransformersBackend(language_model=policy).run([query], no_progress)


def told_in_one_line(error: ModelError) -> None:
    assert re.fullmatch(r"torch\.compile cannot .* 'size' was not declared.*implementation=sdpa.*", str(error))


@pytest.mark.parametrize("use", [begin, evaluate, judge])
def test_what_cannot_be_compiled_is_told_in_one_line(
    uncompilable: LanguageModel, use: Callable[[LanguageModel], None]
) -> None:
    """Wherever a model runs first."""
    with pytest.raises(ModelError) as refused:
        use(uncompilable)
    told_in_one_line(refused.value)


def test_an_update_that_cannot_be_compiled_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=builds_nothing))
    tokenizer = character_tokenizer()
    for part in (tiny_llama(len(tokenizer)), tokenizer):
        part.save_pretrained(tmp_path / "model")
    options = ["method.name=sft", "update.compile_layers=true", "trainer.max_steps=1", "trainer.loggers=none"]
    data = ["data.train={name: chain, count: 2}", "data.prompts_per_step=2"]
    experiment = load_experiment(None, [f"model.path={tmp_path / 'model'}", *options, *data])
    run = TrainingRun(experiment, RunDirectory(tmp_path / "run"), Console(quiet=True))
    with pytest.raises(ModelError) as refused:
        run.execute(resume=False)
    told_in_one_line(refused.value)


def test_errors_of_no_compiler_are_left_as_they_are() -> None:
    with pytest.raises(RuntimeError, match=r"^mine$"), compile_errors():
        raise RuntimeError("mine")
