"""The transformers engine against the model's own forward pass, and its distribution against theory."""

from __future__ import annotations

import copy

import pytest
import torch
from scipy.stats import chisquare

from exprl.engines import Sampling, TransformersEngine
from exprl.engines.base import by_place
from exprl.engines.decoding import Arrivals, Decoding
from exprl.engines.ends import ends_of
from exprl.engines.prefill import Prefilled
from exprl.engines.sampling import draw, sampling_logprobs, uniforms_for
from exprl.errors import ConfigError, ModelError
from exprl.judges.backends.tree_forward import understands_trees
from exprl.models import steps
from exprl.models.base import LanguageModel
from exprl.models.incremental import reading_of
from exprl.models.steps import MergedSteps, ModelSteps
from exprl.registry import ENGINES
from exprl.resources import Resources
from exprl.training.metrics import sampled_entropy
from exprl.types import Hidden, Problem, Prompt, Question, Rollout, Scaffold
from tests.conftest import character_tokenizer, tiny_llama
from tests.families import miniature


def prompt(tokenizer, text: str, problem_id: str = "p") -> Prompt:
    return Prompt(
        problem_id=problem_id, text=text, token_ids=tuple(tokenizer(text, add_special_tokens=False).input_ids)
    )


def engine_of(language_model: LanguageModel, **options) -> TransformersEngine:
    return TransformersEngine(**options, policy=language_model)


def sample(engine: TransformersEngine, prompts: list[Prompt], **sampling) -> list[list[Rollout]]:
    groups: list[list[Rollout]] = [[] for _ in prompts]
    for index, rollout in engine.generate(prompts, Sampling(**sampling)):
        groups[index].append(rollout)
    return [list(by_place(group)) for group in groups]


def tokens(rollouts) -> list[tuple[int, ...]]:
    """What was sampled at each place."""
    return [rollout.token_ids for rollout in rollouts]


def teacher_forced(model, rollout: Rollout, temperature: float, top_p: float = 1.0, top_k: int = 0) -> torch.Tensor:
    """[T] log-probs of a rollout's tokens from one forward pass without cache, padding or batch."""
    ids = torch.tensor([[*rollout.prompt.token_ids, *rollout.token_ids]])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, len(rollout.prompt.token_ids) - 1 : -1]
    logprobs = sampling_logprobs(logits, temperature, top_p, top_k)
    return logprobs.gather(-1, ids[0, len(rollout.prompt.token_ids) :, None]).squeeze(-1)


@pytest.fixture
def prompts(tiny) -> list[Prompt]:
    texts = ["<user>one<end><assistant>", "<user>a much longer question 17<end><assistant>", "<user>x<end><assistant>"]
    return [prompt(tiny.tokenizer, text, f"p{index}") for index, text in enumerate(texts)]


# ------------------------------------------------------------------ log-probs


@pytest.mark.parametrize(
    "settings", [{"temperature": 1.0}, {"temperature": 0.7}, {"temperature": 1.3, "top_k": 9, "top_p": 0.8}]
)
def test_logprobs_are_those_of_a_teacher_forced_forward(tiny, prompts, settings):
    groups = sample(engine_of(tiny, batch_size=5), prompts, n=6, max_new_tokens=60, **settings)
    assert [len(group) for group in groups] == [6, 6, 6]
    for rollout in (rollout for group in groups for rollout in group):
        expected = teacher_forced(tiny.model, rollout, **settings)
        assert torch.isfinite(expected).all()
        torch.testing.assert_close(torch.tensor(rollout.sampler_logprobs), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.6}, {"temperature": 1.3, "top_k": 9, "top_p": 0.8}])
