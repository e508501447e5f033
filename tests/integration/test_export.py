"""A run's policy outside of it: exported, judged equal, loaded by others, and as the start of the next run."""

from __future__ import annotations

import copy
import json
import os
import shutil
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from exprl.cli import main
from exprl.commands.export import export, exported, trained_policy, write_model
from exprl.errors import CheckpointError, ModelError
from exprl.experiment import LoRAConfig, load_experiment
from exprl.models import PretrainedModel
from exprl.models.base import LanguageModel
from exprl.models.lora import attach, without_adapter
from exprl.runs.checkpoints import load_policy, policy_weights
from exprl.runs.places import find_checkpoint
from exprl.terminal.console import Console
from tests.conftest import character_tokenizer, skip_without_adapters, tiny_llama
from tests.integration.conftest import ROOT, SMALL
from tests.integration.test_cli import exprl, failing

pytestmark = pytest.mark.usefixtures("forking")

IDS = torch.arange(6, 30).reshape(2, 12)
LORA = ["lora.rank=4", "optimizer.lr=1.0e-2"]
SECOND = [item for item in SMALL if not item.startswith("model.")]
"""The small experiment's overrides for a run on another model."""


def trained(folder: Path, *overrides: str) -> Path:
    from exprl.commands.train import train

    experiment = load_experiment(ROOT / "configs/quickstart.yaml", [*SMALL, "trainer.max_steps=2", *overrides])
    with (folder.parent / f"{folder.name}.log").open("w") as log:
        train(experiment, folder, resume=False, console=Console(file=log))
    return folder


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that trained all weights for two steps; tests must not change it."""
    return trained(tmp_path_factory.mktemp("full") / "run")


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that trained an adapter for two steps; tests must not change it."""
    skip_without_adapters()
    return trained(tmp_path_factory.mktemp("lora") / "run", *LORA)


@torch.no_grad()
def logprobs(model: nn.Module, ids: Tensor = IDS) -> Tensor:
    return model(ids).logits.float().log_softmax(-1)


def of_tokens(model: nn.Module, ids: Tensor) -> Tensor:
    """Log-probs [T - 1] of a text's tokens after the first, in the model's precision."""
    with torch.no_grad():
        return model(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None]).squeeze(-1)


def policy_of(run: Path) -> LanguageModel:
    return trained_policy(*find_checkpoint(run))


def silent() -> Console:
    return Console(quiet=True)


def copy_of(run: Path, folder: Path) -> Path:
    return Path(shutil.copytree(run, folder))


# ------------------------------------------------------------------ a Hugging Face folder


def test_the_export_is_the_trained_policy(full: Path, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "model"
    export(full, folder, console=silent())
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    [checkpoint] = (full / "checkpoints").glob("*.ckpt")
    raw = torch.load(checkpoint, weights_only=False)["state_dict"]
    assert {f"policy.{name}" for name in model.state_dict()} == set(raw)
    assert all(torch.equal(weight, raw[f"policy.{name}"]) for name, weight in model.state_dict().items())
    policy = policy_of(full)
    assert torch.equal(logprobs(model), logprobs(policy.model))
    initial = AutoModelForCausalLM.from_pretrained(policy.model.name_or_path)
    assert not torch.equal(logprobs(model), logprobs(initial)), "two steps moved it"
    assert model.generation_config.eos_token_id == policy.model.generation_config.eos_token_id
    ids = list(range(len(policy.tokenizer)))
    assert tokenizer.get_vocab() == policy.tokenizer.get_vocab()
    assert [tokenizer.decode([i]) for i in ids] == [policy.tokenizer.decode([i]) for i in ids]
    assert tokenizer.decode(ids) == policy.tokenizer.decode(ids)
    assert tokenizer("Start 3\n+4 → 7").input_ids == policy.tokenizer("Start 3\n+4 → 7").input_ids
    messages = [{"role": "user", "content": "2"}]
    texts = [t.apply_chat_template(messages, tokenize=False) for t in (tokenizer, policy.tokenizer)]
    assert texts[0] == texts[1]
    assert (tokenizer.padding_side, tokenizer.eos_token) == ("left", policy.tokenizer.eos_token)
    assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {0o644}
    assert list(folder.parent.iterdir()) == [folder]


def test_whoever_samples_from_an_export_stops_where_rollouts_did(tmp_path: Path) -> None:
    tokenizer = character_tokenizer()  # whose template, like those of many base models, ends a reply by another token
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}<user>{% endfor %}"
    policy = LanguageModel(model=tiny_llama(len(tokenizer)), tokenizer=tokenizer, name="base")
    write_model(policy, tmp_path)
    ends = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<user>")]
    assert GenerationConfig.from_pretrained(tmp_path).eos_token_id == sorted(ends)


