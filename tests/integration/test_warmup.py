"""The warm-up of the miniature worlds' policies."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter

import pytest

from exprl.chain import problems as chain
from exprl.chain.model import ChainModel
from exprl.chain.source import to_problem
from exprl.chain.warmup import READING_ACCURACY, solved, step_accuracy
from exprl.config import from_layers
from exprl.errors import ModelError
from exprl.experiment import Experiment
from exprl.models.cache import cache_folder
from exprl.registry import METHODS
from exprl.resources import Resources
from exprl.text.prompts import PromptBuilder
from exprl.training.interruption import Interrupted
from exprl.training.teacher import TeacherPrompts
from exprl.worlds import clauses
from exprl.worlds.model import WorldsModel
from exprl.worlds.reactions import SUBSTANCES
from exprl.worlds.warmup import Lesson, lessons_in_order
from exprl.worlds.world import worlds


def test_a_policy_that_reads_references_uses_them() -> None:
    options = ChainModel.Config(max_steps=1, target_accuracy=0.0, reads_references=True, reference_every=1)
    provider = ChainModel.made(options)
    policy = provider.load()
    problems = chain.generate(5, 32, 1, "heldout")
    prompts = PromptBuilder(policy.tokenizer)
    reading = [solved(problem, policy, prompts, reference_every=1) for problem in problems]
    with_reference = step_accuracy(policy, reading)
    without = step_accuracy(policy, [solved(problem, policy, prompts) for problem in problems])
    assert with_reference > max(0.6, 10 * without)
    teacher = TeacherPrompts(policy.tokenizer, template=policy.teacher_template)
    assert reading[0].prompt_ids == teacher.build(to_problem(problems[0], "p"))
    record = json.loads((cache_folder() / "chain" / provider.fingerprint() / "warmup.json").read_text())
    assert record["reading"]["step_accuracy"] >= READING_ACCURACY
    assert record["solving"]["updates"] == 2


@pytest.mark.parametrize("said", [None, True, False])
@pytest.mark.parametrize("method", METHODS.names())
def test_who_will_be_a_teacher_learns_to_read_references(method: str, said: bool | None) -> None:
    """By the method's name alone; what is said of it holds, and without a teacher the weights are the same ones."""
    options = {} if said is None else {"reads_references": said}
    experiment = from_layers(Experiment, [{"method": {"name": method}, "model": {"name": "chain", **options}}])
    teacher = experiment.method.cls.teacher
    assert teacher is (method == "self_distillation")
    provider = experiment.model.build(Resources(teacher=teacher))
    reads = teacher if said is None else said
    assert provider.config.reads_references is reads
    assert provider.fingerprint() == ChainModel(reads_references=reads or None).fingerprint()


@pytest.mark.parametrize("updates", [1, 2])  # measured every second update, and at the end
def test_a_target_out_of_reach_is_said(updates: int) -> None:
    with pytest.raises(
        ModelError, match=rf"step accuracy is 0\.\d+ after {updates} updates, not 0\.9\. Raise max_updates"
    ):
        ChainModel(max_steps=1, target_accuracy=0.9, max_updates=updates).load()


@pytest.mark.parametrize(("number", "raised"), [(signal.SIGTERM, Interrupted), (signal.SIGINT, KeyboardInterrupt)])
@pytest.mark.parametrize("at", [1, 2])  # in between, and at the last update
def test_a_signal_stops_it(
    monkeypatch: pytest.MonkeyPatch, number: signal.Signals, raised: type[BaseException], at: int
) -> None:
    """Not by an exit of Lightning's."""
    measured = []

    def measure(*_: object, **__: object) -> float:
        measured.append(1)
        if len(measured) == at:
            os.kill(os.getpid(), number)
        return 0.0

    monkeypatch.setattr("exprl.chain.warmup.step_accuracy", measure)
    before = [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(raised):
        ChainModel(max_steps=1, max_updates=4, batch_size=2).load()
    assert len(measured) == at
    assert [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)] == before


def test_one_policy_learns_three_worlds() -> None:
    provider = WorldsModel(turns=2, processes=2, cases=2, target_accuracy=0.0)
    policy = provider.load()
    record = json.loads((provider.folder() / "warmup.json").read_text())
    assert record["accuracies"].keys() == {"chain", "reactions", "clauses"}
    assert record["step_accuracy"] == min(record["accuracies"].values())
    for world in worlds(turns=2, processes=2, cases=2):
        measured = Lesson(world, policy, provider.seed).measure()
        assert measured == pytest.approx(record["accuracies"][world.name], rel=1e-3)


def test_worlds_are_learnt_one_after_the_other_and_again_where_they_fall_below() -> None:
    provider = WorldsModel()
    policy = provider.with_tokenizer(provider.initial())
    lessons = [Lesson(world, policy, 0) for world in worlds(turns=2, processes=2, cases=2)]
    examples = lessons_in_order(lessons, 0.5)

    def shown(count: int) -> Counter[str]:
        texts = [policy.tokenizer.decode(next(examples).response_ids, skip_special_tokens=True) for _ in range(count)]
        return Counter(map(_kind, texts))

    assert shown(8) == {"clauses": 8}
    lessons[0].accuracy = 0.5
    assert shown(9) == {"clauses": 1, "chain": 8}
    lessons[1].accuracy = 0.9
    assert shown(10) == {"clauses": 1, "chain": 1, "reactions": 8}
    lessons[1].accuracy = 0.4
    assert shown(9) == {"clauses": 1, "chain": 8}
    lessons[1].accuracy = lessons[2].accuracy = 0.5
    assert shown(3) == {"clauses": 1, "chain": 1, "reactions": 1}


def _kind(response: str) -> str:
    if response.startswith(clauses.HEAD):
        return "clauses"
    return "reactions" if response.split()[0] in SUBSTANCES else "chain"
