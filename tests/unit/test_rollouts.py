"""Stored rollouts: what is written is read back exactly, and what is damaged, missing or of others is told."""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from exprl.cli import main
from exprl.data.fingerprint import digest_of
from exprl.errors import ContractError, DataError
from exprl.rollouts import Label, RolloutStore, StoredGroup, load_rollouts
from exprl.rollouts.format import IDS, LOGPROBS, decode, decode_asked, encode
from exprl.rollouts.importing import import_rollouts
from exprl.rollouts.showing import records, samples
from exprl.rollouts.store import file_name
from exprl.types import (
    Advantages,
    Curve,
    Hidden,
    Judgement,
    Problem,
    Prompt,
    Question,
    Rollout,
    RolloutGroup,
    RolloutReward,
    Scaffold,
    ScoredGroup,
    Scorer,
    Segment,
    SegmentRewards,
)
from tests.conftest import character_tokenizer

SCORER = Scorer(reward="process", judge="wrong_reference around same_model", route="domains.math")
SECRET = "the reference says forty-two"
TOKENS = st.lists(st.tuples(st.text(max_size=3), st.floats(-50, 0), st.integers(0, 2**31 - 1)), min_size=1, max_size=6)


def problem(name: str = "p", question: str = "What is 6 times 7?") -> Problem:
    return Problem(
        question=Question(problem_id=name, text=question), scaffold=Scaffold(reference=Hidden(SECRET)), domain="math"
    )


def rollout(prompt: Prompt, tokens: list[tuple[str, float, int]], version: int = 3) -> Rollout:
    texts = [text for text, _, _ in tokens]
    return Rollout(
        prompt=prompt,
        token_ids=tuple(number for _, _, number in tokens),
        text="".join(texts),
        token_ends=tuple(len("".join(texts[: place + 1])) for place in range(len(texts))),
        sampler_logprobs=tuple(logprob for _, logprob, _ in tokens),
        finish_reason="stop",
        policy_version=version,
    )


@st.composite
def curves(draw: st.DrawFn, tokens: int) -> Curve:
    ends = (*draw(st.sets(st.integers(1, tokens - 1)) if tokens > 1 else st.just(set())), tokens)
    failed = st.builds(Judgement, score=st.none(), status=st.sampled_from(["timeout", "error"]), rationale=st.text())
    judgements = st.builds(Judgement, score=st.floats(1, 5)) | failed
    return Curve(ends=tuple(sorted(ends)), judgements=tuple(draw(judgements) for _ in ends))


@st.composite
def groups(draw: st.DrawFn) -> StoredGroup:
    asked = problem(draw(st.text(max_size=4)))
    prompt = Prompt(problem_id=asked.id, text=draw(st.text(max_size=5)), token_ids=(1, 2), reply_opening="<think>")
    sampled = tuple(rollout(prompt, tokens) for tokens in draw(st.lists(TOKENS, min_size=1, max_size=3)))
    score = draw(st.floats(1, 5))
    judged = Judgement(score=score, rationale=draw(st.text()), probabilities=(0.1, 0.2, 0.3, 0.2, 0.1))
    whole = [(Segment(0, len(one)),) for one in sampled]
    rewards = draw(
        st.sampled_from(
            [
                tuple(RolloutReward(value=(score - 1) / 4, length=len(one), judgements=(judged,)) for one in sampled),
                tuple(SegmentRewards(segments=s, values=(None,), judgements=(judged,)) for s in whole),
                tuple(SegmentRewards(segments=s, values=(), cut_off=True) for s in whole),
                tuple(
                    SegmentRewards(segments=s, values=(0.5,), judgements=(judged,), curve=draw(curves(s[-1].end)))
                    for s in whole
                ),
            ]
        )
    )
    advantages = tuple(Advantages(segments=s, values=(score,), valid=score > 2) for s in whole)
    verdicts = draw(st.none() | st.lists(st.booleans(), min_size=len(whole), max_size=len(whole)).map(tuple))
    scorer = draw(st.sampled_from([None, Scorer(reward="sparse"), SCORER]))
    scored = ScoredGroup(
        group=RolloutGroup(problem=asked, rollouts=sampled),
        rewards=rewards,
        advantages=advantages,
        verdicts=verdicts,
        scorer=scorer,
    )
    return StoredGroup.of(scored)