def test_sampling_options_that_contradict_each_other_stop_no_export(tmp_path: Path, caplog: Any) -> None:
    tokenizer = character_tokenizer()
    policy = LanguageModel(model=tiny_llama(len(tokenizer)), tokenizer=tokenizer, name="vicuna")
    policy.model.generation_config.update(do_sample=False, temperature=0.9, top_p=0.6)  # as published with some models
    write_model(policy, tmp_path)
    assert "vicuna: the sampling options of its generation config contradict each other" in caplog.text
    written = GenerationConfig.from_pretrained(tmp_path)
    assert (written.eos_token_id, written.temperature) == (tokenizer.eos_token_id, None)
    assert torch.equal(logprobs(AutoModelForCausalLM.from_pretrained(tmp_path)), logprobs(policy.model))


def test_an_adapter_is_merged(adapted: Path, tmp_path: Path) -> None:
    export(adapted, tmp_path / "model", console=silent())
    model, policy = AutoModelForCausalLM.from_pretrained(tmp_path / "model"), policy_of(adapted)
    assert not any("base_layer" in name for name in model.state_dict())
    torch.testing.assert_close(logprobs(model), logprobs(policy.model), atol=1e-4, rtol=0)
    with without_adapter(policy.model):
        assert (logprobs(model) - logprobs(policy.model)).abs().max() > 1e-2, "two steps moved it"


@pytest.mark.slow
def test_smollm2_merged_is_smollm2_with_its_adapter(smollm2: LanguageModel, tmp_path: Path) -> None:
    skip_without_adapters()
    folder = tmp_path / "base"
    smollm2.model.save_pretrained(folder)
    policy = replace(smollm2, model=AutoModelForCausalLM.from_pretrained(folder).eval())
    attach(policy.model, **vars(LoRAConfig(rank=4)))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in policy.model.named_parameters():
        if ".lora_B." in name:
            parameter.data = 3e-3 * torch.randn(parameter.shape, generator=generator)
    write_model(policy, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = torch.tensor([smollm2.tokenizer("The capital of France is Paris, and that of Italy is Rome.").input_ids])
    before, given, merged = (of_tokens(m.double(), ids) for m in (copy.deepcopy(smollm2.model), policy.model, model))
    assert (given - before).abs().max() > 0.1
    torch.testing.assert_close(merged, given, atol=1e-5, rtol=0)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == smollm2.tokenizer.chat_template


def test_another_precision(full: Path, tmp_path: Path) -> None:
    export(full, tmp_path / "model", dtype="bfloat16", console=silent())
    stored = load_file(tmp_path / "model" / "model.safetensors")
    assert {weight.dtype for weight in stored.values()} == {torch.bfloat16}
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "model").dtype == torch.bfloat16
    export(full, tmp_path / "as-trained", console=silent())
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "as-trained").dtype == torch.float32


# ------------------------------------------------------------------ the command


