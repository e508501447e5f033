"""What a vLLM server is told, against a real HTTP server: every wait has a limit, every error names the server."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from exprl.engines.transfer.control import ControlError, ControlPlane
from exprl.errors import ConfigError
from tests.control_server import ControlServer, Gone, control_servers
from tests.waiting import LONG

KEY = "sk-very-secret"


@pytest.fixture
def server() -> Iterator[ControlServer]:
    with control_servers() as servers:
        yield servers[0]


@pytest.fixture
def control(server: ControlServer) -> ControlPlane:
    return ControlPlane(server.url, key=KEY, timeout=LONG)


def hang(body: Any) -> None:
    """Longer than any test waits: what comes of it nobody hears."""
    threading.Event().wait()


CALLS = {
    "pause": lambda control: control.pause(),
    "resume": lambda control: control.resume(),
    "weight_info": lambda control: control.version(),
    "is_paused": lambda control: control.is_paused(),
    "get_world_size": lambda control: control.world_size(),
    "reset_prefix_cache": lambda control: control.reset_prefix_cache(),
    "update_weight_version": lambda control: control.set_version("v"),
    "init_weight_transfer_engine": lambda control: control.init_weight_transfer_engine({}),
    "start_weight_update": lambda control: control.start_weight_update(),
    "update_weights": lambda control: control.update_weights({"a": 1}),
    "finish_weight_update": lambda control: control.finish_weight_update("v"),
}


def test_it_says_how_it_is(server, control):
    assert control.health()
    assert control.version() == "default"
    assert control.world_size() == 1
    assert not control.is_paused()


def test_it_does_what_it_is_told(server, control):
    control.pause()
    assert control.is_paused()
    control.set_version("a/1")
    assert control.version() == "a/1"
    control.init_weight_transfer_engine({"folder": "f"})
    control.start_weight_update()
    control.update_weights({"index": 0})
    control.finish_weight_update("a/2")
    control.reset_prefix_cache()
    control.resume()
    assert (server.version, server.paused, server.active) == ("a/2", False, False)
    assert server.calls == [
        ("/pause?mode=abort", None),
        ("/update_weight_version", {"new_version": "a/1"}),
        ("/init_weight_transfer_engine", {"init_info": {"folder": "f"}}),
        ("/start_weight_update", None),
        ("/update_weights", {"update_info": {"index": 0}}),
        ("/finish_weight_update", {"weight_version": "a/2"}),
        ("/reset_prefix_cache", None),
        ("/resume", None),
    ]


@pytest.mark.parametrize("route", CALLS)
def test_no_wait_is_endless(server, route):
    server.faults[f"/{route}"] = hang
    with pytest.raises(ControlError, match=rf"{server.url}/{route}\S*: no answer within 0.2 s") as caught:
        CALLS[route](ControlPlane(server.url, timeout=0.2))
    assert caught.value.status is None


def test_a_server_that_hangs_or_is_not_there_is_not_well(server):
    control = ControlPlane(server.url, timeout=0.2)
    server.faults["/health"] = hang
    assert not control.health()
    server.faults["/health"] = lambda body: (503, None)
    assert not control.health()
    assert not ControlPlane("http://127.0.0.1:9", timeout=1).health()


@pytest.mark.parametrize("route", CALLS)
def test_a_refusal_names_the_server_and_says_why(server, control, route):
    server.faults[f"/{route}"] = lambda body: (500, {"error": {"message": "no weights today"}})
    with pytest.raises(ControlError, match=rf"{server.url}/{route}\S*: HTTP 500: no weights today") as caught:
        CALLS[route](control)
    assert caught.value.status == 500


def test_a_server_that_is_gone_is_named(server, control):
    def gone(body: Any) -> None:
        raise Gone

    server.faults["/update_weights"] = gone
    with pytest.raises(ControlError, match=server.url):
        control.update_weights({"a": 1})
    with pytest.raises(ControlError, match=server.url):
        control.version()


@pytest.mark.parametrize(
    "answer", [None, b"<html>", {"weight_version": 3}, {}, [1], b"[" * 100_000, b'"' + b"x" * 2**21 + b'"']
)
def test_what_is_no_version_is_refused(server, control, answer):
    server.faults["/weight_info"] = lambda body: (200, answer)
    with pytest.raises(ControlError, match=server.url):
        control.version()


def test_a_cache_that_is_in_use_is_said(server, control):
    server.faults["/reset_prefix_cache"] = lambda body: (200, {"success": False})
    with pytest.raises(ControlError, match="in use by requests under way"):
        control.reset_prefix_cache()


def test_a_server_without_these_routes_is_told_apart(server, control):
    server.faults["/pause"] = lambda body: (404, {"detail": "Not Found"})
    with pytest.raises(ControlError, match="VLLM_SERVER_DEV_MODE=1"):
        control.pause()


def test_the_key_is_sent_and_shown_nowhere(server, control):
    server.faults["/pause"] = lambda body: (401, {"error": f"wrong key {KEY}"})
    with pytest.raises(ControlError, match="wrong key") as caught:
        control.pause()
    assert server.headers["authorization"] == f"Bearer {KEY}"
    assert KEY not in str(caught.value) + repr(control)


def test_a_password_is_sent_and_shown_nowhere(server):
    control = ControlPlane(server.url.replace("http://", "http://me:hunter2@"), timeout=LONG)
    server.faults["/pause"] = lambda body: (403, {"error": "not hunter2"})
    with pytest.raises(ControlError) as caught:
        control.pause()
    assert server.headers["authorization"].startswith("Basic ")
    assert "hunter2" not in str(caught.value) + repr(control) + control.url


def test_a_redirect_is_not_followed(server, control):
    server.faults["/pause"] = lambda body: (307, None)
    with pytest.raises(ControlError, match="HTTP 307"):
        control.pause()


def test_an_url_may_end_as_that_of_completions():
    assert ControlPlane("http://a:8000/v1", timeout=1).url == "http://a:8000"
    with pytest.raises(ConfigError):
        ControlPlane("a:8000", timeout=1)


def test_what_was_left_half_done_is_ended(server, control):
    server.active = True
    control.abandon_weight_update()
    assert not server.active
    control.start_weight_update()
