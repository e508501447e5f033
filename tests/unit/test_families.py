"""Every causal-LM family of transformers in miniature: computed rightly, or refused by name."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from exprl.commands.train import train
from exprl.engines.transformers import TransformersEngine
from exprl.errors import EngineError, ModelError
from exprl.experiment import load_experiment
from exprl.models import logits
from exprl.models.base import LanguageModel
from exprl.models.logits import Affine, head_of
from exprl.terminal.console import Console
from exprl.training.batching import TokenSequence, collate
from exprl.training.policy import response_logprobs
from exprl.training.start_check import check_agreement
from tests.conftest import character_tokenizer
from tests.families import Outcome, examine, families, miniature, plain_logprobs, table


def engine_of(policy: LanguageModel) -> TransformersEngine:
    return TransformersEngine(policy=policy)


def policy_of(family: str) -> LanguageModel:
    return LanguageModel(model=miniature(family), tokenizer=character_tokenizer(), name=family)


@pytest.fixture(scope="module")
def walked() -> dict[str, Outcome]:
    outcomes = {family: examine(family, engine_of) for family in families()}
    print(table(outcomes))
    return outcomes


MUST_AGREE = (
    "bamba", "bloom", "cohere", "cohere2", "deepseek_v3", "falcon_h1", "falcon_mamba", "gemma2", "gemma3_text", "gpt2",
    "gpt_neo", "gpt_oss", "granite", "granitemoehybrid", "hyperclovax", "jamba", "lfm2", "llama", "mamba", "mamba2",
    "minimax", "mistral", "mpt", "nanochat", "olmo2", "opt", "phi3", "qwen2", "qwen3", "qwen3_moe", "qwen3_next",
    "smollm3", "vaultgemma", "zamba2",
)  # fmt: skip


@pytest.mark.slow
def test_every_family_is_right_or_refused_by_name(walked):
    wrong = {family: outcome for family, outcome in walked.items() if outcome.kind in ("differs", "broke")}
    assert not wrong
    assert not [family for family in MUST_AGREE if walked[family].kind != "agreed"]
    counts = Counter(outcome.kind for outcome in walked.values())
    assert counts["agreed"] >= 100
    assert counts["own forward"] >= 5
    assert counts["refused"] <= 15


# ------------------------------------------------------------------ from hidden states to logits


def test_what_stands_between_hidden_states_and_logits():
    known = {"llama": Affine(), "granite": Affine(1 / 8), "hyperclovax": Affine(8.0), "gemma2": Affine(softcap=5.0)}
    for family, affine in known.items():
        assert head_of(miniature(family)).affine == affine
    assert head_of(miniature("cohere")).affine == Affine(miniature("cohere").config.logit_scale)
    assert head_of(miniature("modernbert-decoder")).affine is None


def gradients(model: torch.nn.Module, loss: Tensor) -> list[Tensor]:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    found = torch.autograd.grad(loss, trained, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(trained, found, strict=True)]


@pytest.mark.parametrize(
    "family", ["granite", "cohere", "gemma2", "hyperclovax", "falcon_h1", "modernbert-decoder", "bert"]
)
def test_log_probs_and_their_gradient_are_those_of_the_models_own_logits(family, monkeypatch):
    monkeypatch.setattr(logits, "_SLICE_LOGITS", 3 * 104)  # three tokens a slice
    model = miniature(family)
    sequences = [
        TokenSequence(prompt_ids=(5, 6, 7), response_ids=(8, 9, 10, 11, 12)),
        TokenSequence(prompt_ids=(15, 16), response_ids=(18, 19)),
    ]
    batch = collate(sequences, pad_token_id=0, device=torch.device("cpu"))
    ours = response_logprobs(model, batch, temperature=0.7, entropy=True)
    plain = torch.cat([plain_logprobs(model, sequence, 0.7) for sequence in sequences])
    assert (ours.logp - plain).abs().max() < 1e-4
    for mine, theirs in zip(gradients(model, ours.logp.sum()), gradients(model, plain.sum()), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("divergence", ["rkl", "fkl", "jsd"])
def test_a_divergence_by_the_models_own_logits_is_the_kernels(divergence, monkeypatch):
    model, other = miniature("llama"), miniature("llama", seed=1)
    hidden, frozen = torch.randn(7, 32), logits.FrozenHidden(other, torch.randn(7, 32))
    options = {"entropy": True, "frozen": frozen, "divergence": divergence, "temperature": 0.7}
    ids = torch.arange(7)
    kernel = logits.token_statistics(model, hidden, ids, **options)
    monkeypatch.setattr(model, "_exprl_head", replace(head_of(model), affine=None))
    monkeypatch.setattr(logits, "_SLICE_LOGITS", 3 * 104)
    own = logits.token_statistics(model, hidden, ids, **options)
    for mine, theirs in zip(own, kernel, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_bfloat16_tells_the_forms_apart():
    for family in ("llama", "granite", "cohere", "gemma2"):
        assert head_of(miniature(family).bfloat16()).affine == head_of(miniature(family)).affine


# ------------------------------------------------------------------ the start check


def test_the_check_gives_the_figures_in_one_line():
    policy = policy_of("granite")
    found = check_agreement(policy, engine_of(policy), packed=False, frozen=policy_of("granite"))
    assert max(found.gaps.values()) < 1e-5
    assert "\n" not in found.line
    assert f"{float(found.own.mean()):.4f}" in found.line


def test_a_wrong_head_is_refused_with_both_numbers(monkeypatch):
    policy = policy_of("granite")
    monkeypatch.setattr(policy.model, "_exprl_head", replace(head_of(policy.model), affine=Affine()))
    with pytest.raises(
        ModelError, match=r"granite: trainer and the model's own forward pass disagree.*off by"
    ) as error:
        check_agreement(policy, engine_of(policy), packed=False)
    assert "model's own forward -" in str(error.value)
    assert "choose another model" in str(error.value)


def test_a_state_lost_between_tokens_is_refused(monkeypatch):
    """What passing a Mamba's cache under another name did."""
    from exprl.models import steps

    policy, advance = policy_of("mamba"), steps.advance
    monkeypatch.setattr(steps, "advance", lambda model, ids, *, cache, **rest: advance(model, ids, **rest))
    with pytest.raises(ModelError, match=r"mamba: engine transformers and the model's own forward pass disagree"):
        check_agreement(policy, engine_of(policy), packed=False)


