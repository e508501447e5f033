"""What the vLLM tests share: one engine a file on a small policy, and the end of all engines."""

from __future__ import annotations

import copy
import gc
import importlib
import importlib.util
from collections.abc import Iterator

import pytest

from exprl.engines.vllm import VLLMEngine
from exprl.engines.vllm_host import close_all
from exprl.models.base import LanguageModel
from tests.vllm.helpers import engine_of, load, small_policy

FREEZE, UNFREEZE = gc.freeze, gc.unfreeze


def freeze_imports() -> None:
    """Leave what there is now out of later collections, as what was left out before."""
    if importlib.util.find_spec("vllm"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("VLLM_LOGGING_LEVEL", "ERROR")
            importlib.import_module("vllm").LLM  # noqa: B018 - which imports it
    gc.collect()
    FREEZE()


@pytest.fixture(scope="module", autouse=True)
def imports_frozen() -> Iterator[None]:
    """Garbage is not looked for in what was imported before: nine tenths of an engine's start and end are collections.

    vLLM freezes for this reason, too, but whenever an engine ends it thaws all that the process has.
    """
    freeze_imports()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("freeze", "unfreeze"):
            patch.setattr(gc, name, lambda: None)
        yield


@pytest.fixture
def vllm_freezes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """VLLM freezes and thaws as in a run: for tests of what is collected."""
    monkeypatch.setattr(gc, "freeze", FREEZE)
    monkeypatch.setattr(gc, "unfreeze", UNFREEZE)
    yield
    UNFREEZE()
    freeze_imports()


@pytest.fixture(scope="module")
def shared() -> Iterator[VLLMEngine]:
    """One running engine a file on a small random policy with tied embeddings: starting one takes seconds."""
    engine = engine_of(small_policy())
    yield engine
    close_all()


@pytest.fixture
def engine(shared: VLLMEngine) -> Iterator[VLLMEngine]:
    """The file's engine; a test may change the policy's weights, which are put back."""
    model = shared.host.language_model.model
    before = copy.deepcopy(model.state_dict())
    yield shared
    while shared.host.busy:  # what a failed test has left
        shared.host.step()
    load(model, before)
    shared.sync(0)


@pytest.fixture
def policy(engine: VLLMEngine) -> LanguageModel:
    """The policy of `engine`."""
    return engine.host.language_model


@pytest.fixture
def others_closed() -> Iterator[None]:
    """Every engine is shut down after the test: one that shares its process with a test's own may not survive it."""
    yield
    close_all()
