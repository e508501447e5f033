"""Signals stop a run where nothing is half done."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from exprl.training import interruption
from exprl.training.interruption import Interrupted, Interruption
from tests.waiting import LONG


def send(number: int) -> None:
    os.kill(os.getpid(), number)


def test_a_signal_stops_at_once_where_nothing_is_under_way() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match="SIGTERM") as stopped, Interruption(lambda: False).listening():
        send(signal.SIGTERM)
    assert stopped.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) is before


def test_during_an_update_it_waits_and_further_ones_are_the_same_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interruption, "SAME_REQUEST", LONG)
    listener = Interruption(lambda: True)
    with listener.listening():
        send(signal.SIGINT)
        send(signal.SIGTERM)
        with pytest.raises(Interrupted, match="SIGINT"):
            listener.check()
        listener.check()


def test_a_later_one_is_not_waited_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interruption, "SAME_REQUEST", 0.0)
    with Interruption(lambda: True).listening():
        send(signal.SIGTERM)
        with pytest.raises(Interrupted):
            send(signal.SIGTERM)


def test_it_is_no_exception_that_code_in_between_would_swallow() -> None:
    assert not issubclass(Interrupted, Exception)


def test_other_threads_may_train_too() -> None:
    def train() -> None:
        with Interruption(lambda: False).listening():
            done.append(1)

    done: list[int] = []
    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert done == [1]
