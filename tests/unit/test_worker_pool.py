"""Workers that are killed, stopped or kept busy, and answers that are made to do so."""

import itertools
import os
import queue
import signal
import sys
import time

import pytest

from exprl.errors import ExprlError
from exprl.types import Hidden, Problem, Question, Scaffold
from exprl.verifiers import MathVerifier, math_worker, worker_pool
from exprl.verifiers.comparison import compare, is_costly
from exprl.verifiers.math_worker import _alarm
from exprl.verifiers.worker_pool import OutOfTimeError, WorkerLostError, WorkerPool
from tests.waiting import linear

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals")

ENDLESS = r"10^{10^{10}}"
"""A number of too many digits, computed in one C call that no signal handler interrupts."""
EXPANSION = r"((x+y+z+1)^{90}-(x+y+z)^{90})^{3}"
"""Python code of sympy that takes minutes."""


def problem(answer: str) -> Problem:
    return Problem(question=Question(problem_id="p", text="q"), scaffold=Scaffold(answer=Hidden(answer)))


@pytest.fixture(scope="module")
def pool():
    """One for all: it replaces what it loses, and starting a worker takes seconds on a busy machine."""
    pool = WorkerPool(1)
    yield pool
    pool.close()


def send(pool: WorkerPool, number: signal.Signals) -> int:
    worker = pool._idle.queue[-1]
    os.kill(worker.process.pid, number)
    return worker.process.pid


