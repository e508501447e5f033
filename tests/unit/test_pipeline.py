"""The simulation of `benchmarks/pipeline.py`: against hand-computed steps, a pass-by-pass reference, and its limits."""

from __future__ import annotations

import importlib
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings, strategies as st

from exprl import load_rollouts
from exprl.errors import ConfigError, DataError
from exprl.rollouts.store import RolloutStore
from exprl.rollouts.stored import StoredGroup
from exprl.types import Prompt, Question, Rollout

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def load() -> SimpleNamespace:
    """The program's modules, which find each other as a program's do."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        names = ("pipeline", "pipeline_rates", "pipeline_cluster", "pipeline_step")
        modules = [importlib.import_module(name) for name in names]
    finally:
        sys.path.remove(str(BENCHMARKS))
    return SimpleNamespace(**{name: value for module in modules for name, value in vars(module).items()})


P = load()

ROUND = P.Rates(  # so that seconds can be computed by hand
    decode_peak=10,
    decode_half=1,
    prefill=100,
    update=50,
    update_efficiency=0.5,
    initial_share=0,
    micro_batch_tokens=1_000,
    gradient_bytes=80,
    gradient_bandwidth=40,
    weight_bytes=20,
    sync_bandwidth=10,
    sync_handshake=1,
    colocated_sync_bandwidth=20,
    colocated_switch=3,
    host_own=0.01,
    host_all=0.001,
)
WORK = P.Workload(
    prompts=1, group=2, limit=100, prompt_tokens=50, segment_tokens=10, judge_instructions=20, judge_shared=30
)
WORK = replace(WORK, judge_closing=5)


def simulation(*steps, rates=ROUND, work=WORK, **options):
    work = replace(work, prompts=len(steps[0]), group=len(steps[0][0]))
    return P.Simulation(rates=rates, work=work, steps=list(steps), **options)


def collected(lengths, *, samplers=1, judges=1, rates=ROUND, work=WORK):
    split = P.Split(trainers=1, samplers=samplers, judges=judges)
    [found] = simulation(lengths, rates=rates, work=work).collected(split, colocated=False)
    return found


def test_a_step_is_what_is_computed_by_hand():
    # Prompt 0.5 s. Two rollouts take 0.3 s a pass for 10 passes, then one 0.2 s for 10 more: sampled at 5.5 s.
    # The first is judged at once: 20 + 30 + 10 + 5 tokens. The second at 5.5 s: its 20 tokens and two closings.
    found = collected([[10, 20]])
    assert found.sampled == pytest.approx(0.5 + 3.0 + 2.0)
    assert found.seconds == pytest.approx(5.5 + (20 + 2 * 5) / 100)
    assert found.judge_busy == pytest.approx(0.65 + 0.3)
    assert found.sampler_busy == pytest.approx(5.5)


def test_judge_prompts_hold_up_those_who_sample_on_the_same_server():
    found = collected([[10, 20]], judges=0)
    assert found.sampled == pytest.approx(5.5 + 0.65)
    assert found.seconds == pytest.approx(5.5 + 0.65 + 0.3)
    assert found.sampler_busy == pytest.approx(found.seconds)


def test_a_written_judgement_is_decoded_beside_the_others_of_its_rollout():
    found = collected([[20]], work=replace(WORK, judge_reply=7))
    assert found.seconds == pytest.approx(0.5 + 20 * 0.2 + 0.8 + 7 * (2 + 1) / 10)  # K = 2 at once


def test_the_three_ways_put_the_same_parts_together():
    steps = [[[10, 20]], [[30, 40]]]
    simulated = simulation(*steps)
    split = P.Split(trainers=1, samplers=1, judges=1)
    first, second = (one.seconds for one in simulated.collected(split, colocated=False))
    updates = [tokens / 50 + 0.011 * (tokens - 100) for tokens in (130, 170)]  # prompts are 100 of them
    assert simulated.updates(1) == pytest.approx(updates)
    sync = 20 / 10 + 1
    sequence = simulated.simulate("in sequence", split)
    assert sequence.seconds == pytest.approx((first + second + sum(updates)) / 2 + sync)
    ahead = simulated.simulate("one ahead", split)
    assert ahead.seconds == pytest.approx((max(second, updates[0]) + max(first, updates[1])) / 2 + sync)
    assert sequence.trainer_idle == pytest.approx(1 - sum(updates) / 2 / sequence.seconds)
    shared, [one, two] = P.Split(trainers=1), [collected(step, judges=0).seconds for step in steps]
    colocated = simulated.simulate("colocated", shared)
    assert colocated.seconds == pytest.approx((one + two + sum(updates)) / 2 + 20 / 20 + 3)


def test_cards_that_update_together_lose_efficiency_and_sum_gradients():
    assert ROUND.update_seconds(100, 1) == pytest.approx(2.0)
    assert ROUND.update_seconds(100, 4) == pytest.approx(2.0 / 0.5 + 2 * 3 / 4 * 80 / 40)


def test_without_a_judge_and_with_a_sync_that_costs_nothing_a_step_is_sampling_and_updating():
    rates = replace(ROUND, weight_bytes=0, sync_handshake=0, host_own=0, host_all=0)
    simulated = simulation([[10]], rates=rates, work=replace(WORK, segment_tokens=0))
    found = simulated.simulate("in sequence", P.Split(trainers=1, samplers=1))
    assert found.seconds == pytest.approx(0.5 + 10 * 0.2 + 60 / 50)
    assert not any(simulated.possible(P.Split(trainers=1, samplers=1, judges=n)) for n in (1, 2))


def test_rollouts_that_are_cut_off_are_not_judged():
    assert collected([[100]]).judge_busy == 0
    assert collected([[99]]).judge_busy > 0


# ------------------------------------------------------------------ any step

LENGTHS = st.integers(1, 100)
STEPS = st.integers(1, 3).flatmap(
    lambda group: st.lists(st.lists(LENGTHS, min_size=group, max_size=group), min_size=1, max_size=5)
)


@given(STEPS, st.integers(1, 3), st.integers(0, 2))
@settings(max_examples=60)
def test_every_token_is_computed_once_and_prefixes_at_most_once_a_server(step, samplers, judges):
    found = collected(step, samplers=samplers, judges=judges)
    lengths = [length for group in step for length in group]
    assert found.decoded == sum(lengths)
    judged = [length for length in lengths if length < 100]
    least = 50 * len(step) + sum(n + 5 * WORK.segments(n) for n in judged)
    of_problems = sum(min(group) < 100 for group in step)
    least += (20 + 30 * of_problems) if judged else 0
    servers, keepers = samplers, judges or samplers
    most = least + 50 * len(step) * (servers - 1) + (20 + 30 * of_problems) * (keepers - 1)
    assert least <= found.prefilled <= most
    if servers == keepers == 1:
        assert found.prefilled == least


# Not so with more rollouts at a time: each of them then ends later, and with it the first that can be judged.
@given(STEPS, st.sampled_from(["decode_peak", "prefill", "cache_tokens", "update", "sync_bandwidth"]))
@settings(max_examples=60)
def test_what_is_faster_never_makes_a_step_longer(step, name):
    slow = replace(ROUND, cache_tokens=150, max_running=2)
    fast = replace(slow, **{name: 2 * getattr(slow, name)})
    split = P.Split(trainers=1, samplers=1, judges=1)
    for way in P.WAYS[1:]:
        before, after = (simulation(step, rates=rates).simulate(way, split).seconds for rates in (slow, fast))
        assert after <= before * (1 + 1e-9)


def passes(lengths, rates, work):
    """Seconds until all of a group are sampled by one server that runs them all, pass by pass."""
    left, now = sorted(lengths), work.prompt_tokens / rates.prefill
    while left:
        now += rates.pass_seconds(len(left))
        left = [one - 1 for one in left if one > 1]
    return now


@given(st.lists(LENGTHS, min_size=1, max_size=12), st.floats(0.1, 50))
@settings(max_examples=60)
def test_events_come_to_the_same_as_passes_one_by_one(lengths, half):
    rates, work = replace(ROUND, decode_half=half), replace(WORK, segment_tokens=0)
    assert collected([lengths], rates=rates, work=work).seconds == pytest.approx(passes(lengths, rates, work))


def test_a_full_cache_lets_rollouts_wait():
    work = replace(WORK, segment_tokens=0)
    alone = collected([[30, 30]], rates=replace(ROUND, cache_tokens=59), work=work)
    assert alone.seconds == pytest.approx(0.5 + 2 * 30 * 0.2)
    together = collected([[30, 30]], rates=replace(ROUND, cache_tokens=60), work=work)
    assert together.seconds == pytest.approx(0.5 + 30 * 0.3)


def test_a_rank_knows_its_own_requests_alone_and_holds_to_its_limit():
    server = [P.Server(rates=ROUND) for _ in range(2)]
    client = P.Client(servers=server, concurrency=1)
    jobs = [P.Job(reply=reply) for reply in (10, 20, 30)]
    assert [client.submit(job, 0.0) for job in jobs] == [[server[0]], [server[1]], []]
    found = P.collect(jobs, [again := P.Client(servers=[P.Server(rates=ROUND)], concurrency=1)], [again])
    assert found.seconds == pytest.approx(60 * 0.2)  # one at a time


def test_ranks_with_servers_of_their_own_do_not_touch_those_of_others():
    step = [[10, 20], [30, 40]]
    simulated = simulation(step, own_servers=True)
    [found] = simulated.collected(P.Split(trainers=2, samplers=2, judges=2), colocated=False)
    assert found.seconds == pytest.approx(max(collected([group]).seconds for group in step))


# ------------------------------------------------------------------ splits


def test_every_split_gives_each_kind_what_it_can_and_uses_all_cards():
    simulated = simulation([[10, 20]] * 3)
    splits = list(simulated.splits(6, range(6), range(6)))
    assert len(set(splits)) == len(splits) == 15  # 1 to 5 trainers, 0 to 5 - trainers judges
    assert all(split.cards == 6 for split in splits)
    assert max(split.trainers for split in splits if simulated.possible(split)) == 3  # a prompt a rank at least


@pytest.mark.parametrize("way", P.WAYS[1:])
def test_the_best_split_is_the_fastest_of_all(way):
    [step] = P.drawn(replace(WORK, prompts=6), median=40, sigma=0.8, steps=1, seed=1)
    simulated = simulation(step)
    best = simulated.best(way, 8)
    splits = filter(simulated.possible, simulated.splits(8, range(8), range(8)))
    every = [simulated.simulate(way, split) for split in splits]
    assert best.seconds == min(one.seconds for one in every)


def test_what_the_judge_needs_is_what_one_server_computes():
    simulated = simulation([[10, 20], [30, 100]], work=replace(WORK, judge_reply=3))
    [found] = simulated.collected(P.Split(trainers=1, samplers=1, judges=1), colocated=False)
    read = (60 + 5 * (1 + 2 + 3) + 2 * 30 + 20) / 100
    assert simulated.judging == pytest.approx(read + 3 * 6 / 10)
    assert simulation([[10, 20], [30, 100]]).judging == pytest.approx(read)
    assert found.judge_busy >= simulated.judging  # a few sequences at a time are written at less than the best rate
    assert simulation([[100]]).judging == 0


def test_servers_of_several_cards_take_whole_ones():
    simulated = simulation([[10, 20]] * 3, rates=replace(ROUND, cards_per_sampler=2))
    assert all(simulated.best("one ahead", cards).split.samplers % 2 == 0 for cards in (3, 4, 5))
    assert simulated.best("one ahead", 2) is None


def test_no_split_is_faster_than_the_longest_rollout_and_the_sync():
    [step] = P.drawn(replace(WORK, prompts=6), median=40, sigma=0.8, steps=1, seed=1)
    simulated = simulation(step)
    assert simulated.best("one ahead", 64).seconds >= simulated.floor > 0


# ------------------------------------------------------------------ what is given


def test_a_file_replaces_rates_and_is_named_as_their_source(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("update: 9840\nprefill: 5e4\n")
    rates, sources = P.Rates.read(path)
    assert (rates.update, rates.prefill, rates.decode_peak) == (9840, 50_000, P.Rates().decode_peak)
    assert sources["update"] == "given: mine.yaml"
    assert sources["decode_peak"].startswith("assumed")


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ("updates: 3", "updates"),
        ("[1]", "list"),
        ("update: fast", "fast"),
        ("update: 0", "update"),
        ("x: [", "mine"),
    ],
)
def test_a_file_that_gives_no_rates_is_told(tmp_path, content, word):
    (tmp_path / "mine.yaml").write_text(content)
    with pytest.raises(ConfigError, match=word):
        P.Rates.read(tmp_path / "mine.yaml")


def test_every_rate_says_where_it_comes_from():
    kinds = ("assumed", "measured: benchmarks/", "arithmetic: ", "docs/", "default: ")
    assert all(source.startswith(kinds) for source in P.Rates.sources().values())


def stored(lengths, limit):
    prompt = Prompt(problem_id="p", text="?", token_ids=(1,))
    rollouts = tuple(
        Rollout(
            prompt=prompt,
            token_ids=(7,) * length,
            text="x" * length,
            token_ends=tuple(range(1, length + 1)),
            sampler_logprobs=(-1.0,) * length,
            finish_reason="length" if length == limit else "stop",
        )
        for length in lengths
    )
    return StoredGroup(question=Question(problem_id="p", text="?"), domain="math", digest=None, rollouts=rollouts)


def test_lengths_of_a_run_are_replayed_as_they_were(tmp_path):
    store = RolloutStore(tmp_path)
    for step, lengths in enumerate([(3, 4), (5, 9), (9, 6)], start=1):
        store.write(step, [stored(lengths, limit=9), stored(lengths[::-1], limit=9)])
    work, steps = P.replayed(tmp_path, WORK, steps=2)
    assert steps == [[[5, 9], [9, 5]], [[9, 6], [6, 9]]]
    assert (work.prompts, work.group, work.limit) == (2, 2, 9)
    assert len(load_rollouts(tmp_path)) == 3
    with pytest.raises(DataError):
        P.replayed(tmp_path / "none", WORK, steps=2)


def test_the_program_prints_the_best_splits_and_the_source_of_each_rate(capsys):
    P.main(["--gpus", "2", "4", "--prompts", "4", "--group", "2", "--steps", "1"])
    printed = capsys.readouterr().out
    assert "Simulated, not measured." in printed
    for name, source in P.Rates.sources().items():
        assert f"| `{name}` |" in printed
        assert source in printed
    P.main(["--gpus", "3", "--splits", "--prompts", "4", "--group", "2", "--steps", "1"])
    assert "| 3 | 1 + 1 + 1 |" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="no-such"):
        P.main(["--rates", "no-such.yaml"])