def test_what_is_sampled_says_what_the_entropy_is(tiny, prompts, settings):
    """Of the distribution that was sampled from, without another pass: as near as chance allows."""
    settings = {"temperature": 1.0, **settings}
    rollouts = [r for group in sample(engine_of(tiny), prompts, n=40, max_new_tokens=30, **settings) for r in group]
    exact = []
    for rollout in rollouts:
        ids = torch.tensor([[*rollout.prompt.token_ids, *rollout.token_ids]])
        with torch.no_grad():
            logits = tiny.model(input_ids=ids).logits[0, len(rollout.prompt.token_ids) - 1 : -1]
        exact.append(torch.distributions.Categorical(logits=sampling_logprobs(logits, **settings)).entropy())
    entropies = torch.cat(exact).double()
    noise = torch.cat([torch.tensor(r.sampler_logprobs).double() for r in rollouts]) + entropies
    assert abs(sampled_entropy(rollouts) - float(entropies.mean())) < 4 * float(noise.std()) / len(noise) ** 0.5
    assert sampled_entropy([]) != sampled_entropy([]), "NaN: there is nothing to say"


def test_logprobs_of_a_real_model(smollm2):
    questions = ["What is 2 + 2?", "Name three rivers in Europe and say where each one ends."]
    templated = [
        smollm2.tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
        )
        for question in questions
    ]
    prompts = [prompt(smollm2.tokenizer, text) for text in templated]
    groups = sample(engine_of(smollm2), prompts, n=2, max_new_tokens=24, temperature=0.8)
    for rollout in (rollout for group in groups for rollout in group):
        expected = teacher_forced(smollm2.model, rollout, temperature=0.8)
        torch.testing.assert_close(torch.tensor(rollout.sampler_logprobs), expected, atol=1e-4, rtol=0)
        assert rollout.text == smollm2.tokenizer.decode(rollout.token_ids, skip_special_tokens=True)


@pytest.fixture(params=[MergedSteps, ModelSteps])
def kind(request, monkeypatch) -> type:
    """Who makes the steps of rollouts long enough for merged weights."""
    if request.param is ModelSteps:
        monkeypatch.setattr(steps, "merged", lambda model, rows: None)
    return request.param


def test_rollouts_do_not_depend_on_the_batch(tiny, prompts, kind):
    """Compaction, padding and neighbours change nothing but the last bits of the log-probs."""
    one_by_one = sample(engine_of(tiny, batch_size=1), prompts, n=7, max_new_tokens=80, seed=3)
    together = sample(engine_of(tiny, batch_size=64), prompts, n=7, max_new_tokens=80, seed=3)
    for alone, batched in zip(one_by_one, together, strict=True):
        assert tokens(alone) == tokens(batched)
        assert [rollout.place for rollout in batched] == list(range(7))
        for a, b in zip(alone, batched, strict=True):
            assert a.sampler_logprobs == pytest.approx(b.sampler_logprobs, abs=1e-4)
    lengths = [len(rollout) for group in together for rollout in group]
    assert min(lengths) < 20, "the test needs early ends, so that rows leave the batch"
    assert max(lengths) == 80, "and late ones, that stay in it"


@pytest.mark.parametrize("batch_size", [3, 8])
def test_waiting_rollouts_take_the_places_of_finished_ones(tiny, prompts, monkeypatch, kind, batch_size):
    """Beside others that are under way, whatever the lengths of their prompts."""
    widths, plain = [], kind.advance

    def advance(self, tokens, positions, mask):
        held = self._length if kind is MergedSteps else self._cache.get_seq_length()
        widths.append((len(tokens), held))
        return plain(self, tokens, positions, mask)

    settings = {"n": 12, "max_new_tokens": 50, "seed": 4}
    alone = sample(engine_of(tiny, batch_size=1), prompts, **settings)
    monkeypatch.setattr(kind, "advance", advance)
    together = sample(engine_of(tiny, batch_size=batch_size), prompts, **settings)
    for one, other in zip(alone, together, strict=True):
        assert tokens(one) == tokens(other)
    count = sum(len(rollout) for group in together for rollout in group)
    full = [rows for rows, _ in widths if rows == batch_size]
    assert len(full) * batch_size > 0.75 * count, "rows stay filled"
    assert max(width for _, width in widths) < 28 + 2 * 50, "columns that no row needs go"