def stored(name: str = "p", **others) -> StoredGroup:
    asked = problem(name)
    prompt = Prompt(problem_id=name, text=asked.question.text, token_ids=(5,))
    one = rollout(prompt, [("It ", -0.5, 1), ("is 42", -1.25, 2)])
    fields = {"question": asked.question, "domain": "math", "digest": digest_of(asked), "rollouts": (one, one)}
    return StoredGroup(**{**fields, **others})


# ------------------------------------------------------------------ the format


@settings(max_examples=40)
@given(st.lists(groups(), max_size=3))
def test_what_is_written_is_read_back_exactly(
    tmp_path_factory: pytest.TempPathFactory, made: list[StoredGroup]
) -> None:
    path = tmp_path_factory.mktemp("rollouts") / "file.npz"
    path.write_bytes(encode(made, step=7))
    assert decode(path) == (7, tuple(made))
    assert encode(made, step=7) == path.read_bytes(), "equal rollouts make equal files"


def test_labels_and_what_is_not_there_come_back_too(tmp_path: Path) -> None:
    made = [stored(), stored("q", labels=(Label(correct=False, first_error=3, author="GPT-4"), Label()))]
    (tmp_path / "x").write_bytes(encode(made, step=0))
    assert decode(tmp_path / "x") == (0, tuple(made))


