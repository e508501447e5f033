"""Several servers that sample for one run: real HTTP on loopback, with what goes wrong injected."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from exprl.engines.http import CompletionServer, RequestFailedError, ServerOptions
from exprl.engines.loop import BackgroundLoop
from exprl.engines.servers.balance import place
from exprl.engines.servers.fleet import Address, Fleet
from exprl.errors import EngineError
from tests.vllm.fake_server import Answer, FakeServer, completion
from tests.waiting import LONG, until

# ------------------------------------------------------------------ where a request goes


def test_the_least_loaded_server_is_asked():
    assert place({0: 2, 1: 1, 2: 3}, patience=0) == 1
    assert place({2: 1, 1: 1}, patience=0) == 1, "among equals the lowest"
    assert [place(dict.fromkeys(range(4), 1), patience=0, first=first) for first in range(4)] == [0, 1, 2, 3]
    assert place({0: 1, 1: 1, 2: 5}, patience=0, first=2) == 0, "then those that follow it"


def test_a_prompt_stays_where_it_was_read_until_others_are_idle():
    assert place({0: 5, 1: 1}, home=0, patience=4) == 0
    assert place({0: 6, 1: 1}, home=0, patience=4) == 1
    assert place({1: 7}, home=0, patience=4) == 1, "a home that has no room, or is gone"


# ------------------------------------------------------------------ a fleet


class Sampler:
    """One server: answers with its own name, holds weights of a version, and can be made ill."""

    def __init__(self, name: str, version: str = "1") -> None:
        self.name, self.version = name, version
        self.silent = threading.Event()  # as a process that was stopped: connections are taken and nothing comes
        self.over = threading.Event()
        self.drops = self.stumbles = False
        self.hold: threading.Event | None = None
        self.refusal: Answer | None = None
        self.http = FakeServer(self.answer, get=self.get)

    def answer(self, number: int, body: Any) -> Answer:
        if self.hold is not None:
            self.hold.wait(LONG)
        if self.silent.is_set():
            self.over.wait(LONG)
        if self.drops:
            return Answer(drop=True)
        return self.refusal or completion(f"{self.name}:{body['seed']}")

    def get(self, path: str) -> Answer:
        if self.silent.is_set():
            self.over.wait(LONG)
        if self.stumbles:
            self.stumbles, self.refusal = False, None
            return Answer(drop=True)
        if self.drops:
            return Answer(drop=True)
        return Answer({"weight_version": self.version} if path == "/weight_info" else {})

    @property
    def url(self) -> str:
        return self.http.url.removesuffix("/v1")


class PlainControl:
    """A control plane of two routes, by urllib, which waits long for whoever is well."""

    def __init__(self, address: Address, sampler: Sampler) -> None:
        self.url, self.sampler = address.url, sampler

    def _get(self, path: str) -> Any:
        timeout = 0.2 if self.sampler.silent.is_set() else LONG
        with urllib.request.urlopen(f"{self.url}{path}", timeout=timeout) as answer:
            return json.load(answer)

    def health(self) -> bool:
        self._get("/health")
        return True

    def version(self) -> str | None:
        return str(self._get("/weight_info")["weight_version"])


class Lost(list):  # type: ignore[type-arg]
    """What a fleet says of servers that are lost."""

    def __call__(self, address: Address, reason: str) -> None:
        self.append((address.number, reason))


@contextmanager
def fleet_of(*samplers: Sampler, **settings: Any) -> Iterator[tuple[Fleet, Lost]]:
    options = {"timeout": LONG, "retries": 0, "concurrency": 64, **settings.pop("options", {})}
    timing = {"health_interval": 0.1, "health_timeout": 0.5, **settings}
    lost = Lost()
    with ExitStack() as stack:
        for sampler in samplers:
            stack.enter_context(sampler.http)

        def reach(address: Address, loop: BackgroundLoop) -> tuple[CompletionServer, PlainControl]:
            server = ServerOptions(url=f"{address.url}/v1", model="policy", **options)
            return CompletionServer(server, loop), PlainControl(address, samplers[address.number])

        fleet = Fleet(reach, on_loss=lost, **timing)
        fleet.adopt([Address(number=n, url=one.url) for n, one in enumerate(samplers)], "1")
        try:
            yield fleet, lost
        finally:
            for sampler in samplers:
                sampler.over.set()
                if sampler.hold is not None:
                    sampler.hold.set()


def ask(fleet: Fleet, seed: int, beginning: Any = None, **options: Any) -> Any:
    request = {"prompt": [1, 2, 3], "max_tokens": 4, "seed": seed}
    return fleet.submit(seed if beginning is None else beginning, request, **options)


def texts(futures: Any) -> list[str]:
    return [future.result(timeout=LONG)[0].text for future in futures]


def test_requests_are_shared_out_and_a_group_stays_together():
    one, two = Sampler("a"), Sampler("b")
    one.hold = two.hold = threading.Event()
    with fleet_of(one, two) as (fleet, lost):
        asked = [ask(fleet, seed, beginning=seed // 4, patience=4) for seed in range(16)]
        until(lambda: len(one.http.bodies) + len(two.http.bodies) == 16)
        one.hold.set()
        found = texts(asked)
    homes = [{text.split(":")[0] for text in found[4 * group : 4 * group + 4]} for group in range(4)]
    assert [len(home) for home in homes] == [1, 1, 1, 1], "each group at one server"
    assert [text.split(":")[0] for text in found].count("a") == 8
    assert [int(text.split(":")[1]) for text in found] == list(range(16)), "each has its own answer"
    assert lost == []


@pytest.mark.parametrize(("rank", "names"), [(0, "ab"), (1, "cd")])
def test_ranks_that_do_not_know_of_each_other_prefer_different_servers(rank, names):
    samplers = [Sampler(name) for name in "abcd"]
    hold = threading.Event()
    for sampler in samplers:
        sampler.hold = hold
    with fleet_of(*samplers, part=(rank, 2)) as (fleet, _):
        asked = [ask(fleet, seed, beginning="same", patience=0) for seed in range(2)]
        until(lambda: sum(len(sampler.http.bodies) for sampler in samplers) == 2)
        hold.set()
        assert [text.split(":")[0] for text in texts(asked)] == list(names)


def test_a_server_has_no_more_requests_than_it_may_have_and_the_free_one_takes_the_next():
    one, two = Sampler("a"), Sampler("b")
    one.hold = threading.Event()
    with fleet_of(one, two, options={"concurrency": 3}) as (fleet, _):
        asked = [ask(fleet, seed, beginning="same", patience=100) for seed in range(20)]
        until(lambda: sum(future.done() for future in asked) == 17)
        assert one.http.most_at_once == 3
        one.hold.set()
        assert sorted(text.split(":")[0] for text in texts(asked)) == ["a"] * 3 + ["b"] * 17


def test_what_a_dead_server_leaves_is_asked_again_and_each_request_is_answered_once():
    one, two = Sampler("a"), Sampler("b")
    one.hold = two.hold = threading.Event()
    with fleet_of(one, two) as (fleet, lost):
        asked = [ask(fleet, seed) for seed in range(12)]
        until(lambda: len(one.http.bodies) == len(two.http.bodies) == 6)
        one.drops = True
        one.hold.set()
        found = texts(asked)
        assert sorted(found) == sorted(f"b:{seed}" for seed in range(12)), "with the seeds they had"
        until(lambda: lost)
        assert [number for number, _ in lost] == [0], "said once"
        assert fleet.counts() == {"lost": 1, "resubmitted": 6}
        assert fleet.counts() == {"lost": 0, "resubmitted": 0}
        assert [one.number for one in fleet.addresses] == [1]


def test_a_server_that_hangs_is_given_up_within_the_limit():
    one, two = Sampler("a"), Sampler("b")
    with fleet_of(one, two) as (fleet, lost):
        one.silent.set()
        assert sorted(texts([ask(fleet, seed) for seed in range(6)])) == [f"b:{seed}" for seed in range(6)]
        until(lambda: lost)
        assert lost[0][1] == "it gave no sign of life for 0.5 s"


def test_a_server_that_answers_the_second_look_is_not_lost():
    one = Sampler("a")
    with fleet_of(one, health_interval=LONG) as (fleet, lost):
        one.refusal, one.stumbles = Answer({"error": "busy"}, status=503), True
        assert texts([ask(fleet, 0)]) == ["a:0"]
        one.stumbles = True
        fleet.check_versions()
        assert not one.stumbles
        assert fleet.counts() == {"lost": 0, "resubmitted": 1}
        assert lost == []


FLEET = """
import sys
from exprl.engines.http import CompletionServer, ServerOptions
from exprl.engines.servers.fleet import Address, Fleet
from exprl.engines.transfer.control import ControlPlane