@pytest.mark.parametrize(
    ("family", "dtype", "mixed"),
    [
        *((family, "float32", True) for family in ("llama", "qwen3_moe", "gpt_neox", "gpt2")),
        *(("llama", dtype, mixed) for dtype in ("float16", "bfloat16") for mixed in (True, False)),
    ],
)
def test_rollouts_that_take_places_have_the_odds_of_a_forward_pass_in_any_precision(prompts, family, dtype, mixed):
    """Up to its rounding: under autocast a state has another precision once it has grown."""
    model = miniature(family).to(getattr(torch, dtype))
    policy = LanguageModel(model=model, tokenizer=character_tokenizer(), name=family)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed):
        rollouts = [
            r for group in sample(engine_of(policy, batch_size=3), prompts, n=6, max_new_tokens=30) for r in group
        ]
        gaps = [(torch.tensor(r.sampler_logprobs) - teacher_forced(model, r, 1.0)).abs() for r in rollouts]
    assert len(rollouts) == 18
    assert torch.cat(gaps).mean() < 0.015


def test_what_a_model_can_is_asked_in_the_precision_of_its_weights() -> None:
    """Autocast's rounding would look as if it could not."""
    model, seen = miniature("llama"), []
    model.register_forward_pre_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
    with torch.autocast("cpu"):
        assert reading_of(model).pads
        assert understands_trees(model)
    assert seen
    assert not any(seen)


def test_models_whose_state_cannot_be_put_beside_another_take_turns(tiny, prompts, monkeypatch):
    settings = {"n": 5, "max_new_tokens": 30, "seed": 4}
    expected = sample(engine_of(tiny, batch_size=64), prompts, **settings)
    monkeypatch.setattr(steps, "takes_rows", lambda _: False)
    monkeypatch.setattr(steps, "place_rows", None)
    turns = sample(engine_of(tiny, batch_size=4), prompts, **settings)
    assert [tokens(group) for group in turns] == [tokens(group) for group in expected]


# ------------------------------------------------------------------ the distribution


def test_samples_follow_the_models_distribution(tiny, prompts):
    n, temperature = 4000, 0.9
    ids = torch.tensor([prompts[0].token_ids])
    with torch.no_grad():
        probabilities = (tiny.model(input_ids=ids).logits[0, -1] / temperature).double().softmax(-1)
    [group] = sample(engine_of(tiny, batch_size=n), prompts[:1], n=n, max_new_tokens=1, temperature=temperature)
    counts = torch.bincount(torch.tensor([rollout.token_ids[0] for rollout in group]), minlength=len(probabilities))
    common = probabilities * n >= 5
    observed = [*counts[common].tolist(), int(counts[~common].sum())]
    expected = [*(probabilities[common] * n).tolist(), float(probabilities[~common].sum() * n)]
    assert chisquare(observed, expected).pvalue > 1e-3


def test_truncation_by_hand():
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()

    def kept(**options) -> list[float]:
        return sampling_logprobs(logits, 1.0, **options).exp()[0].tolist()

    assert kept() == pytest.approx([0.4, 0.3, 0.2, 0.1])
    assert kept(top_k=2) == pytest.approx([4 / 7, 3 / 7, 0, 0])
    assert kept(top_p=0.65) == pytest.approx([4 / 7, 3 / 7, 0, 0])
    assert kept(top_p=0.01) == pytest.approx([1, 0, 0, 0])
    assert kept(top_k=3, top_p=0.75) == pytest.approx([4 / 7, 3 / 7, 0, 0])  # 4/9 + 3/9 reaches 0.75
    assert kept(top_k=99) == pytest.approx([0.4, 0.3, 0.2, 0.1])


def test_temperature_by_hand():
    logprobs = sampling_logprobs(torch.tensor([[0.0, 1.0]]), temperature=0.5)
    assert logprobs[0].tolist() == pytest.approx([-2.126928, -0.126928], abs=1e-5)