def is_gone(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_lost_worker_turns_no_right_answer_wrong(pool, number):
    assert pool.ask("x+1", "1+x", 5.0)
    lost = send(pool, number)
    assert pool.ask("x+2", "2+x", 1e9), "its time is not waited for"
    assert is_gone(lost)


def test_a_worker_lost_while_it_computes_is_asked_again(pool, monkeypatch):
    assert pool.ask("x+1", "1+x", 5.0)
    ask, killed = worker_pool.Worker.ask, []

    def killing(worker, gold, answer, seconds):
        if len(killed) < 1:
            killed.append(worker.process.pid)
            worker.process.kill()
        return ask(worker, gold, answer, seconds)

    monkeypatch.setattr(worker_pool.Worker, "ask", killing)
    assert pool.ask("x+2", "2+x", 5.0)
    assert len(killed) == 1


def test_a_second_lost_worker_is_an_error_and_said(monkeypatch, caplog):
    class Lost:
        def stop(self):
            pass

        def ask(self, *_):
            raise WorkerLostError

    monkeypatch.setattr(worker_pool, "Worker", Lost)
    pool = WorkerPool(1)
    with pytest.raises(WorkerLostError):
        pool.ask("x+1", "1+x", 5.0)
    assert not MathVerifier().verify(problem("x+1"), r"\boxed{1+x}")
    assert "lost two worker processes" in caplog.text
    assert "'p'" in caplog.text


@pytest.mark.parametrize("endless", [ENDLESS, EXPANSION])
def test_a_comparison_has_an_end_and_the_next_is_right(pool, endless):
    assert pool.ask("x+1", "1+x", 5.0)
    with pytest.raises(OutOfTimeError):
        pool.ask("2", endless, 0.5)
    assert pool.ask("x+2", "2+x", 5.0)


def test_python_code_that_runs_out_of_time_costs_no_process(pool):
    assert pool.ask("x+1", "1+x", 5.0)
    before = pool._idle.queue[-1].process.pid
    with pytest.raises(OutOfTimeError):
        pool.ask("2", EXPANSION, 0.5)
    assert pool._idle.queue[-1].process.pid == before


def test_a_batch_of_slow_answers_takes_no_longer_than_a_few():
    verifier = MathVerifier(timeout=2.0, workers=2)
    assert verifier.verify(problem("x+1"), r"\boxed{1+x}")
    ask, given = verifier._is_equal, []

    def asked(gold, answer, seconds):
        given.append(seconds)
        return ask(gold, answer, seconds)

    verifier._is_equal = asked
    slow = [rf"\boxed{{((x+y+z+{n})^{{90}}-(x+y+z)^{{90}})^{{3}}}}" for n in range(10)]
    responses = [*slow, r"\boxed{1+x}", *slow]
    verdicts = verifier.verify_batch([problem("x+1")] * len(responses), responses)
    assert verdicts == [False] * 10 + [True] + [False] * 10
    assert sum(given) < 20, "seconds of CPU; with two for each they were 40"


class Late:
    """Replies to a process that is stopped for a while after it has asked."""

    def __init__(self, replies):
        self.replies, self.seconds = replies, 2.5

    def get(self, timeout):
        time.sleep(self.seconds)
        if self.seconds:
            self.seconds = 0
            raise queue.Empty
        return self.replies.get(timeout=timeout)


@pytest.mark.parametrize("answer", ["2+x", "2-x"])
def test_whoever_was_stopped_for_longer_than_an_answer_may_take_still_hears_it(pool, answer):
    assert pool.ask("x+1", "1+x", 5.0)
    worker = pool._idle.queue[-1]
    worker._replies = Late(worker._replies)
    assert pool.ask("x+2", answer, 0.1) is (answer == "2+x")


def test_time_in_which_a_worker_has_no_turn_does_not_count():
    before = signal.getsignal(signal.SIGPROF)
    with _alarm(0.1) as rang:
        time.sleep(1.0)
    assert not rang
    with pytest.raises(math_worker.OutOfTimeError), _alarm(0.1):
        sum(n for n in itertools.count())
    signal.signal(signal.SIGPROF, before)


def test_a_batch_keeps_its_order():
    responses = [rf"\boxed{{{n}+x}}" for n in range(6)]
    assert MathVerifier().verify_batch([problem("x+3")] * 6, responses) == [n == 3 for n in range(6)]
    with pytest.raises(ValueError, match="a response for each problem, but got 6 for 2"):
        MathVerifier().verify_batch([problem("x")] * 2, responses)


@pytest.mark.parametrize(
    "answer",
    [
        "9**9**9**9",
        "10^{10^{10^{10}}}",
        "2^{10000000}",
        "1000000000!",
        "((9!)!)!",
        "(" * 100 + "1" + ")" * 100,
        r"\frac{1}{" * 40 + "2" + "}" * 40,
    ],
)
def test_what_is_costly_is_refused_before_a_worker_sees_it(answer):
    assert is_costly(answer.replace("**", "^"))
    assert compare("2x", answer) is False


@pytest.mark.parametrize(
    "answer", ["2^{100}", "100!", "10^{-34}", "2^{2^{10}}", "x^{2023}", "((1+2)(3+4))", r"2^{3^4}"]
)
def test_usual_answers_are_not_costly(answer):
    assert not is_costly(answer)


@pytest.mark.parametrize(
    "attack",
    [
        "__import__('os').system('touch {}')",
        r"\text{{__import__('os').system('touch {}')}}",
        r"\operatorname{{exec}}(open('{}','w'))",
        r"\input{{{}}}",
        r"\write18{{touch {}}}",
        r"\immediate\write18{{touch {}}}",
        r"1 + eval(\"open('{}','w')\")",
        "open('{}', 'w')",
        "x.__class__.__mro__[-1].__subclasses__() and open('{}','w')",
        "lambda: open('{}','w')",
        r"\{{open('{}','w'), 1\}}",
    ],
)
@pytest.mark.parametrize("form", [r"\boxed{%s}", "The answer is %s", "%s"])
def test_no_answer_is_run(pool, tmp_path, attack, form):
    mark = tmp_path / "mark"
    text = attack.format(mark)
    verifier = MathVerifier()
    verifier._pool = pool
    verifier._is_equal = pool.ask  # what it asks is asked here: none of it is remembered
    assert not verifier.verify(problem("2x"), form % text)
    verifier.verify(problem(text), form % "2x")
    pool.ask("2x", text, 2.0)
    assert not mark.exists()


def test_huge_responses_are_read_in_no_time():
    verifier = MathVerifier()
    for piece in (
        "1",
        "(",
        r"\boxed{",
        "{",
        "answer is ",
        "$",
        r"\[",
        "<think>",
        "\u00bd",
        "a ",
        "1,000,",
        r"\text{",
        "½√",
    ):
        text = piece * (200_000 // len(piece))
        with linear():
            assert not verifier.verify(problem("42"), text)
            assert not verifier.verify(problem("42"), rf"\boxed{{{text}}}")
            assert not verifier.verify(problem("42"), f"The answer is {text}")


def test_workers_end_with_their_verifier():
    verifier = MathVerifier()
    assert verifier.verify(problem("x+1"), r"\boxed{1+x}")
    process = verifier._pool._idle.queue[-1].process
    del verifier
    assert process.poll() is not None


def test_math_says_when_math_verify_cannot_start(monkeypatch, tmp_path):
    broken = tmp_path / "worker.py"
    broken.write_text("raise SystemExit(1)")
    monkeypatch.setattr(worker_pool, "WORKER", broken)
    with pytest.raises(ExprlError, match="pip install 'math-verify"):
        MathVerifier().verify(problem("x+1"), r"\boxed{1+x}")
