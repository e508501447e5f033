import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from exprl.config import validate
from exprl.data.leakage import leaked_ngram
from exprl.errors import ConfigError, DataError, ModelError
from exprl.text.prompts import PromptBuilder, PromptTemplate
from exprl.types import Hidden, Problem, Question, Scaffold

TEMPLATE = (
    "<s>{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + TEMPLATE
QUESTION = Question(problem_id="p7", text="What is f({x}) for {question} and {0}?")


def tokenizer(chat_template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """One token a character, so that ids are easy to read."""
    special = ["<s>", "[user]", "[system]", "[assistant]"]
    characters = [chr(code) for code in range(32, 127)]
    vocabulary = {token: index for index, token in enumerate([*special, *characters])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", additional_special_tokens=special[1:], chat_template=chat_template
    )


def test_text_and_ids():
    prompt = PromptBuilder(tokenizer()).build(Question(problem_id="p", text="ab"))
    assert prompt.problem_id == "p"
    assert prompt.text == "<s>[user]ab[assistant]"
    ids = tokenizer().get_vocab()
    assert prompt.token_ids == tuple(ids[token] for token in ("<s>", "[user]", "a", "b", "[assistant]"))


def test_ids_are_those_of_transformers_itself():
    policy = tokenizer()
    messages = [{"role": "user", "content": QUESTION.text}]
    expected = policy.apply_chat_template(messages, tokenize=True, add_generation_prompt=True, return_dict=True)
    assert PromptBuilder(policy).build(QUESTION).token_ids == tuple(expected["input_ids"])


def test_system_message_and_template_leave_braces_alone():
    config = PromptTemplate(system="Use {braces}.", template="Solve {question} in \\boxed{}. {n}")
    prompt = PromptBuilder(tokenizer(), config).build(QUESTION)
    assert prompt.text == (f"<s>[system]Use {{braces}}.[user]Solve {QUESTION.text} in \\boxed{{}}. {{n}}[assistant]")


@pytest.mark.parametrize(
    "wrong",
    [
        Problem(question=QUESTION, scaffold=Scaffold(reference=Hidden("the solution"))),
        Scaffold(reference=Hidden("the solution")),
        Hidden("the solution"),
        "What is 1+1?",
        None,
    ],
)
def test_only_a_question_becomes_a_prompt(wrong):
    with pytest.raises(
        TypeError, match=r"a prompt is built from a Question alone, but got a \w+.*problem\.question"
    ) as e:
        PromptBuilder(tokenizer()).build(wrong)
    assert "the solution" not in str(e.value)


def test_a_question_that_carries_more_is_refused():
    class Smuggler(Question):
        """A subclass could hold a reference."""

    with pytest.raises(TypeError, match="got a Smuggler"):
        PromptBuilder(tokenizer()).build(Smuggler(problem_id="p", text="x"))


def test_reference_does_not_reach_the_prompt():
    reference = "First take f apart, then put the pieces together again."
    problem = Problem(question=QUESTION, scaffold=Scaffold(reference=Hidden(reference)))
    text = PromptBuilder(tokenizer()).build(problem.question).text
    assert leaked_ngram(text, reference, QUESTION.text) is None


def test_too_long_names_the_problem_and_both_lengths():
    builder = PromptBuilder(tokenizer(), PromptTemplate(max_prompt_tokens=4))
    with pytest.raises(DataError, match=r"problem 'p': its prompt has 5 tokens, but max_prompt_tokens is 4"):
        builder.build(Question(problem_id="p", text="ab"))
    assert len(builder.build(Question(problem_id="p", text="a")).token_ids) == 4


def test_tokenizer_without_chat_template():
    with pytest.raises(ModelError, match=r"no chat template.*Set model\.chat_template, or choose an instruct model"):
        PromptBuilder(tokenizer(None))


def test_chat_template_that_refuses_a_system_message():
    builder = PromptBuilder(tokenizer(NO_SYSTEM), PromptTemplate(system="Be brief."))
    with pytest.raises(ModelError, match=r"no system role\. Set prompt\.system=null"):
        builder.build(QUESTION)
    assert PromptBuilder(tokenizer(NO_SYSTEM)).build(QUESTION).text.startswith("<s>[user]")


def test_template_without_the_question():
    with pytest.raises(ConfigError, match=r"template: 'Solve this' has no \{question\}"):
        PromptTemplate(template="Solve this")
    with pytest.raises(ConfigError, match=r"^prompt\.template: 'Solve this' has no"):
        validate(PromptTemplate.Config, {"template": "Solve this"}, "prompt")


def test_limit_below_one():
    with pytest.raises(ConfigError, match=r"max_prompt_tokens: must be in \[1, .* but got 0"):
        PromptTemplate(max_prompt_tokens=0)