def test_draw_inverts_the_cumulative_distribution():
    logprobs = torch.tensor([[0.0, 0.25, 0.5, 0.25]]).log().expand(5, 4)
    uniforms = torch.tensor([0.0, 0.2499, 0.25, 0.74, 1 - 2**-53], dtype=torch.float64)
    assert draw(logprobs, uniforms).tolist() == [1, 1, 2, 2, 3]


@pytest.mark.parametrize("width", [3, 256, 257, 5000])
def test_draw_never_takes_a_token_that_is_ruled_out(width):
    generator = torch.Generator().manual_seed(width)
    logits = 4 * torch.randn(64, width, generator=generator)
    logprobs = sampling_logprobs(logits, 1.0, top_k=min(width - 1, 7))
    for uniforms in (torch.zeros(64), torch.rand(64, generator=generator), torch.full((64,), 1.0)):
        tokens = draw(logprobs, uniforms.double().clamp(max=1 - 2**-53))
        assert torch.isfinite(logprobs.gather(1, tokens[:, None])).all()


@pytest.mark.parametrize("width", [3, 300])
def test_draw_gives_some_token_of_the_vocabulary_for_log_probs_that_are_nan(width):
    tokens = draw(torch.full((4, width), torch.nan), torch.rand(4, dtype=torch.float64))
    assert all(0 <= token < width for token in tokens.tolist())


def test_draw_is_one_cumulative_sum():
    generator = torch.Generator().manual_seed(0)
    logprobs = (3 * torch.randn(200, 3000, generator=generator)).log_softmax(-1)
    uniforms = torch.rand(200, generator=generator, dtype=torch.float64)
    cumulative = logprobs.exp().double().cumsum(-1)
    expected = torch.searchsorted(cumulative, (uniforms * cumulative[:, -1])[:, None], right=True)
    assert torch.equal(draw(logprobs, uniforms), expected[:, 0])


def test_low_temperature_is_greedy(tiny, prompts):
    [cold, *_] = sample(engine_of(tiny), prompts[:1], n=3, max_new_tokens=30, temperature=1e-3)
    [greedy, *_] = sample(engine_of(tiny), prompts[:1], n=3, max_new_tokens=30, top_k=1, seed=8)
    assert len({rollout.token_ids for rollout in [*cold, *greedy]}) == 1
    assert greedy[0].sampler_logprobs == pytest.approx([0.0] * len(greedy[0]))


# ------------------------------------------------------------------ seeds