def test_numpy_reads_it_and_the_scaffold_is_not_in_it(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    path.write_bytes(encode([stored()], step=1))
    arrays = np.load(path)
    assert arrays["token_ids"].tolist() == [1, 2, 1, 2]
    assert arrays["sampler_logprobs"].dtype == np.float32
    assert arrays["token_lengths"].tolist() == [3, 5, 3, 5]
    assert SECRET.encode() not in b"".join(
        zipfile.ZipFile(path).read(name) for name in zipfile.ZipFile(path).namelist()
    )


def test_log_probs_are_exact_in_double_precision_too(tmp_path: Path) -> None:
    group = stored()
    exact = replace(group.rollouts[0], sampler_logprobs=(-0.1, -1 / 3))
    (tmp_path / "x").write_bytes(encode([replace(group, rollouts=(exact,))], step=1))
    assert decode(tmp_path / "x")[1][0].rollouts[0].sampler_logprobs == (-0.1, -1 / 3)


@pytest.mark.parametrize("place", [0.2, 0.5, 0.8, 1.0])
def test_a_damaged_or_half_file_is_named(tmp_path: Path, place: float) -> None:
    path, content = tmp_path / file_name(1), bytearray(encode([stored()] * 50, step=1))
    where = int(place * (len(content) - 1))
    path.write_bytes(content[:where])
    with pytest.raises(DataError, match=rf"{path}: no rollouts can be read"):
        decode(path)
    if place < 0.8:  # what comes after are names and sizes for zip readers, of which some say nothing
        content[where] ^= 0xFF
        path.write_bytes(content)
        with pytest.raises(DataError, match=rf"{path}: no rollouts can be read"):
            decode(path)


def test_a_later_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    path.write_bytes(encode([], step=1))
    with zipfile.ZipFile(path) as file:
        members = {name: file.read(name) for name in file.namelist()}
    members["header.json"] = members["header.json"].replace(b'"version": 1', b'"version": 2')
    with zipfile.ZipFile(path, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    with pytest.raises(DataError, match="version 2, but this exprl reads 'exprl-rollouts' up to version 1"):
        decode(path)


def test_a_file_without_verdicts_and_scorers_is_read(tmp_path: Path) -> None:
    group = stored(verdicts=(True, False), scorer=SCORER)
    path = tmp_path / "x.npz"
    path.write_bytes(encode([group], step=1))
    with zipfile.ZipFile(path) as file:
        members = {name: file.read(name) for name in file.namelist()}
    node = json.loads(members["groups.jsonl"])
    del node["scorer"]
    for kept in node["rollouts"]:
        del kept["verdict"]
    members["groups.jsonl"] = json.dumps(node).encode()
    with zipfile.ZipFile(path, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    assert decode(path) == (1, (replace(group, verdicts=None, scorer=None),))


def edited(path: Path, change: Callable[[list[Any], dict[str, Any], dict[str, Any]], None]) -> Path:
    """A file of two groups of two rollouts, two tokens each, after a change of its groups, arrays and header."""
    path.write_bytes(encode([stored(), stored("q", verdicts=(True, False), labels=(Label(), Label()))], step=1))
    with zipfile.ZipFile(path) as file:
        members = {name: file.read(name) for name in file.namelist()}
    nodes = [json.loads(line) for line in members["groups.jsonl"].splitlines()]
    arrays = {name: np.load(io.BytesIO(content)) for name, content in members.items() if name.endswith(".npy")}
    header = json.loads(members["header.json"])
    change(nodes, arrays, header)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("header.json", json.dumps(header))
        file.writestr("groups.jsonl", "".join(f"{json.dumps(node)}\n" for node in nodes))
        for name, array in arrays.items():
            content = io.BytesIO()
            np.save(content, array)
            file.writestr(name, content.getvalue())
    return path


LAST = r"group 2 \(problem 'q'\), rollout 2: "


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _, arrays, __: arrays[LOGPROBS].__setitem__(7, np.nan), LAST + ".* finite log-prob, .* token 1 is nan"),
        (lambda _, arrays, __: arrays[LOGPROBS].__setitem__(6, -np.inf), LAST + ".* that of token 0 is -inf"),
        (lambda _, arrays, __: arrays[LOGPROBS].__setitem__(6, np.inf), LAST + ".* that of token 0 is inf"),
        (
            lambda _, arrays, __: arrays[LOGPROBS].__setitem__(6, 3.0),
            LAST + ".* a log-prob is at most 0, but one is 3.0",
        ),
        (lambda _, arrays, __: arrays[IDS].__setitem__(7, -1), LAST + "token_ids: .* but one is -1"),
        (lambda nodes, _, __: nodes[1]["rollouts"][1].update(text="a\ud800"), LAST + "text: half of a surrogate pair"),
        (lambda nodes, _, __: nodes[1]["rollouts"][1].update(text=5), LAST + "text: must be text"),
        (lambda nodes, _, __: nodes[1]["rollouts"][1].update(verdict="yes"), LAST + "verdict: true, false or null"),
        (lambda nodes, _, __: nodes[1]["rollouts"][1].update(policy_version="1"), LAST + "policy_version: "),
        (
            lambda nodes, _, __: nodes[1]["rollouts"][1]["label"].update(correct="no"),
            LAST + "a label's correct is true, false or null",
        ),
        (
            lambda nodes, _, __: nodes[1]["rollouts"][1]["label"].update(first_error=-3),
            LAST + "a label's first_error is a character's number",
        ),
        (lambda nodes, _, __: nodes[1]["rollouts"][1].update(tokens=2.0), LAST + "tokens: a whole number"),
        (
            lambda nodes, _, __: [
                one.update(advantages={"ends": [end], "values": [0.5], "valid": True})
                for one, end in zip(nodes[1]["rollouts"], (2, 1), strict=True)
            ],
            LAST + "Advantages of 1 token for a rollout of 2",
        ),
        (
            lambda nodes, _, __: [
                one.update(
                    reward={"of": "segments", "ends": [end], "values": [0.5], "cut_off": False, "judgements": []}
                )
                for one, end in zip(nodes[1]["rollouts"], (2, 3), strict=True)
            ],
            LAST + "SegmentRewards of 3 tokens for a rollout of 2",
        ),
        (lambda nodes, _, __: nodes[1].update(question=4), r"group 2 \(problem 'q'\): question: must be text"),
        (lambda nodes, _, __: nodes[1]["rollouts"][1].pop("text"), LAST + "'text' is missing"),
        (lambda nodes, _, __: nodes[1].pop("prompt"), r"group 2 \(problem 'q'\): 'prompt' is missing"),
        (lambda _, __, header: header.update(step=1.5), "step: a whole number from 0 on, but got 1.5"),
    ],
)
def test_what_no_rollout_can_be_is_named_by_its_place(tmp_path: Path, change: Any, message: str) -> None:
    path = edited(tmp_path / file_name(1), change)
    with pytest.raises(DataError, match=f"{path}: .*{message}"):
        decode(path)


def test_an_advantage_that_training_cannot_hold_is_refused() -> None:
    whole = (Segment(0, 2),)
    assert Advantages(segments=whole, values=(3e38,)).values == (3e38,)
    with pytest.raises(ContractError, match=r"a finite number, but got 1e\+308 .*, which is none in single precision"):
        Advantages(segments=whole, values=(1e308,))


def test_log_probs_that_rounding_lifts_and_unknown_ones_are_read(tmp_path: Path) -> None:
    def change(_: Any, arrays: dict[str, Any], __: Any) -> None:
        arrays[LOGPROBS][:4] = (1e-7, -1.0, np.nan, np.nan)

    [group, _] = decode(edited(tmp_path / "x.npz", change))[1]
    assert group.rollouts[0].sampler_logprobs == (pytest.approx(1e-7), -1.0)
    assert all(map(math.isnan, group.rollouts[1].sampler_logprobs)), "nobody knows them"


