"""A timeline is taken down as it happens, cut back on a resume, and read as spans, a trace and shares of the time."""

from __future__ import annotations

import itertools
import json
import logging
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from exprl.commands.timeline import chosen_steps, told_of
from exprl.errors import ConfigError, DataError
from exprl.runs.timeline import ANSWERING, SAMPLER, SAVING, SYNCING, TRAINER, Span, Timeline, read_timeline, spans_of
from exprl.runs.trace import chrome_trace, length, union, usage, within, without
from exprl.terminal.phases import Phases
from tests.waiting import LONG


class Run:
    """A rank whose steps a test counts."""

    def __init__(self, folder: Path, rank: int = 0, *, done: int = 0, ranks: int = 1) -> None:
        self.done = done
        self.timeline = Timeline(folder, rank, steps_done=lambda: self.done)
        self.timeline.open(done, ranks=ranks, first=rank == 0)
        self.phases = Phases(shown=lambda: False)
        self.phases.recorder = self.timeline.row(TRAINER)

    def step(self) -> None:
        for name in ("sampling", "judging", "updating"):
            with self.phases.run(name):
                pass
        self.done += 1
        for name in (SYNCING, SAVING):
            with self.phases.mark(name):
                pass


def span(name: str, start: float, end: float, **place: Any) -> Span:
    return Span(**{"rank": 0, "process": 0, "row": TRAINER, "step": 1, **place}, name=name, start=start, end=end)


# ------------------------------------------------------------------ taken down and read


