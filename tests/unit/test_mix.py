"""Steps drawn from several sources by weight: proportions, epochs, resuming, and what is refused."""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from exprl.build import Build
from exprl.config import from_layers, parse_overrides
from exprl.data.datamodule import ExpRLDataModule
from exprl.data.mix import MixSource
from exprl.data.order import Part, mixed_indices, shares, step_indices
from exprl.errors import ColumnError, ConfigError, DataError
from exprl.experiment import Experiment
from exprl.runs.preflight import check_parts


def part(name: str, count: int, weight: float) -> Part:
    return Part(name=name, count=count, weight=weight)


TWO = [part("math", 9, 3.0), part("code", 5, 1.0)]


def first(steps: int, parts: list[Part] = TWO, per_step: int = 4, seed: int = 0) -> list[list[int]]:
    return list(islice(mixed_indices(parts, per_step, seed), steps))


def test_one_part_is_the_order_there_always_was() -> None:
    assert first(50, [part("any", 7, 0.3)], 3, 5) == list(islice(step_indices(7, 3, 5), 50))


parts_of_any_size = st.lists(st.tuples(st.integers(1, 30), st.floats(0.01, 10)), min_size=2, max_size=5)


@settings(max_examples=60, derandomize=True)
@given(sizes=parts_of_any_size, per_step=st.integers(1, 12), seed=st.integers(0, 9))
def test_every_step_has_its_shares_and_nothing_twice(sizes: list[tuple[int, float]], per_step: int, seed: int) -> None:
    parts = [part(str(number), count, weight) for number, (count, weight) in enumerate(sizes)]
    own = shares(parts)
    if any(share * per_step > one.count for share, one in zip(own, parts, strict=True)):
        with pytest.raises(ConfigError, match=r"^data\.train: '\d' has \d+ problems, but its weight makes"):
            first(1, parts, per_step, seed)
        return
    starts = [sum(one.count for one in parts[:number]) for number in range(len(parts))]
    drawn: Counter[int] = Counter()
    visits: Counter[int] = Counter()
    for number, step in enumerate(first(60, parts, per_step, seed), start=1):
        assert len(step) == len(set(step)) == per_step
        visits.update(step)
        drawn.update(sum(start <= index for start in starts) - 1 for index in step)
        tight = any(share * per_step > one.count - 1 for share, one in zip(own, parts, strict=True))
        allowed = 1.5 + tight * len(parts)  # a part that a step can take whole catches up in the next
        assert all(abs(drawn[place] - own[place] * per_step * number) < allowed for place in range(len(parts)))
    for start, one in zip(starts, parts, strict=True):
        seen = [visits[index] for index in range(start, start + one.count)]
        assert max(seen) - min(seen) <= 1, "epochs of its own"


def test_the_places_of_a_part_are_spread_over_the_step() -> None:
    assert [[index < 9 for index in step] for step in first(2)] == [[True, True, False, True]] * 2


def test_another_part_changes_no_other_s_order() -> None:
    with_law = [part("law", 40, 2.0), *TWO]
    alone = [index for step in first(40) for index in step if index < 9]
    beside = [index - 40 for step in first(60, with_law, 6) for index in step if 40 <= index < 49]
    assert alone[:100] == beside[:100]


# ------------------------------------------------------------------ the source


def rows(path: Path, count: int, **columns: Any) -> dict[str, Any]:
    lines = [json.dumps({"question": f"{path.stem} {n}?", "answer": str(n), **columns}) for n in range(count)]
    path.write_text("".join(f"{line}\n" for line in lines))
    return {"name": "jsonl", "path": str(path), "columns": {"reference": None}}


@pytest.fixture
def mix(tmp_path: Path) -> dict[str, Any]:
    sources = {"math": rows(tmp_path / "m.jsonl", 9), "code": rows(tmp_path / "c.jsonl", 5)}
    return {"name": "mix", "sources": sources, "weights": {"math": 3.0}}


def experiment(mix: dict[str, Any], *overrides: str) -> Experiment:
    base = {"model": {"name": "chain"}, "data": {"train": mix, "prompts_per_step": 4}}
    return from_layers(Experiment, [base, parse_overrides(overrides)])