def reach(address, loop):
    asked = ServerOptions(url=f"{address.url}/v1", model="policy", timeout=300.0, retries=0)
    return CompletionServer(asked, loop), ControlPlane(address.url, timeout=float(sys.argv[2]))

fleet = Fleet(reach, on_loss=lambda *lost: print(*lost), health_interval=0.01, health_timeout=1.0)
fleet.adopt([Address(number=0, url=sys.argv[1])], "1")
print(fleet.submit("a", {"prompt": [1], "max_tokens": 4, "seed": 0}).result()[0].text)
"""


@pytest.mark.parametrize(("first", "timeout"), [(Answer({}), 1.0), (Answer(drop=True), 300.0)], ids=["late", "none"])
def test_a_run_that_was_stopped_for_longer_than_the_limit_loses_no_server(first, timeout):
    """The answer to its look comes while it is stopped, or fails then; the next look finds the server well."""
    looks, held, run = [], threading.Event(), []

    def get(path: str) -> Answer:
        looks.append(path)
        if len(looks) > 1:
            held.set()
            return Answer({})
        os.kill(run[0].pid, signal.SIGSTOP)
        time.sleep(1.5)
        threading.Timer(0.2, os.kill, (run[0].pid, signal.SIGCONT)).start()  # with the answer before it
        return first

    def answer(number: int, body: Any) -> Answer:
        held.wait(LONG)
        return completion("whole")

    with FakeServer(answer, get=get) as server:
        command = [sys.executable, "-c", FLEET, server.url.removesuffix("/v1"), str(timeout)]
        run.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        assert run[0].communicate(timeout=LONG) == ("whole\n", None)
    assert looks[:2] == ["/health", "/health"]


def test_no_server_left_is_an_error_that_names_all():
    one, two = Sampler("a"), Sampler("b")
    one.drops = two.drops = True
    with fleet_of(one, two) as (fleet, _):
        asked = [ask(fleet, seed) for seed in range(4)]
        for future in asked:
            with pytest.raises(EngineError, match=r"no server is left .*server 0 .*server 1 .*--resume"):
                future.result(timeout=LONG)
        with pytest.raises(EngineError, match="no server is left"):
            fleet.check_versions()


def test_requests_that_wait_for_room_learn_that_no_server_is_left():
    one = Sampler("a")
    one.silent.set()
    with fleet_of(one, options={"concurrency": 2}) as (fleet, _):
        for future in [ask(fleet, seed) for seed in range(6)]:
            with pytest.raises(EngineError, match="no server is left"):
                future.result(timeout=LONG)


def test_a_request_that_a_server_in_good_health_refuses_is_asked_nowhere_else():
    one, two = Sampler("a"), Sampler("b")
    one.refusal = two.refusal = Answer({"error": {"message": "too long"}}, status=400)
    with fleet_of(one, two) as (fleet, lost):
        with pytest.raises(RequestFailedError, match="too long"):
            ask(fleet, 0).result(timeout=LONG)
        assert len(one.http.bodies) + len(two.http.bodies) == 1
        assert lost == []
        assert fleet.counts() == {"lost": 0, "resubmitted": 0}


def test_a_request_that_takes_too_long_at_a_server_in_good_health_ends():
    one = Sampler("a")
    one.hold = threading.Event()
    with (
        fleet_of(one, options={"timeout": 0.3}) as (fleet, _),
        pytest.raises(RequestFailedError, match=r"within 0\.3 s"),
    ):
        ask(fleet, 0).result(timeout=LONG)


# ------------------------------------------------------------------ whose weights


def test_before_a_batch_a_server_with_other_weights_is_left_out():
    one, two = Sampler("a", version="default"), Sampler("b")
    with fleet_of(one, two) as (fleet, lost):
        fleet.check_versions()
        until(lambda: lost)
        assert lost[0][0] == 0
        assert "holds the weights 'default', not '1'" in lost[0][1]
        assert texts([ask(fleet, seed) for seed in range(3)]) == ["b:0", "b:1", "b:2"]


def test_a_batch_during_which_the_weights_changed_is_refused():
    one, two = Sampler("a"), Sampler("b")
    with fleet_of(one, two) as (fleet, _):
        fleet.check_versions()
        texts([ask(fleet, seed) for seed in range(4)])
        one.version = "2"
        with pytest.raises(EngineError, match=r"server 0 .* holds the weights '2' after a batch .* '1'.*refused"):
            fleet.check_versions()


def test_a_server_that_ends_after_its_answers_takes_nothing_back():
    one, two = Sampler("a"), Sampler("b")
    with fleet_of(one, two) as (fleet, lost):
        fleet.check_versions()
        texts([ask(fleet, seed) for seed in range(4)])
        one.drops = True
        fleet.check_versions()
        until(lambda: lost)
        assert [number for number, _ in lost] == [0]


def test_a_server_that_was_started_anew_by_others_is_lost_until_it_has_the_weights():
    """It is well, but a request met its end: what it now holds is not the policy's."""
    one, two = Sampler("a"), Sampler("b")
    with fleet_of(one, two) as (fleet, lost):
        one.version = "default"
        one.refusal = Answer({"error": "starting"}, status=503)
        assert sorted(texts([ask(fleet, seed) for seed in range(4)])) == [f"b:{seed}" for seed in range(4)]
        until(lambda: lost)
        one.version, one.refusal = "2", None
        two.version = "2"
        fleet.adopt([Address(number=n, url=sampler.url) for n, sampler in enumerate((one, two))], "2")
        fleet.check_versions()
        assert {text[0] for text in texts([ask(fleet, seed) for seed in range(4)])} == {"a", "b"}