def test_phases_are_spans_of_their_step(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with run.phases.run("evaluate_before"):
        pass
    run.step()
    run.step()
    with run.phases.run("evaluate_2"):
        pass
    run.timeline.close()
    run.step()  # nobody hears of it any more
    spans = read_timeline(tmp_path)
    of_step = ["sampling", "judging", "updating", SYNCING, SAVING]
    assert [(found.name, found.step) for found in spans] == [
        ("evaluate_before", 0),
        *((name, 1) for name in of_step),
        *((name, 2) for name in of_step),
        ("evaluate_2", 2),
    ]
    assert all(found.finished and found.start <= found.end for found in spans)
    assert all(before.end <= after.start for before, after in itertools.pairwise(spans))


def test_phases_lie_within_others_and_beside_those_of_another_thread(tmp_path: Path) -> None:
    run = Run(tmp_path)
    beside = Phases(shown=lambda: False)
    beside.recorder = run.timeline.row(SAMPLER)
    begun, ended = threading.Event(), threading.Event()

    def sample() -> None:
        with beside.run("sampling"):
            begun.set()
            ended.wait(LONG)

    with run.phases.run("updating"):
        thread = threading.Thread(target=sample)
        thread.start()
        assert begun.wait(LONG)
        with run.phases.mark("updating"), run.phases.mark("gradients"):
            pass
        ended.set()
        thread.join()
    rows = {(found.row, found.name): found for found in read_timeline(tmp_path)}
    outer, inner = (found for found in read_timeline(tmp_path) if found.name == "updating")
    assert outer.start <= inner.start <= rows[TRAINER, "gradients"].start
    assert rows[TRAINER, "gradients"].end <= inner.end <= outer.end
    assert outer.start <= rows[SAMPLER, "sampling"].start <= inner.start
    assert inner.end <= rows[SAMPLER, "sampling"].end <= outer.end


def test_what_fails_has_an_end(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with pytest.raises(RuntimeError), run.phases.run("judging"):
        raise RuntimeError
    assert [(found.name, found.finished) for found in read_timeline(tmp_path)] == [("judging", True)]


def test_a_process_that_was_killed_leaves_what_it_did_until_then(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.step()
    run.timeline.take_down(TRAINER, "begin", "sampling")
    run.timeline.take_down(SAMPLER, "begin", "judging")
    with run.timeline.path.open("ab") as file:
        file.write(b'{"at": 17')
    left = [found for found in read_timeline(tmp_path) if not found.finished]
    assert [(found.name, found.step) for found in left] == [("sampling", 2), ("judging", 2)]
    assert left[0].end == left[1].start == left[1].end, "the last that it said"
    assert told_of(left)[1] == (
        "2 phases without an end, the last judging of step 2 on rank 0: the run was killed in it, or is in it now"
    )


def test_a_resume_cuts_back_to_its_checkpoint_and_counts_a_process(tmp_path: Path) -> None:
    first = Run(tmp_path)
    for _ in range(3):
        first.step()
    with first.phases.run("evaluate_3"):
        pass
    first.timeline.take_down(TRAINER, "begin", "sampling")
    with first.timeline.path.open("ab") as file:
        file.write(b'{"at": 17')
    second = Run(tmp_path, done=2)
    second.step()
    spans = read_timeline(tmp_path)
    assert [found.step for found in spans] == [1] * 5 + [2] * 5 + [3] * 5
    assert [found.process for found in spans] == [0] * 10 + [1] * 5
    assert told_of(spans) == ["steps 1 to 3, 1 rank, 2 processes of the run: it was stopped and went on"]
    assert [path.name for path in tmp_path.iterdir()] == ["rank-0.jsonl"]


def test_ranks_have_files_of_their_own_and_those_that_are_gone_are_cut_too(tmp_path: Path) -> None:
    runs = [Run(tmp_path, rank, ranks=3) for rank in range(3)]
    for run in runs:
        run.step()
        run.step()
    assert [found.rank for found in read_timeline(tmp_path)] == [0] * 10 + [1] * 10 + [2] * 10
    Run(tmp_path, 0, done=1, ranks=2).step()
    Run(tmp_path, 1, done=1, ranks=2)
    steps = {rank: [f.step for f in read_timeline(tmp_path) if f.rank == rank] for rank in range(3)}
    assert steps == {0: [1] * 5 + [2] * 5, 1: [1] * 5, 2: [1] * 5}


def test_a_disk_that_cannot_be_written_is_told_once_and_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "timeline").write_text("")
    run = Run(tmp_path / "timeline")
    run.step()
    full = Run(tmp_path / "full")
    full.timeline._file.close()
    with Path("/dev/full").open("ab", buffering=0) as full.timeline._file:
        full.step()
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert [message.partition(" cannot be written ")[0] for message in said] == [
        str(tmp_path / "timeline/rank-0.jsonl"),
        str(tmp_path / "full/rank-0.jsonl"),
    ]
    assert all("goes on without a timeline" in message for message in said)


@pytest.mark.parametrize(
    "line",
    [
        "[]",
        "1",
        '{"at": 1.0}',
        '{"at": NaN, "step": 1, "process": 1}',
        '{"at": "x", "step": 1, "process": 1}',
        '{"at": 1, "step": 1, "begin": 3, "row": "trainer"}',
        '{"at": 1, "step": 1, "end": "sampling"}',
    ],
)
def test_lines_that_no_run_wrote_are_named(tmp_path: Path, line: str) -> None:
    Run(tmp_path).step()
    with (tmp_path / "rank-0.jsonl").open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(DataError, match=r"rank-0\.jsonl, line 12, is none of a timeline"):
        read_timeline(tmp_path)


def test_an_end_without_a_begin_is_passed_over() -> None:
    line = {"at": 1.0, "step": 1, "row": TRAINER}
    assert spans_of([{**line, "end": "sampling"}, {**line, "begin": "judging"}, {**line, "end": "judging"}], 0) == [
        span("judging", 1.0, 1.0)
    ]


# ------------------------------------------------------------------ the trace


def test_a_trace_is_one_that_viewers_open() -> None:
    """By the Trace Event Format: complete events with whole microseconds, and names for processes and threads."""
    spans = [
        span("sampling", 100.0, 103.0, row=SAMPLER, rank=1),
        span("updating", 100.5, 102.0, rank=1, step=7),
        span("judging", 101.0, 101.25, rank=0),
    ]
    trace = json.loads(json.dumps(chrome_trace(spans), allow_nan=False))
    assert set(trace) == {"traceEvents", "displayTimeUnit", "otherData"}
    named = {(e["name"], e["pid"], e["tid"]): e["args"]["name"] for e in trace["traceEvents"] if e["ph"] == "M"}
    assert named == {
        ("process_name", 0, 0): "rank 0",
        ("process_name", 1, 0): "rank 1",
        ("thread_name", 0, 0): TRAINER,
        ("thread_name", 1, 0): TRAINER,
        ("thread_name", 1, 1): SAMPLER,
    }
    events = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    assert [(e["name"], e["pid"], e["tid"], e["ts"], e["dur"], e["args"]["step"]) for e in events] == [
        ("sampling", 1, 1, 0, 3_000_000, 1),
        ("updating", 1, 0, 500_000, 1_500_000, 7),
        ("judging", 0, 0, 1_000_000, 250_000, 1),
    ]


@given(st.lists(st.tuples(st.floats(1.7e9, 1.9e9), st.floats(0, 1e4), st.floats(0, 1)), min_size=1, max_size=5))
def test_what_lies_within_another_span_does_so_in_the_trace(times: list[tuple[float, float, float]]) -> None:
    """Rounded to microseconds, no inner span may reach beyond its outer one: viewers would draw it elsewhere."""
    for start, seconds, share in times:
        outer, inner = (
            span("step", start, start + seconds),
            span("sampling", start + share * seconds, start + seconds),
        )
        events = [event for event in chrome_trace([outer, inner])["traceEvents"] if event["ph"] == "X"]
        ends = [event["ts"] + event["dur"] for event in events]
        assert events[0]["ts"] <= events[1]["ts"]
        assert ends[1] <= ends[0]


# ------------------------------------------------------------------ where the time went


def test_the_shares_of_a_run_one_after_the_other() -> None:
    found = usage(
        [
            span("evaluate_before", 0.0, 10.0, step=0),
            span("sampling", 10.0, 16.0),
            span("judging", 16.0, 17.0),
            span("updating", 18.0, 20.0),
            span("evaluate_1", 20.0, 25.0),
            span("sampling", 25.0, 28.0, step=2),
            span("updating", 28.0, 30.0, step=2),
        ]
    )
    assert found.steps == 2
    assert found.whole == 15.0
    assert found.phases == {"sampling": 9.0, "updating": 4.0, "judging": 1.0}
    assert found.between == 1.0
    assert (found.idle_trainer, found.idle_sampler, found.evaluation) == (10.0, 5.0, 15.0)


def test_the_shares_of_a_run_one_step_ahead() -> None:
    """The sampler works for 8 of 10 s, beside an update of 6 s after which the trainer waits for 3 s."""
    found = usage(
        [
            span("sampling", 0.0, 7.0, row=SAMPLER),
            span("judging", 7.0, 8.0, row=SAMPLER),
            span("updating", 0.0, 6.0),
            span("waiting", 6.0, 9.0),
            span(SYNCING, 9.0, 10.0),
        ]
    )
    assert found.whole == 10.0
    assert found.phases == {"sampling": 7.0, "updating": 6.0, "waiting": 3.0, "judging": 1.0, SYNCING: 1.0}
    assert (found.between, found.idle_trainer, found.idle_sampler) == (0.0, 3.0, 2.0)


def test_the_time_between_two_processes_is_nobodys_and_ranks_are_averaged() -> None:
    one = [span("updating", 0.0, 2.0), span("updating", 50.0, 52.0, process=1, step=2)]
    found = usage([*one, span("updating", 0.0, 8.0, rank=1)])
    assert (found.whole, found.steps) == (6.0, 2)
    assert found.phases == {"updating": 6.0}
    assert usage([]).whole == 0.0


def test_a_server_s_requests_of_several_ranks_count_once_and_are_no_phase_of_theirs() -> None:
    found = usage(
        [
            span("sampling", 0.0, 8.0),
            span("sampling", 0.0, 10.0, rank=1),
            span(ANSWERING, 1.0, 5.0, row="server 0"),
            span(ANSWERING, 3.0, 9.0, row="server 0", rank=1),
            span(ANSWERING, 2.0, 3.0, row="server 1", rank=1),
        ]
    )
    assert found.servers == {"server 0": 8.0, "server 1": 1.0}
    assert (found.phases, found.whole) == ({"sampling": 9.0}, 9.0)


INTERVALS = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)).map(sorted).map(tuple), max_size=6)


def moments(intervals: Any) -> set[int]:
    """As a set of units, the half-open way."""
    return {moment for start, end in intervals for moment in range(start, end)}


@given(INTERVALS, INTERVALS)
def test_sets_of_intervals_are_sets_of_moments(one: Any, other: Any) -> None:
    first, second = union(one), union(other)
    assert moments(first) == moments(one)
    assert all(before[1] < after[0] for before, after in itertools.pairwise(first))
    assert moments(within(first, second)) == moments(one) & moments(other)
    assert moments(without(first, second)) == moments(one) - moments(other)
    assert length(first) == len(moments(one))


@pytest.mark.parametrize("given_steps", ["", ":", "a", "3-4", "1:2:3", "-1:3", "1:x", " 3", "9999999999", "٣"])
def test_steps_that_are_none(given_steps: str) -> None:
    with pytest.raises(ConfigError, match="--steps: A:B, A:, :B or one step, but got"):
        chosen_steps(given_steps)


def test_steps_the_wrong_way_round() -> None:
    with pytest.raises(ConfigError, match="--steps: 7:3 ends before it begins"):
        chosen_steps("7:3")
