"""A step without an update says why, once each and once in general, and logs no values that do not exist."""

from __future__ import annotations

from typing import Any

import pytest

from exprl.rollouts.showing import _number
from exprl.terminal.console import Console
from exprl.training.no_update import IN_A_ROW, NoUpdate, no_update
from exprl.training.records import existing
from exprl.training.step_log import StepLog
from exprl.types import (
    RolloutReward,
    ScoredGroup,
)
from tests.rollouts import rollout_of, scored_of


def group(*values: float | None, tokens: int = 2, cut_off: bool = False) -> ScoredGroup:
    """A group of rollouts with these rewards and no advantages."""
    rollout = rollout_of(*"a" * tokens, finish="length" if cut_off else "stop")
    rewards = [RolloutReward(value=value, length=tokens, cut_off=cut_off) for value in values]
    return scored_of([rollout] * len(values), rewards=rewards)


@pytest.mark.parametrize(
    ("groups", "dropped", "reason", "advice"),
    [
        ([group(0.0, 0.0)] * 4, 4, "4 of 4 groups without signal, every reward is 0", "exprl mine"),
        ([group(1.0, 1.0)] * 2, 2, "2 of 2 groups without signal, every reward is 1", "harder problems"),
        ([group(0.5, 0.5), group(0.0, 0.0)], 2, "2 of 2 groups without signal, the rewards within each", "exprl mine"),
        (
            [group(0.0, 0.0, cut_off=True)] * 2,
            2,
            "2 of 2 groups without signal, all 4 rollouts were cut off at the length limit",
            "rollout.max_new_tokens",
        ),
        (
            [group(0.0, 0.0, cut_off=True), group(0.5)],
            2,
            "2 of 2 groups without signal, 2 of 3 rollouts were cut off at the length limit, the reward of the other "
            "one is 0.5",
            "rollout.max_new_tokens",
        ),
        (
            [group(0.0, cut_off=True), group(*[0.0] * 31)],
            2,
            "2 of 2 groups without signal, 1 of 32 rollouts was cut off at the length limit, the reward of the other "
            "31 is 0",
            "easier problems",
        ),
        (
            [group(0.0, cut_off=True), group(1.0, 1.0)],
            2,
            "2 of 2 groups without signal, 1 of 3 rollouts was cut off at the length limit, the reward of the other 2 "
            "is 1",
            "harder problems",
        ),
        (
            [group(0.0, 0.0, cut_off=True), group(0.5, 0.5)],
            2,
            "2 of 2 groups without signal, 2 of 4 rollouts were cut off at the length limit, the reward of the other 2",
            "rollout.max_new_tokens",
        ),
        ([group(0.0, tokens=0)] * 2, 2, "all 2 rollouts are empty", "exprl rollouts"),
        (
            [group(0.0, 1.0)],
            0,
            "0 of 1 groups without signal, and in the others no rollout that counts",
            "exprl rollouts",
        ),
    ],
)
def test_the_nearest_cause_is_named(groups: list[ScoredGroup], dropped: int, reason: str, advice: str) -> None:
    found = no_update(groups, dropped)
    assert found.reason.startswith(reason)
    assert advice in found.advice


def step_log(tmp_path: Any) -> StepLog:
    from exprl.experiment import TrainerConfig
    from exprl.runs.directory import RunDirectory

    return StepLog(RunDirectory(tmp_path), Console(), options=TrainerConfig(max_steps=10))


def test_the_step_s_line_gives_the_reason_in_place_of_numbers(tmp_path: Any) -> None:
    metrics = existing({"update/entropy": float("nan"), "update/kl": float("nan"), "time/step_seconds": 1.25})
    shown = (("update/entropy", "entropy", ".3f"), ("update/kl", "kl", ".4f"))
    line = step_log(tmp_path).line(3, metrics, shown, NoUpdate("4 of 4 groups without signal", ""))
    assert line == "step  3/10  no update: 4 of 4 groups without signal  1.2 s"


def test_no_number_is_a_negative_zero(tmp_path: Any) -> None:
    metrics = {"update/kl": -1e-9, "update/loss": -0.0, "time/step_seconds": 0.0}
    line = step_log(tmp_path).line(1, metrics, (("update/kl", "kl", ".4f"), ("update/loss", "loss", ".3f")), None)
    assert line == "step  1/10  kl 0.0000  loss 0.000  0.0 s"
    assert (_number(-1e-9, sign=True), _number(-0.0), _number(-0.25, sign=True)) == ("+0.000", "0.00", "-0.250")


def test_several_in_a_row_are_warned_of_once_a_stretch(tmp_path: Any, caplog: pytest.LogCaptureFixture) -> None:
    log, idle = step_log(tmp_path), NoUpdate("", "easier problems")
    for _ in range(IN_A_ROW - 1):
        log.notice(idle)
    log.notice(None)
    assert caplog.text == ""
    for _ in range(3 * IN_A_ROW):
        log.notice(idle)
    assert [record.getMessage() for record in caplog.records] == [
        "3 steps in a row made no update, so nothing was learned. What may help: easier problems"
    ]


def test_a_stretch_goes_on_in_the_next_process(tmp_path: Any, caplog: pytest.LogCaptureFixture) -> None:
    first, second, idle = step_log(tmp_path), step_log(tmp_path), NoUpdate("", "easier problems")
    for _ in range(IN_A_ROW - 1):
        first.notice(idle)
    second.load_state_dict(first.state_dict())
    second.notice(idle)
    assert "3 steps in a row made no update" in caplog.text