def test_what_another_run_s_update_drops_is_asked_of_others_and_its_server_is_lost():
    samplers = Sampler("a"), Sampler("b")
    with fleet_of(*samplers) as (fleet, lost):
        samplers[0].refusal, samplers[0].version = completion("half a", reason="abort"), "theirs/1-incomplete"
        assert sorted(texts([ask(fleet, seed) for seed in range(3)])) == ["b:0", "b:1", "b:2"]
        until(lambda: len(lost) == 1)
        assert "another run uses it" in lost[0][1]
    with fleet_of(only := Sampler("c")) as (fleet, _):
        only.refusal, only.version = completion("half a", reason="abort"), "theirs/1"
        with pytest.raises(EngineError, match=r"no server is left .*another run uses it"):
            ask(fleet, 0).result(LONG)


def test_every_server_is_asked_the_same():
    one, two = Sampler("a"), Sampler("b")
    with fleet_of(one, two) as (fleet, _):
        two.drops = True
        found = fleet.ask_each({"prompt": [1], "max_tokens": 1, "seed": 5})
    answers = {address.number: answer for address, answer in found.items()}
    assert answers[0].text == "a:5"
    assert isinstance(answers[1], RequestFailedError)


def test_whoever_stops_listening_stops_the_requests():
    one = Sampler("a")
    one.hold = threading.Event()
    with fleet_of(one, options={"concurrency": 2}) as (fleet, lost):
        asked = [ask(fleet, seed) for seed in range(8)]
        until(lambda: len(one.http.bodies) == 2)
        for future in asked:
            future.cancel()
        one.hold.set()
        assert texts([ask(fleet, 99)]) == ["a:99"]
        assert len(one.http.bodies) == 3
        assert lost == []
