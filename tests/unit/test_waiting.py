"""Waits of a process that does not run all the time."""

from __future__ import annotations

import asyncio
import time

import pytest

from exprl.waiting import Wait, counting, within


def test_a_wait_takes_its_limit_and_many_looks() -> None:
    began, wait, looks = time.monotonic(), Wait(0.1), 0
    while not wait.over():
        time.sleep(wait.pause)
        looks += 1
    assert time.monotonic() - began >= 0.099
    assert looks >= 10
    assert wait.over()


def test_time_without_the_process_counts_as_one_look() -> None:
    wait = Wait(0.5)
    time.sleep(0.7)
    assert not wait.over()
    coarse = Wait(0.5, pause=0.3)
    time.sleep(0.7)
    assert not coarse.over()
    time.sleep(0.3)
    assert coarse.over()


@pytest.mark.parametrize(
    ("late", "factor"),
    [(0.0, 1.0), (0.05, 1.0), (0.09, 1.0), (0.2, 2.1), (0.28, 2.9)],
    ids="each look is late by {} of the limit".format,
)
def test_looks_that_are_late_make_a_limit_no_longer_or_a_few_times_longer(
    monkeypatch: pytest.MonkeyPatch, late: float, factor: float
) -> None:
    """As in the trainer's process where all cores are at work: it runs, but each time a little later than it asked."""
    clock = [0.0]
    monkeypatch.setattr("exprl.waiting.time.monotonic", lambda: clock[0])
    wait = Wait(20.0)
    while not wait.over():
        clock[0] += wait.pause + late * 20.0
    assert clock[0] + 1e-6 >= 20.0
    assert clock[0] <= factor * 20.0 + wait.pause + late * 20.0


def test_one_absence_counts_for_a_tenth_however_long_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("exprl.waiting.time.monotonic", lambda: clock[0])
    wait = Wait(20.0)
    clock[0] += 1e6
    assert not wait.over()
    left = 0
    while not wait.over():
        clock[0] += wait.pause
        left += 1
    assert left >= 89


def test_a_loop_that_is_blocked_for_longer_than_the_limit_has_lost_nothing() -> None:
    async def blocked() -> str:
        async with within(0.3):
            answer = asyncio.create_task(asyncio.sleep(0.05, "there"))  # comes while the loop cannot hear it
            await asyncio.sleep(0)
            time.sleep(0.5)
            return await answer

    assert asyncio.run(blocked()) == "there"


def test_a_loop_that_runs_ends_what_takes_too_long() -> None:
    async def forever() -> None:
        async with within(0.05):
            await asyncio.Event().wait()

    async def whole() -> list[str]:
        found = []
        for _ in range(2):
            with pytest.raises(TimeoutError):
                await forever()
            found.append("ended")
        await asyncio.sleep(0.1)  # what counted inside does nothing more
        return found

    assert asyncio.run(whole()) == ["ended", "ended"]


def test_whoever_cancels_is_not_told_of_a_limit() -> None:
    async def whole() -> None:
        async def forever() -> None:
            async with within(60):
                await asyncio.Event().wait()

        task = asyncio.create_task(forever())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(whole())


def test_a_loop_counts_beside_what_it_does() -> None:
    async def whole() -> list[bool]:
        with counting(0.05) as wait:
            before = wait.over()
            while not wait.over():
                await asyncio.sleep(10 * wait.pause)
        return [before, wait.over()]

    assert asyncio.run(whole()) == [False, True]