def test_a_group_without_rollouts_is_none(tmp_path: Path) -> None:
    path = edited(tmp_path / "x.npz", lambda nodes, _, __: nodes.insert(1, {**nodes[0], "rollouts": []}))
    for read in (decode, decode_asked):
        with pytest.raises(DataError, match=rf"{path}: group 2 \(problem 'p'\): rollouts: a group has at least one"):
            read(path)


def test_the_quick_reader_names_the_file_too(tmp_path: Path) -> None:
    for change in (
        lambda nodes, _, __: nodes[0].pop("digest"),
        lambda nodes, _, __: nodes.insert(0, []),
        lambda nodes, _, __: nodes[0]["rollouts"][0].update(policy_version=None),
    ):
        path = edited(tmp_path / "x.npz", change)
        with pytest.raises(DataError, match=f"{path}: group 1 "):
            decode_asked(path)


def test_nothing_in_a_file_is_run(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    path.write_bytes(encode([stored()], step=1))
    with zipfile.ZipFile(path) as file:
        members = {name: file.read(name) for name in file.namelist()}
    np.save(tmp_path / "object.npy", np.array([print], dtype=object), allow_pickle=True)
    members[LOGPROBS] = (tmp_path / "object.npy").read_bytes()
    with zipfile.ZipFile(path, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    with pytest.raises(DataError, match="allow_pickle=False"):
        decode(path)


# ------------------------------------------------------------------ the folder


def test_steps_are_read_as_they_are_asked_for(tmp_path: Path) -> None:
    store = RolloutStore(tmp_path)
    for step in (10, 2):
        store.write(step, [stored(f"p{step}")])
    store.put(file_name(3, 0, 2), encode([stored("lone")], step=3))
    (tmp_path / "notes.txt").write_text("mine")
    assert list(store) == [2, 10], "of step 3 a rank's file is missing"
    assert len(store) == 2
    assert store[10] == (stored("p10"),)
    with pytest.raises(KeyError):
        store[3]
    store.put(file_name(3, 1, 2), encode([stored("other")], step=3))
    assert [group.problem_id for group in load_rollouts(tmp_path)[3]] == ["lone", "other"], "rank by rank"
    store.cut_after(3)
    assert list(store) == [2, 3]
    store.keep(1)
    assert list(store) == [3]


def test_a_copy_under_another_steps_name_is_told(tmp_path: Path) -> None:
    store = RolloutStore(tmp_path)
    store.put(file_name(4), encode([], step=5))
    with pytest.raises(DataError, match="holds the rollouts of step 5"):
        store[4]


def test_a_folder_without_any_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no rollouts of a step"):
        load_rollouts(tmp_path)


def test_the_scaffold_comes_back_by_its_digest() -> None:
    group = stored()
    assert group.with_problem(problem()).problem == problem()
    bare = replace(group, digest=digest_of(problem().without_reference()))
    assert bare.with_problem(problem()).problem == problem(), "a run that reads no references holds none"
    edited = replace(problem(), scaffold=Scaffold(reference=Hidden("another")))
    for other in (edited, problem("q"), problem(question="What is 6 times 8?")):
        with pytest.raises(DataError, match="problem 'p': its question, domain, reference or answer is not"):
            group.with_problem(other)


def test_records_for_people() -> None:
    group = stored()
    [unscored, _] = records(group, 3)
    assert unscored["segments"] == [
        {
            "text": "It is 42",
            "score": None,
            "status": "not_judged",
            "rationale": "",
            "reward": None,
            "advantage": None,
        }
    ]
    reward = SegmentRewards(
        segments=(Segment(0, 1), Segment(1, 2)), values=(0.25, 0.5), judgements=(Judgement(score=2), Judgement(score=3))
    )
    cut = replace(reward, values=(), judgements=(), cut_off=True)
    advantages = Advantages(segments=reward.segments, values=(-1.0, 1.0))
    first, second = records(replace(group, rewards=(reward, cut), advantages=(advantages, advantages)), 3)
    assert [(s["text"], s["score"], s["reward"], s["advantage"]) for s in first["segments"]] == [
        ("It ", 2.0, 0.25, -1.0),
        ("is 42", 3.0, 0.5, 1.0),
    ]
    assert [s["status"] for s in second["segments"]] == ["cut_off", "cut_off"]


def test_samples_of_a_step_are_of_all_domains_by_turns() -> None:
    step = [
        stored("c1", domain="code"),
        stored("c2", domain="code"),
        stored("m", domain="math"),
        stored("s", domain="sci"),
    ]

    def shown(number: int, count: int) -> list[str]:
        return [record["problem_id"] for record in samples(step, number, count)]

    assert [shown(number, 1) for number in (1, 2, 3, 4)] == [["c1"], ["m"], ["s"], ["c1"]]
    assert shown(2, 4) == ["m", "s", "c1", "m"]
    assert shown(1, 99) == ["c1", "m", "s", "c2", "m", "s", "c1", "c2"]
    assert [record["problem_id"] for record in samples(step[:2], 1, 3)] == ["c1", "c2", "c1"], "and problems"
    assert samples(step, 1, 0) == samples([], 1, 3) == []


def test_rollouts_are_shown_and_printed_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = RolloutStore(tmp_path)
    for step in (1, 2):
        store.write(step, [stored("p", verdicts=(True, False), scorer=SCORER), stored(f"only in {step}")])
    main(["rollouts", str(tmp_path)])
    shown = " ".join(capsys.readouterr().out.split())
    assert "step 2 · p · 2 tokens · stop · accepted · domains.math: process, wrong_reference around same_model" in shown
    assert "question: What is 6 times 7?" in shown
    assert "only in" not in shown, "one by default"
    main(["rollouts", str(tmp_path), "--count", "2"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "step 2 · p ·" in shown
    assert "step 2 · only in 2 ·" in shown, "of both problems"
    main(["rollouts", str(tmp_path), "--json", "--problem", "p"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["step"], line["problem_id"]) for line in lines] == [(1, "p"), (1, "p"), (2, "p"), (2, "p")]
    assert [line["verdict"] for line in lines] == [True, False] * 2
    assert lines[0]["scorer"] == {"reward": "process", "judge": SCORER.judge, "route": "domains.math"}
    with pytest.raises(SystemExit):
        main(["rollouts", str(tmp_path), "--step", "3"])
    assert "--step: 3 has no rollouts" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--count", "0"], "--count: must be at least 1, but got 0."),
        (["--problem", "nope"], "--problem: 'nope' has no rollouts in step 2 of {folder}. Choose one of: apple."),
        (["--problem", "aple"], "Did you mean 'apple'?"),
        (["--problem", "pear"], "in step 2 of {folder}. It has in step 1: --step 1."),
        (["--problem", "nope", "--json"], "in these steps of {folder}. Choose one of: apple, pear."),
    ],
)
def test_a_choice_of_nothing_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    store = RolloutStore(tmp_path)
    store.write(1, [stored("pear")])
    store.write(2, [stored("apple")])
    with pytest.raises(SystemExit, match="2"):
        main(["rollouts", str(tmp_path), *arguments])
    told = capsys.readouterr()
    assert message.format(folder=tmp_path) in " ".join(told.err.split())
    assert told.out == ""


def test_a_step_without_rollouts_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = RolloutStore(tmp_path)
    store.write(1, [stored()])
    store.write(2, [])
    for options in ([], ["--json"]):
        with pytest.raises(SystemExit):
            main(["rollouts", str(tmp_path), "--step", "2", *options])
        assert "the files of step 2 are whole, but hold no rollouts" in " ".join(capsys.readouterr().err.split())
    main(["rollouts", str(tmp_path), "--json"])
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_labels_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = (Label(correct=False, first_error=3, author="GPT-4"), Label(correct=True))
    RolloutStore(tmp_path).write(1, [stored("p", labels=labels)])
    main(["rollouts", str(tmp_path), "--count", "2"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "stop · GPT-4 · labelled wrong, first error at character 3" in shown
    assert "stop · labelled right" in shown
    main(["rollouts", str(tmp_path), "--json"])
    first, _ = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert first["label"] == {"correct": False, "first_error": 3, "author": "GPT-4"}


# ------------------------------------------------------------------ of others

PROBLEMS = [problem("a", "How many?"), problem("b", "How many? And why?")]


def imported(tmp_path: Path, *rows: dict, tokenizer=None) -> dict[int, tuple[StoredGroup, ...]]:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return import_rollouts(path, PROBLEMS, tokenizer)


def test_rows_of_trl_and_verl_find_their_problems(tmp_path: Path) -> None:
    trl = {"step": 1, "prompt": [{"role": "user", "content": "How many?"}], "completion": "Two.", "advantage": 0.5}
    verl = {"input": "<|user|>How many? And why?<|assistant|>", "output": "So.", "gts": SECRET, "score": 1.0, "step": 2}
    found = imported(tmp_path, trl, verl, {**trl, "completion": [{"role": "assistant", "content": "Three."}]})
    assert list(found) == [1, 2]
    [group] = found[1]
    assert (group.problem_id, [one.text for one in group.rollouts]) == ("a", ["Two.", "Three."])
    assert found[2][0].problem_id == "b", "the longest question that the prompt holds"
    assert SECRET.encode() not in encode(found[2], step=2)
    assert group.with_problem(PROBLEMS[0]).problem is PROBLEMS[0]


def test_labels_and_limits(tmp_path: Path) -> None:
    row = {"problem_id": "a", "response": "Two.", "correct": False, "first_error": 0, "finish_reason": "length"}
    [group] = imported(tmp_path, row)[0]
    assert group.labels == (Label(correct=False, first_error=0),)
    assert group.rollouts[0].finish_reason == "length"
    assert group.rollouts[0].token_ends == (1, 2, 3, 4), "without a tokenizer a token is a character"


def test_a_number_is_an_id_as_in_a_data_set(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"problem_id": 7, "response": "a\\u0000b\\u2028", "first_error": 3}')
    [group] = import_rollouts(tmp_path / "rows.jsonl", [problem("7")])[0]
    assert group.problem_id == "7"
    assert group.rollouts[0].text == "a\0b\u2028", "any other character is text"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PAR1\x15\x04\x15", r"rows.jsonl: a Parquet file, .*pandas.read_parquet\(.*/rows.jsonl'\)"),
        (
            b'[{"problem_id": "a", "response": "x"}]',
            r"rows.jsonl:1: one array.* jq -c '\.\[\]' .*rows.jsonl > ",
        ),
        (b"[\n{}\n]", r"rows.jsonl:1: one array over many lines.* jq -c '\.\[\]' "),
    ],
)
def test_a_file_of_another_kind_says_how_lines_are_made(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "rows.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=message) as refused:
        import_rollouts(tmp_path / "rows.jsonl", PROBLEMS)
    assert "name=hub" not in str(refused.value)


def test_a_tokenizer_makes_the_token_ids(tmp_path: Path) -> None:
    tokenizer = character_tokenizer()
    [group] = imported(tmp_path, {"problem_id": "a", "response": "ab"}, tokenizer=tokenizer)[0]
    assert list(group.rollouts[0].token_ids) == tokenizer("ab", add_special_tokens=False).input_ids


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"problem_id": "a"}, r'rows.jsonl:1: needs "response" or "completion" or "output"'),
        ({"response": "x"}, r'needs "problem_id" or "prompt" or "input"'),
        ({"problem_id": "aa", "response": "x"}, r"no problem 'aa'"),
        ({"prompt": "How much?", "completion": "x"}, "no problem of the config's data has a question"),
        ({"problem_id": "a", "response": 3}, "'response' must be text or a list of messages, but is int"),
        ({"problem_id": "a", "response": "x", "correct": 1}, "'correct' must be true or false, but is 1"),
        ({"problem_id": "a", "response": "x", "step": -1}, "'step' must be a whole number"),
        ({"problem_id": "a", "response": "x", "step": 10**30}, "'step' must be a whole number from 0 to 2147483647"),
        ({"problem_id": True, "response": "x"}, "'problem_id' must be text or a number, but is bool"),
        ({"problem_id": 5, "response": "x"}, r"no problem '5' in the config's data. There are 2, from 'a' to 'b'\."),
        ({"problem_id": "A", "response": "x"}, r"no problem 'A' in the config's data. Did you mean 'a'\?"),
        (
            {"problem_id": "a", "response": "x", "completion": "y"},
            "has 'response' and 'completion', which",
        ),
        ({"prompt": "How many?", "input": "", "output": "y"}, "has 'prompt' and 'input', which mean the same"),
        (
            {"problem_id": "a", "response": "x", "finish_reason": "banana"},
            "'finish_reason' must be .* \"banana\"",
        ),
        (
            {"problem_id": "a", "response": "x", "first_error": 1},
            "'first_error' must be .* which has 1, counted",
        ),
        (
            {"problem_id": "a", "response": "ab\ud800"},
            r"'response' has half of a surrogate pair at character 2 \(",
        ),
        ({"prompt": "How many?\udfff", "completion": "x"}, "'prompt' has half of a surrogate pair at character 9"),
    ],
)
def test_a_row_that_is_no_response_is_named(tmp_path: Path, row: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        imported(tmp_path, row)