def test_ids_begin_with_the_source_and_parts_have_its_weight(mix: dict[str, Any]) -> None:
    build = Build(experiment(mix), training=True)
    problems = build.train_problems
    assert [problem.id for problem in (problems[0], problems[8], problems[9])] == ["math/m-1", "math/m-9", "code/c-1"]
    assert {problem.domain for problem in problems} == {"math"}
    assert build.train_parts == TWO
    assert [own.weight for own in Build(experiment(mix, "data.train.weights.code=0.5")).train_parts] == [3.0, 0.5]


def test_a_source_s_name_can_be_the_domain(mix: dict[str, Any]) -> None:
    build = Build(experiment(mix, "data.train.as_domains=true"), training=True)
    assert Counter(problem.domain for problem in build.train_problems) == {"math": 9, "code": 5}


def test_a_mix_of_mixes_keeps_the_weights_within(mix: dict[str, Any], tmp_path: Path) -> None:
    outer = {"name": "mix", "sources": {"all": mix, "law": rows(tmp_path / "l.jsonl", 4)}}
    build = Build(experiment(outer))
    assert build.train_parts == [part("all/math", 9, 0.75), part("all/code", 5, 0.25), part("law", 4, 1.0)]
    assert build.train_problems[0].id == "all/math/m-1"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.train.weights.cod=1", r"data\.train\.weights\.cod: there is no such source\. Did you mean 'code'\?"),
        ("data.train.weights.code=0", r"data\.train\.weights\.code: must be in \[1e-06, "),
        ("data.train.sources.code.name=jsnl", r"data\.train\.sources\.code\.name: Unknown source 'jsnl'"),
        ('data.train.sources={"a/b": {name: champ}}', r"data\.train\.sources: a name is not empty and has no /"),
    ],
)
def test_what_is_no_mix_is_refused(mix: dict[str, Any], override: str, said: str) -> None:
    with pytest.raises(ConfigError, match=f"^{said}"):
        experiment(mix, override)


def test_faults_of_a_source_name_it(mix: dict[str, Any]) -> None:
    with pytest.raises(ColumnError, match=r"Set data\.train\.sources\.code\.columns\.answer="):
        Build(experiment(mix, "data.train.sources.code.columns.answer=gold")).train_problems  # noqa: B018
    with pytest.raises(DataError, match=r"^data\.train\.sources\.code: .*no/where"):
        check_parts(experiment(mix, "data.train.sources.code.path=no/where.jsonl"), "data.train")
    build = Build(experiment(mix, "data.train.weights={math: 1, code: 2}"))
    with pytest.raises(ConfigError, match=r"^data\.train: 'code' has 5 problems, but its weight makes 5\.3 of the 8 "):
        ExpRLDataModule(build.train_problems, prompts_per_step=8, max_steps=1, parts=build.train_parts)


# ------------------------------------------------------------------ resuming


def module(mix: dict[str, Any], *overrides: str, seed: int = 3) -> ExpRLDataModule:
    build = Build(experiment(mix, *overrides))
    return ExpRLDataModule(build.train_problems, prompts_per_step=4, max_steps=9, seed=seed, parts=build.train_parts)


def test_from_any_step_on_it_is_what_the_unstopped_run_has(mix: dict[str, Any]) -> None:
    whole = [[problem.id for problem in step] for step in module(mix).train_dataloader()]
    assert all(sum(name.startswith("math/") for name in step) == 3 for step in whole)
    for step in range(9):
        state = {**module(mix).state_dict(), "step": step}
        resumed = module(mix)
        resumed.load_state_dict(state)
        assert [[problem.id for problem in step] for step in resumed.train_dataloader()] == whole[step:]


def test_other_weights_or_problems_do_not_resume(mix: dict[str, Any], tmp_path: Path) -> None:
    state = module(mix).state_dict()
    with pytest.raises(
        ConfigError, match=r"^parts: the checkpoint was made with \{'math': 0\.75, 'code': 0\.25\}, but"
    ):
        module(mix, "data.train.weights.math=2").load_state_dict(state)
    module(mix, "data.train.weights={math: 1.5, code: 0.5}").load_state_dict(state)  # the same shares
    rows(tmp_path / "c.jsonl", 5, answer="7")
    with pytest.raises(DataError, match="question, reference or answer of 'code/c-1'"):
        module(mix).load_state_dict(state)


def test_parts_must_make_up_the_problems(mix: dict[str, Any]) -> None:
    problems = MixSource(sources={"a": mix["sources"]["math"]}).load()
    with pytest.raises(ValueError, match="parts: they have 14 problems, but there are 9"):
        ExpRLDataModule(problems, prompts_per_step=2, max_steps=1, parts=TWO)