def test_a_packed_micro_batch_that_mixes_its_rollouts_is_refused():
    policy = policy_of("mamba")
    with pytest.raises(ModelError, match="packed trainer"):
        check_agreement(policy, engine_of(policy), packed=True)
    llama = policy_of("llama")
    assert len(check_agreement(llama, engine_of(llama), packed=True).others) == 3


def test_a_model_that_looks_ahead_is_refused():
    policy = policy_of("bert")
    policy.model.config.is_decoder = False
    with pytest.raises(ModelError, match=r"BertLMHeadModel|bert"):
        check_agreement(policy, engine_of(policy), packed=False)


# ------------------------------------------------------------------ while it trains


@pytest.mark.parametrize(("gap", "epochs", "stops"), [(0.0, 1, False), (0.5, 1, True), (0.0, 3, False)])
def test_a_step_sampled_from_another_policy_stops_before_the_update(tmp_path, gap, epochs, stops):
    """The gap of every update is watched; further epochs, which move the policy, do not widen it."""

    class Off(TransformersEngine):
        registered_name = "off"

        def generate(self, prompts, sampling):
            shift = gap if prompts[0].problem_id != "start check" else 0.0
            for index, rollout in super().generate(prompts, sampling):
                yield index, replace(rollout, sampler_logprobs=tuple(p - shift for p in rollout.sampler_logprobs))

    overrides = [
        "data.prompts_per_step=4", "rollout.samples_per_prompt=4", "evaluation.source=null", "trainer.max_steps=1",
        "optimizer.lr=0.001", f"update.epochs={epochs}", "data.train.count=16", "data.train.steps=2",
        "model.max_steps=2", "model.target_accuracy=0.3", "model.reads_references=false",
    ]  # fmt: skip
    experiment = load_experiment("configs/quickstart.yaml", overrides)
    with pytest.MonkeyPatch.context() as patch:
        from_config = classmethod(lambda cls, c, r: Off.made(c, policy=r.need_policy("off")))
        patch.setattr(TransformersEngine, "from_config", from_config)
        if not stops:
            assert train(experiment, tmp_path / "run", resume=False, console=Console(quiet=True))["steps"] == 1
            return
        with pytest.raises(EngineError, match=r"step 1.*differ by 0\.5.*gap_tolerance"):
            train(experiment, tmp_path / "run", resume=False, console=Console(quiet=True))
