"""Chat templates: each message stands in the prompt once, the reply begins where it should, or it is refused."""

from __future__ import annotations

import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from exprl.errors import JudgeError, ModelError
from exprl.judges import SameModelJudge
from exprl.judges.backends.tokens import JudgeTokenizer
from exprl.judges.backends.transformers import TransformersBackend
from exprl.judges.prompting import compose
from exprl.models.base import LanguageModel
from exprl.text import rendering
from exprl.text.chat import NO_THINKING, ChatFrame, chat_frame, reply_end
from exprl.text.prompts import PromptBuilder, PromptTemplate
from exprl.types import Hidden, Problem, Question, Scaffold
from tests.conftest import tiny_llama
from tests.rollouts import rollout_of
from tests.tokenizers import CHATML, byte_level
from tests.waiting import LONG

HEAD = "{% for m in messages %}<|im_start|>{{ m.role }}\n"
TAIL = "<|im_end|>\n{% endfor %}"
PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
PARTS = (
    HEAD
    + "{% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}"
    + TAIL
    + PROMPT
)
THINKS = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
SWITCHED = CHATML.replace(
    "assistant\n{% endif %}",
    "assistant\n{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% else %}<think>\n"
    "{% endif %}{% endif %}",
)
CLOSED = HEAD + "{% if m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}" + TAIL
ALWAYS_THINKS = CLOSED + PROMPT.replace("{% endif %}", "<think>\n{% endif %}")
LLAMA2 = (
    "{% for m in messages %}{% if m.role == 'user' %}<s>[INST] {{ m.content | trim }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content | trim }} </s>{% else %}{{ raise_exception('no such role') }}"
    "{% endif %}{% endfor %}"
)
NEEDS_SYSTEM = (
    "{% if messages[0].role != 'system' %}"
    "{{ raise_exception('the first message must be a system message') }}{% endif %}" + CHATML
)
FIRST_IS_SYSTEM = "<sys>{{ messages[0].content }}</sys>" + CHATML.replace("in messages", "in messages[1:]")
QUESTION = "What is\n <b>7</b> * 6 & 'x'?  "


def tokenizer_with(template: str):
    tokenizer = byte_level()
    tokenizer.chat_template = template
    return tokenizer


def prompt_of(template: str, **config):
    return PromptBuilder(tokenizer_with(template), PromptTemplate(**config)).build(
        Question(problem_id="p", text=QUESTION)
    )


def judge_ids(template: str, **options) -> str:
    tokenizer = tokenizer_with(template)
    ids, _ = JudgeTokenizer(tokenizer, "m").encode_for_labels(
        compose("Grade {a}.", {}, {"a": QUESTION}), "Score: ", ["1", "2"]
    )
    return tokenizer.decode(ids)


# ------------------------------------------------------------------ right