def test_seeds(tiny, prompts):
    engine = engine_of(tiny)
    first, again, other = (
        [tokens(group) for group in sample(engine, prompts, n=4, max_new_tokens=20, seed=seed)] for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other
    assert len({ids for group in first for ids in group}) == 12


def test_a_part_of_the_prompts_gets_the_rollouts_that_it_gets_among_all(tiny, prompts):
    whole = sample(engine_of(tiny), prompts, n=3, max_new_tokens=12, seed=5)
    part = sample(engine_of(tiny), prompts[1:], n=3, max_new_tokens=12, seed=5, numbers=range(1, 3))
    assert [tokens(group) for group in part] == [tokens(group) for group in whole[1:]]
    unnumbered = sample(engine_of(tiny), prompts[1:], n=3, max_new_tokens=12, seed=5)
    assert tokens(unnumbered[0]) != tokens(whole[1])


def test_sampling_leaves_the_global_random_state(tiny, prompts):
    before = torch.random.get_rng_state()
    sample(engine_of(tiny), prompts, n=2, max_new_tokens=5)
    assert torch.equal(before, torch.random.get_rng_state())


def test_uniforms_are_a_function_of_seed_prompt_and_sample():
    assert torch.equal(uniforms_for(0, 1, 2, 8), uniforms_for(0, 1, 2, 8))
    assert torch.equal(uniforms_for(0, 1, 2, 8), uniforms_for(0, 1, 2, 16)[:8])
    assert len({float(uniforms_for(s, p, g, 1)) for s in (0, 1) for p in (0, 1, 11) for g in (0, 1, 11)}) == 18


# ------------------------------------------------------------------ ends


def test_finish_reasons(tiny, prompts):
    groups = sample(engine_of(tiny), prompts, n=20, max_new_tokens=40)
    rollouts = [rollout for group in groups for rollout in group]
    eos = tiny.tokenizer.eos_token_id
    assert {rollout.finish_reason for rollout in rollouts} == {"stop", "length"}
    for rollout in rollouts:
        assert (rollout.finish_reason == "stop") == (rollout.token_ids[-1] == eos)
        assert eos not in rollout.token_ids[:-1]
        assert rollout.finish_reason == "stop" or len(rollout) == 40
        assert len(rollout.token_ends) == len(rollout)


def test_every_end_token_of_the_generation_config_ends(tiny, prompts):
    model = copy.deepcopy(tiny.model)
    extra = tiny.tokenizer.convert_tokens_to_ids(["q", "z"])
    model.generation_config.eos_token_id = extra
    ending = LanguageModel(model=model, tokenizer=tiny.tokenizer, name="tiny")
    rollouts = [r for group in sample(engine_of(ending), prompts, n=30, max_new_tokens=60) for r in group]
    ends = {rollout.token_ids[-1] for rollout in rollouts if rollout.finish_reason == "stop"}
    assert ends == {*extra, tiny.tokenizer.eos_token_id}
    assert all(not ends & set(rollout.token_ids[:-1]) for rollout in rollouts)


def test_a_reply_ends_as_the_chat_template_ends_one(prompts):
    # as in base models, whose tokenizer and generation config know the end of a text alone
    tokenizer = character_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<turn>"]})
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}<turn>\n{% endfor %}"
    base = LanguageModel(model=tiny_llama(len(tokenizer)), tokenizer=tokenizer, name="base")
    end = tokenizer.convert_tokens_to_ids("<turn>")
    assert end not in (tokenizer.eos_token_id, base.model.generation_config.eos_token_id)
    rollouts = [r for group in sample(engine_of(base), prompts, n=40, max_new_tokens=60) for r in group]
    assert any(rollout.token_ids[-1] == end for rollout in rollouts)
    assert all(end not in rollout.token_ids[:-1] for rollout in rollouts)
    assert all(rollout.finish_reason == "stop" for rollout in rollouts if rollout.token_ids[-1] == end)