@pytest.mark.slow
def test_the_command_exports_a_checkpoint_and_an_adapter(adapted: Path, tmp_path: Path) -> None:
    [checkpoint] = (adapted / "checkpoints").glob("*.ckpt")
    whole = exprl("export", checkpoint.name, str(tmp_path / "whole"), cwd=checkpoint.parent)
    assert whole.returncode == 0, whole.stderr
    assert "model.safetensors" in whole.stdout
    assert f"model.path={tmp_path / 'whole'}" in whole.stdout
    part = exprl("export", str(adapted), str(tmp_path / "part"), "--adapter")
    assert part.returncode == 0, part.stderr
    assert {path.name for path in (tmp_path / "part").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    base = json.loads((tmp_path / "part" / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert base in part.stdout
    model = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "part")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    torch.testing.assert_close(logprobs(model.eval()), logprobs(merged), atol=1e-4, rtol=0)
    with model.disable_adapter():
        assert (logprobs(model) - logprobs(merged)).abs().max() > 1e-2


def test_what_cannot_be_exported(full: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    used = tmp_path / "used"
    used.mkdir()
    export(full, used, console=silent())  # an empty folder is fine
    before = {path: path.stat().st_mtime_ns for path in used.iterdir()}
    assert "already holds something" in failing(capsys, "export", str(full), str(used))
    assert {path: path.stat().st_mtime_ns for path in used.iterdir()} == before
    new = str(tmp_path / "new")
    assert "no run or checkpoint" in failing(capsys, "export", str(tmp_path / "none"), new)
    assert "lora.rank=0" in failing(capsys, "export", str(full), new, "--adapter")
    assert "is a model already" in failing(capsys, "export", str(used), new)
    assert "is no run folder, nor a checkpoint in one" in failing(capsys, "export", str(tmp_path), new)
    (tmp_path / "file").write_text("")
    assert "below cannot be written" in failing(capsys, "export", str(full), str(tmp_path / "file" / "below"))
    empty = tmp_path / "empty"
    (empty / "checkpoints").mkdir(parents=True)
    shutil.copy(full / "config.yaml", empty)
    assert "has no checkpoint yet" in failing(capsys, "export", str(empty), new)
    with pytest.raises(SystemExit):
        main(["export", str(full), new, "--dtype", "int8"])
    assert {path.name for path in tmp_path.iterdir()} == {"used", "file", "empty"}


# ------------------------------------------------------------------ reading checkpoints


class Evil:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


def test_checkpoints_that_cannot_be_read(full: Path, tmp_path: Path) -> None:
    run = copy_of(full, tmp_path / "run")
    [checkpoint] = (run / "checkpoints").glob("*.ckpt")
    content = checkpoint.read_bytes()
    for length in (0, 100, len(content) // 2, len(content) - 10):
        checkpoint.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match="no checkpoint of the run is whole"):
            export(run, tmp_path / "new", console=silent())
        with pytest.raises(ModelError, match="is damaged"):
            export(checkpoint, tmp_path / "new", console=silent())
        with pytest.raises(ModelError, match="cannot be read"):
            policy_weights(checkpoint)
    torch.save({"state_dict": {"policy.a": torch.zeros(1)}, "more": Evil(tmp_path / "evil")}, checkpoint)
    with pytest.raises(ModelError, match="cannot be read"):
        policy_weights(checkpoint)
    torch.save({"state_dict": {"other.a": torch.zeros(1)}}, checkpoint)
    with pytest.raises(ModelError, match="holds no policy"):
        policy_weights(checkpoint)
    with pytest.raises(ModelError, match="no checkpoint"):
        policy_weights(tmp_path / "none.ckpt")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def save_in_parts(rank: int, port: int, run: str, folder: str) -> None:
    """One of two ranks that save the run's policy as Lightning's `ModelParallelStrategy` does."""
    from torch import distributed
    from torch.distributed.checkpoint import save
    from torch.distributed.checkpoint.state_dict import get_model_state_dict, get_optimizer_state_dict
    from torch.distributed.fsdp import fully_shard

    distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    model = policy_of(Path(run)).model
    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard(model)
    module = nn.Module()
    module.policy = model
    optimizer = torch.optim.AdamW(p for p in model.parameters() if p.requires_grad)
    state = get_model_state_dict(module)
    save({"state_dict": state, "optimizer_0": get_optimizer_state_dict(module, optimizer)}, checkpoint_id=folder)
    if rank == 0:
        torch.save({"exprl": {"steps_done": 7}}, Path(folder) / "meta.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def in_parts(adapted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run `adapted` with its checkpoint saved anew by two processes, as step 7; tests must not change it."""
    run = copy_of(adapted, tmp_path_factory.mktemp("parts") / "run")
    folder = run / "checkpoints" / "step-000007.ckpt"
    torch.multiprocessing.spawn(save_in_parts, (free_port(), str(adapted), str(folder)), nprocs=2)
    return run


@pytest.mark.slow
def test_a_checkpoint_in_parts_is_the_same_policy(adapted: Path, in_parts: Path) -> None:
    _, checkpoint = find_checkpoint(in_parts)
    assert checkpoint.is_dir()
    assert len(list(checkpoint.glob("*.distcp"))) == 2
    parts, whole = policy_weights(checkpoint), policy_weights(find_checkpoint(adapted)[1])
    assert parts.keys() == whole.keys()
    assert all(torch.equal(parts[name], whole[name]) for name in whole)
    assert not torch.distributed.is_initialized()
    assert exported(in_parts).name == "step-000007"
    model = AutoModelForCausalLM.from_pretrained(exported(in_parts))
    torch.testing.assert_close(logprobs(model), logprobs(policy_of(adapted).model), atol=1e-4, rtol=0)


@pytest.mark.slow
def test_parts_that_are_missing(in_parts: Path, tmp_path: Path) -> None:
    checkpoint = copy_of(find_checkpoint(in_parts)[1], tmp_path / "step-000007.ckpt")
    part = max(checkpoint.glob("*.distcp"))
    content = part.read_bytes()
    for broken in (content[: len(content) // 2], b""):
        part.write_bytes(broken)
        with pytest.raises(ModelError, match="cannot be read"):
            policy_weights(checkpoint)
    part.unlink()
    with pytest.raises(ModelError, match="cannot be read"):
        policy_weights(checkpoint)
    (checkpoint / ".metadata").unlink()
    with pytest.raises(ModelError, match="no whole checkpoint"):
        policy_weights(checkpoint)


def test_weights_keep_the_precision_they_trained_in(full: Path) -> None:
    policy = policy_of(full)
    model = AutoModelForCausalLM.from_pretrained(policy.model.name_or_path, dtype="bfloat16")
    load_policy(model, find_checkpoint(full)[1])
    assert model.dtype == torch.float32
    assert torch.equal(logprobs(model), logprobs(policy.model))


def test_a_checkpoint_of_another_model(full: Path) -> None:
    with pytest.raises(ModelError, match="does not fit the model"):
        load_policy(tiny_llama(50), find_checkpoint(full)[1])


# ------------------------------------------------------------------ a run as the start of another


@pytest.mark.parametrize("first", ["full", "adapted"])
def test_stage_two_starts_from_stage_one(
    first: str, tmp_path: Path, run: Callable[..., dict[str, Any]], request: pytest.FixtureRequest
) -> None:
    stage_one = copy_of(request.getfixturevalue(first), tmp_path / "one")
    options = ["model.name=pretrained", f"model.path={stage_one}", "reward.name=sparse", "advantage.name=group"]
    experiment = load_experiment(ROOT / "configs/quickstart.yaml", [*SECOND, *options, "trainer.max_steps=1"])
    initial = experiment.model.build(None).load()
    torch.testing.assert_close(logprobs(initial.model), logprobs(policy_of(stage_one).model), atol=1e-4, rtol=0)
    assert initial.name == str(stage_one)
    summary = run(experiment, "two")
    after_one = json.loads((stage_one / "evaluation" / "after.json").read_text())
    before_two = json.loads((tmp_path / "two" / "evaluation" / "before.json").read_text())
    assert summary["steps"] == 1
    assert before_two == after_one, "the same policy, samples and problems"
    assert [path.name for path in (stage_one / "export").iterdir()] == ["step-000002"]


def test_a_run_is_exported_once_and_a_checkpoint_can_be_named(full: Path, tmp_path: Path) -> None:
    run = copy_of(full, tmp_path / "run")
    later = run / "checkpoints" / "step-000011.ckpt"
    content = torch.load(run / "checkpoints" / "step-000002.ckpt", weights_only=True)
    content["exprl"]["steps_done"] = 11
    torch.save(content, later)
    folder = exported(run)
    assert folder == run / "export" / "step-000011"
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert exported(run) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    named = PretrainedModel(path=str(run / "checkpoints" / "step-000002.ckpt")).load()
    assert Path(named.model.name_or_path) == run / "export" / "step-000002"
    assert sorted(path.name for path in (run / "export").iterdir()) == ["step-000002", "step-000011"]


def test_a_run_without_a_checkpoint_is_no_start(full: Path, tmp_path: Path) -> None:
    run = copy_of(full, tmp_path / "run")
    for checkpoint in (run / "checkpoints").iterdir():
        checkpoint.unlink()
    with pytest.raises(ModelError, match="has no checkpoint yet"):
        PretrainedModel(path=str(run)).load_tokenizer()


def test_a_run_takes_the_place_of_a_gguf_file(full: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stage II by the config of Stage I, whose model was a file of a folder."""
    run = copy_of(full, tmp_path / "run")
    experiment = load_experiment(ROOT / "configs/smollm2_champ.yaml", [f"model.path={run}"])
    assert experiment.model.config.gguf_file is None
    assert experiment.model.config.dtype == "float32"
    torch.testing.assert_close(
        logprobs(experiment.model.build(None).load().model), logprobs(policy_of(run).model), atol=1e-4, rtol=0
    )
    both = PretrainedModel(path=str(run), gguf_file="a.gguf")
    monkeypatch.setattr(
        "exprl.commands.export.exported", lambda _: pytest.fail("exported before the options were looked at")
    )
    with pytest.raises(ModelError, match=r"model\.gguf_file: a\.gguf is given, but model\.path .* is a run"):
        both.load_tokenizer()


def test_evaluate_reads_a_lora_run(adapted: Path, tmp_path: Path) -> None:
    arguments = ["evaluate", str(adapted), "--output", str(tmp_path / "figures.json")]
    main(arguments)
    assert json.loads((tmp_path / "figures.json").read_text()) == json.loads(
        (adapted / "evaluation" / "after.json").read_text()
    )