@pytest.mark.parametrize(
    ("template", "text"),
    [
        (CHATML, f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"),
        (PARTS, f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"),
        (LLAMA2, f"<s>[INST] {QUESTION} [/INST]"),
        (
            CHATML.replace("m.content", "m.content | trim"),
            f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n",
        ),
        (
            CHATML.replace("m.content", "m.content | e"),
            f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n",
        ),
        (
            CHATML.replace("m.content", "m.content[:9] | upper"),
            f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n",
        ),
        (HEAD + "{{ m.content }}" + TAIL, f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"),
        (CLOSED, f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"),
        (THINKS, f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n<think>\n"),
    ],
    ids=["chatml", "parts", "llama 2", "trim", "escape", "cut", "no prompt", "no prompt, thinks", "thinks"],
)
def test_the_question_stands_there_once_and_unchanged(template: str, text: str) -> None:
    prompt = prompt_of(template)
    assert prompt.text == text
    assert tokenizer_with(template).decode(prompt.token_ids) == text


def test_parts_for_the_system_message_too() -> None:
    assert prompt_of(PARTS, system="Be brief.").text.startswith(
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n"
    )


def test_a_template_that_needs_a_system_message_has_one() -> None:
    assert prompt_of(NEEDS_SYSTEM, system="Be brief.").text.count(QUESTION) == 1


def test_the_date_is_the_same_every_day() -> None:
    dated = "Today is {{ strftime_now('%d %b %Y') }}.\n" + CHATML
    assert prompt_of(dated).text.startswith("Today is 26 Jul 2024.\n")


# ------------------------------------------------------------------ refused


@pytest.mark.parametrize(
    ("template", "config", "message"),
    [
        (HEAD + TAIL + PROMPT, {}, r"leaves the user message out of the prompt"),
        (
            CHATML.replace("{{ m.content }}", "{{ m.content }} {{ m.content }}"),
            {},
            r"puts the user message into the prompt 2 times",
        ),
        (NEEDS_SYSTEM, {}, r"fails: the first message must be a system message\. .*set prompt\.system"),
        (FIRST_IS_SYSTEM, {}, r"takes the first message for the system message\. .*set prompt\.system"),
        (LLAMA2, {"system": "x"}, r"fails: no such role\. Set prompt\.system=null"),
        (
            CHATML.replace("in messages", "in messages if m.role != 'system'"),
            {"system": "x"},
            r"leaves the system message out.*prompt\.system=null",
        ),
        ("{% for t in tools %}{{ t }}{% endfor %}" + CHATML, {}, r"fails: 'NoneType' object is not iterable"),
        ("{{ 1 / 0 }}" + CHATML, {}, r"fails: division by zero"),
        ("{% if %}" + CHATML, {}, r"fails: Expected an expression"),
        ("{{ messages[0].content.nothing.at_all }}", {}, r"fails: .*has no attribute"),
        ("{{ raise_exception('line 1\nline 2') }}", {}, r"fails: line 1 line 2"),
        (
            "{% if messages | length > 1 %}{{ raise_exception('one only') }}{% endif %}<user>{{ messages[0].content }}",
            {},
            r"has no generation prompt",
        ),
        (
            CHATML.replace("<|im_start|>assistant", "<|im_start|>bot"),
            {},
            r"begins a reply after .*bot.*, but puts one after .*assistant",
        ),
        ("{{ messages[0].content | urlencode }}" + HEAD + TAIL, {}, r"leaves the user message out"),
    ],
)
def test_what_cannot_be_right_is_one_clear_line(template: str, config: dict[str, str], message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        prompt_of(template, **config)
    assert "\n" not in str(caught.value)
    assert "model.chat_template" in str(caught.value)


@pytest.mark.parametrize("template", [HEAD + TAIL + PROMPT, NEEDS_SYSTEM, FIRST_IS_SYSTEM])
def test_judges_refuse_them_too(template: str) -> None:
    with pytest.raises(ModelError, match="the chat template of m ") as caught:
        JudgeTokenizer(tokenizer_with(template), "m").encode(compose("Grade {a}.", {}, {"a": "x"}))
    assert "prompt.system" not in str(caught.value), "that is the policy's"


# ------------------------------------------------------------------ thinking


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (CHATML, "assistant\nScore:"),
        (PARTS, "assistant\nScore:"),
        (HEAD + "{{ m.content }}" + TAIL, "<|im_end|>\n<|im_start|>assistant\nScore:"),
        (LLAMA2, " [/INST]Score:"),
        (SWITCHED, "assistant\n<think>\n\n</think>\n\nScore:"),
        (ALWAYS_THINKS, "assistant\n<think>\n\n</think>\n\nScore:"),
    ],
)
def test_labels_are_read_where_an_answer_begins(template: str, end: str) -> None:
    text = judge_ids(template)
    assert text.endswith(end), "the space may belong to the label"
    assert text.count(f"Grade {QUESTION}.") == 1


def test_labels_inside_thinking_are_refused_by_name() -> None:
    with pytest.raises(
        JudgeError, match=r"template of m makes a reply begin with thinking \('<think>\\n'\).*rationale"
    ):
        judge_ids(THINKS)


def judge_on(template: str, **options) -> SameModelJudge:
    tokenizer = tokenizer_with(template)
    model = LanguageModel(model=tiny_llama(len(tokenizer)), tokenizer=tokenizer, name="m")
    config = SameModelJudge.Config(weights="frozen", **options)
    return SameModelJudge.made(config, backend=TransformersBackend(language_model=model))


def test_a_judge_that_cannot_be_asked_is_found_out_before_a_run() -> None:
    problems = [
        Problem(question=Question(problem_id="p", text="1+1?"), scaffold=Scaffold(reference=Hidden("It is 2.")))
    ]
    with pytest.raises(JudgeError, match="begin with thinking"):
        judge_on(THINKS, scoring="expected").check(problems)
    with pytest.raises(ModelError, match="leaves the user message out"):
        judge_on(HEAD + TAIL + PROMPT, scoring="expected").check(problems)
    judge_on(THINKS, scoring="rationale").check(problems)


def test_a_written_reply_begins_with_the_thinking_that_the_prompt_opened() -> None:
    prompt = compose("Grade {a}.", {}, {"a": "x"})
    for template, opening in ((THINKS, "<think>\n"), (SWITCHED, ""), (CHATML, "")):
        judge = judge_on(template, scoring="rationale")
        [reply] = judge.backend.complete([prompt], 3, lambda _: None)
        assert reply.text.startswith(opening)
        assert ("<think>" in reply.text) == bool(opening)


def test_a_rollout_whose_prompt_opened_thinking_is_verified_with_it() -> None:
    prompt = prompt_of(THINKS)
    assert prompt.reply_opening == "<think>\n"
    rollout = rollout_of("The answer is 4", finish="length", prompt=prompt)
    assert rollout.reply == "<think>\nThe answer is 4"
    assert rollout.text == "The answer is 4", "its tokens' own text"
    assert prompt_of(CHATML).reply_opening == ""


def test_a_given_reply_stands_behind_thinking_that_the_template_opens() -> None:
    question = Question(problem_id="p", text="1+1?")
    closed = PromptBuilder(tokenizer_with(ALWAYS_THINKS)).build(question, thinking=False)
    assert closed.text.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert closed.reply_opening == ""
    assert PromptBuilder(tokenizer_with(ALWAYS_THINKS)).build(question).text.endswith("assistant\n<think>\n")
    for template in (CHATML, CLOSED):
        builder = PromptBuilder(tokenizer_with(template))
        assert builder.build(question, thinking=False) == builder.build(question)
    with pytest.raises(ModelError, match=r"begins every reply with '<think>\\n'.*model\.chat_template"):
        PromptBuilder(tokenizer_with(THINKS)).build(question, thinking=False)


@pytest.mark.parametrize(
    ("after", "opening"),
    [
        ("<think>\n", "<think>\n"),
        ("<think>\n\n</think>\n\n", ""),
        ("Use <think></think>.\n<think>", "<think>"),
        ("[THINK]", "[THINK]"),
        ("<|START_THINKING|>", "<|START_THINKING|>"),
        ("<|START_THINKING|><|END_THINKING|>", ""),
        ("assistant\n", ""),
    ],
)
def test_what_is_left_open(after: str, opening: str) -> None:
    assert ChatFrame(before=("",), after=after, answer=None).opening == opening


def test_switches_reach_the_template() -> None:
    assert chat_frame(tokenizer_with(SWITCHED), "m").opening == "<think>\n"
    assert chat_frame(tokenizer_with(SWITCHED), "m", switches=NO_THINKING).opening == ""


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (CHATML, "<|im_end|>"),
        (PARTS, "<|im_end|>"),
        (ALWAYS_THINKS, "<|im_end|>"),
        (LLAMA2, "</s>"),
        (CHATML.replace("<|im_end|>", "</s>"), "</s>"),
        (CHATML.replace("<|im_end|>", "\n\n"), None),  # nothing but text
        (CHATML.replace("<|im_end|>", ".<|im_end|>"), None),  # text first, which a reply cannot be trusted to write
        (CHATML.replace("<|im_end|>", "</think>"), None),  # a tag, which a reply may hold anywhere
        ("{{ raise_exception('never') }}", None),
    ],
)
def test_the_token_that_ends_a_reply(template: str, end: str | None) -> None:
    tokenizer = tokenizer_with(template)
    found = reply_end(tokenizer)
    assert (None if found is None else tokenizer.convert_ids_to_tokens(found)) == end
    tokenizer.chat_template = CHATML
    assert reply_end(tokenizer) == tokenizer.convert_tokens_to_ids("<|im_end|>"), "of the template it has now"


class TestBounds:
    """A template is a program: it ends, in time and in length, or it is refused."""

    @pytest.mark.parametrize(
        ("template", "message"),
        [
            ("{{ 'a' * 2000000 }}", r"writes 2,000,\d{3} characters around a short message"),
            ("{% set b = 'a' * 1000 %}{% for _ in range(9999) %}{{ b }}{% endfor %}", r"writes 9,999,\d{3} characters"),
            ("{{ 'a' * (10**9) }}", r"computes powers \(\*\*\)"),
            ("{{ 10 ** (10 ** 9) }}", r"computes powers \(\*\*\)"),
            (
                "{% for _ in range(99999) %}{% for _ in range(99999) %}{% endfor %}{% endfor %}",
                "takes longer than 0.5 seconds",
            ),
        ],
    )
    def test_a_template_that_runs_on_is_refused_at_once(self, template, message, monkeypatch):
        monkeypatch.setattr(rendering, "SECONDS", 0.5 if "longer" in message else LONG)
        with pytest.raises(ModelError, match=f"chat template of a model {message}.*Set model.chat_template"):
            chat_frame(tokenizer_with(CHATML + template), "a model")

    def test_text_that_looks_like_a_power_is_text(self):
        assert "**2 ** 3" in chat_frame(tokenizer_with("**{{ '2 ** 3' }}" + CHATML), "a model").before[0]

    def test_the_alarm_of_whoever_had_one_is_theirs_again(self):
        before = signal.getsignal(signal.SIGALRM)
        with pytest.raises(TimeoutError), rendering.time_limit(0.01):
            time.sleep(1000)
        assert signal.getsignal(signal.SIGALRM) is before
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)

    def test_another_thread_renders_too(self):
        with ThreadPoolExecutor(1) as pool:
            frame = pool.submit(chat_frame, tokenizer_with(CHATML), "a model").result()
        assert frame == chat_frame(tokenizer_with(CHATML), "a model")