@pytest.mark.parametrize("between", [0, 8, 50])
def test_a_stop_string_is_met_across_special_tokens_and_unknown_ids(tiny, between):
    """Rows that are fed given tokens, special ones and ids the tokenizer does not know in the midst of the string."""
    tokenizer = tiny.tokenizer
    special, unknown = tokenizer.convert_tokens_to_ids("<user>"), len(tokenizer) + 5
    a, b, x = (tokenizer.convert_tokens_to_ids(character) for character in "abx")
    hidden = [special, unknown] * (between // 2)
    sampled = [x, a, *hidden, b, x]

    def certain(step: int) -> torch.Tensor:
        """[1, V] logits that leave nothing but the given token of a step."""
        return torch.full((1, unknown + 1), -1e9).index_fill(1, torch.tensor(sampled[step]), 0.0)

    class Scripted(Decoding):
        def _forward(self, tokens):
            self._logits = certain(self._sampled[0])

    sampling = Sampling(n=1, max_new_tokens=len(sampled), stop=("ab",))
    prefilled = Prefilled(cache=None, logits=certain(0), mask=torch.ones(1, 1, dtype=torch.bool))
    uniforms = torch.full((1, len(sampled)), 0.5, dtype=torch.float64)
    first = Arrivals(prefilled=prefilled, uniforms=uniforms)
    [row] = Scripted(tiny.model, first, sampling, ends_of(tiny.model, tokenizer, sampling.stop)).run()
    assert row.token_ids == sampled[:-1]
    assert row.finish_reason == "stop"


def test_stop_strings(tiny, prompts):
    plain = sample(engine_of(tiny), prompts, n=20, max_new_tokens=60, seed=5)
    text = next(rollout.text for rollout in plain[0] if len(rollout) == 60)
    stops = (text[20:22], text[40:43])
    stopped = sample(engine_of(tiny), prompts, n=20, max_new_tokens=60, seed=5, stop=stops)
    hits = 0
    for before, after in zip(plain, stopped, strict=True):
        for rollout in after:
            whole = next(r for r in before if r.token_ids[: len(rollout)] == rollout.token_ids)
            found = [whole.text.find(stop) + len(stop) for stop in stops if stop in whole.text]
            assert rollout.text == whole.text[: min(found, default=None)]
            assert not found or rollout.finish_reason == "stop"
            hits += bool(found)
    assert hits


# ------------------------------------------------------------------ the contract


def test_streams_as_rollouts_finish(tiny, prompts):
    lengths = [len(rollout) for _, rollout in engine_of(tiny).generate(prompts, Sampling(n=8, max_new_tokens=50))]
    assert lengths == sorted(lengths)
    assert lengths[0] < lengths[-1]


def test_rollouts_carry_the_version_last_synced(tiny, prompts):
    engine = engine_of(tiny)
    assert sample(engine, prompts, n=1, max_new_tokens=2)[0][0].policy_version == 0
    engine.sync(2)
    assert sample(engine, prompts, n=1, max_new_tokens=2)[0][0].policy_version == 2


def test_modes_are_restored_and_gradients_stay_on(tiny, prompts):
    model = copy.deepcopy(tiny.model).train()
    model.model.layers[0].eval()
    computed = []
    model.register_forward_hook(lambda *_: computed.append((model.training, torch.is_grad_enabled())))
    stream = engine_of(LanguageModel(model=model, tokenizer=tiny.tokenizer, name="t")).generate(
        prompts, Sampling(n=2, max_new_tokens=9)
    )
    for _ in stream:  # between two rollouts everything is the consumer's
        assert torch.is_grad_enabled()
        assert model.training
        assert not model.model.layers[0].training
        assert model.model.layers[1].training
    assert set(computed) == {(False, False)}


def test_from_config_needs_the_policy(tiny, prompts):
    config = TransformersEngine.Config(batch_size=3)
    engine = ENGINES.get("transformers").from_config(config, Resources(policy=tiny))
    assert len(list(engine.generate(prompts, Sampling(n=2, max_new_tokens=3)))) == 6
    with pytest.raises(ConfigError, match="needs the policy"):
        TransformersEngine.from_config(config, Resources())


def test_nothing_but_prompts(tiny):
    problem = Problem(question=Question(problem_id="p", text="?"), scaffold=Scaffold(reference=Hidden("secret")))
    with pytest.raises(TypeError, match="Prompt objects only, but got Problem"):
        engine_of(tiny).generate([problem], Sampling(n=1))


def test_too_long_is_refused_before_sampling(tiny, prompts):
    with pytest.raises(ModelError, match=r"'p1': 28 prompt tokens \+ 4090 max_new_tokens = 4118, .* at most 4068"):
        engine_of(tiny).generate(prompts, Sampling(n=1, max_new_tokens=4090))


def test_an_empty_prompt_and_a_bad_temperature_are_refused(tiny, prompts):
    with pytest.raises(ModelError, match="has no tokens"):
        engine_of(tiny).generate([Prompt(problem_id="e", text="", token_ids=())], Sampling(n=1))
    with pytest.raises(ValueError, match="top_k=1 samples greedily"):
        engine_of(tiny).generate(prompts, Sampling(n=1, temperature=0))
    with pytest.raises(ValueError, match="batch_size"):
        TransformersEngine.Config(batch_size=0)
    with pytest.raises(ValueError, match="samples_per_prompt"):
        TransformersEngine.Config(samples_per_prompt=0)
