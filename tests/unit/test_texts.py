"""A run goes on with the texts it was started with: chat templates, and the prompts of judge, teacher and detectors."""

from __future__ import annotations

from pathlib import Path

import pytest

from exprl.config import validate_choice
from exprl.errors import PathError, RunDirectoryError
from exprl.evaluation.detectors import JudgedDetector, LexicalDetector
from exprl.files.disk import write_json
from exprl.judges import SameModelJudge, WrongReferenceJudge, prompting
from exprl.judges.backends.transformers import TransformersBackend
from exprl.judges.llm import UnaidedJudge
from exprl.judges.reference_steps import ReferenceStepsJudge
from exprl.models.base import LanguageModel
from exprl.registry import JUDGES
from exprl.rewards import OutcomeReward
from exprl.training.texts import check_files, check_texts
from exprl.types import Hidden, Problem, Question, Scaffold

TEXTS = {"the policy's chat template": "{{ a }}\n{{ b }}\n", "the judge's prompt": "Grade it."}


def test_the_same_texts_pass_and_a_run_without_any_too(tmp_path: Path) -> None:
    check_texts(tmp_path / "texts.json", TEXTS, {})
    write_json(tmp_path / "texts.json", TEXTS)
    check_texts(tmp_path / "texts.json", dict(reversed(TEXTS.items())), {})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"the judge's prompt": "Grade this."}, r"the judge's prompt, line 1 was 'Grade it\.' and is 'Grade this\.'"),
        ({"the policy's chat template": "{{ a }}\n{{ c }}\n"}, r"chat template, line 2 was '{{ b }}' and is '{{ c }}'"),
        ({"the policy's chat template": "{{ a }}\n{{ b }}"}, r"chat template, line 2 was '{{ b }}' and is '{{ b }}'"),
        ({"the policy's chat template": "{{ a }}\n{{ b }}\nx"}, r"chat template, line 3 was '' and is 'x'"),
        ({"the teacher's prompt": "Solve it."}, r"the teacher's prompt, which is new"),
        ({"the judge's prompt": "x" * 200}, r"line 1 was 'Grade it\.' and is 'x{60}\.\.\.'"),
    ],
)
def test_a_changed_text_is_refused_with_the_difference(tmp_path: Path, changed: dict[str, str], message: str) -> None:
    write_json(tmp_path / "texts.json", TEXTS)
    with pytest.raises(RunDirectoryError, match=rf"started with another text: .*{message}\. Resume with the same text"):
        check_texts(tmp_path / "texts.json", {**TEXTS, **changed}, {})


def test_a_text_that_is_gone_and_a_damaged_file(tmp_path: Path) -> None:
    write_json(tmp_path / "texts.json", TEXTS)
    with pytest.raises(RunDirectoryError, match=r"the judge's prompt, which is gone"):
        check_texts(tmp_path / "texts.json", {"the policy's chat template": TEXTS["the policy's chat template"]}, {})
    for garbage in (b"{", b"\xff", b"[1]"):
        (tmp_path / "texts.json").write_bytes(garbage)
        with pytest.raises(PathError, match=r"texts\.json .*Delete it"):
            check_texts(tmp_path / "texts.json", TEXTS, {})


def test_files_are_compared_by_themselves_and_later_no_more(tmp_path: Path) -> None:
    kept = tmp_path / "texts.json"
    check_files(kept, {"the rubrics r": "a"})
    write_json(kept, {**TEXTS, "the rubrics r": "a"})
    check_files(kept, {"the rubrics r": "a", "the judge's prompt p, which an older version did not keep": "b"})
    check_texts(kept, TEXTS, {"the rubrics r": "a"})
    with pytest.raises(RunDirectoryError, match="another text: the rubrics r, line 1 was 'a' and is 'b'"):
        check_files(kept, {"the rubrics r": "b"})


def test_a_prompt_of_ones_own_is_known_before_its_model(tmp_path: Path) -> None:
    own = tmp_path / "own.txt"
    own.write_text(prompting.read_prompt("math"))
    judge = {"name": "same_model", "weights": "frozen", "prompt": str(own)}
    choice = validate_choice(JUDGES, {"name": "wrong_reference", "around": judge}, "judge")
    assert choice.cls.file_texts(choice.config) == {f"the judge's prompt {own}": prompting.read_prompt("math")}


# ------------------------------------------------------------------ who has which


def test_a_judges_texts_are_its_prompts_and_its_chat_template(tiny: LanguageModel, tmp_path: Path) -> None:
    backend = TransformersBackend(language_model=tiny)
    judge = SameModelJudge(weights="frozen", backend=backend)
    texts = OutcomeReward(judge=judge).texts()
    assert texts["the judge's chat template"] == tiny.tokenizer.chat_template
    prompts = [text for name, text in texts.items() if "prompt for a" in name]
    assert len(set(prompts)) == 3
    for slot in ("{problem}", "{reference}", "{attempt}"):
        assert all(text.count(slot) == 1 for text in prompts)
    own = tmp_path / "own.txt"
    own.write_text(prompting.read_prompt("math").replace("Other correct ways", "Others"))
    assert SameModelJudge(weights="frozen", prompt=str(own), backend=backend).texts() != texts
    assert UnaidedJudge(backend=backend).texts() != texts


def test_other_judges_and_detectors(tiny: LanguageModel) -> None:
    backend = TransformersBackend(language_model=tiny)
    inner = SameModelJudge(weights="frozen", backend=backend)
    problems = [
        Problem(question=Question(problem_id=name, text=name), scaffold=Scaffold(reference=Hidden(f"It is {name}.")))
        for name in "ab"
    ]
    assert WrongReferenceJudge(around=inner, problems=problems).texts() == inner.texts()
    assert ReferenceStepsJudge().texts() == {}
    assert LexicalDetector().texts() == {}
    texts = JudgedDetector(model={"name": "chain"}, backend=backend).texts()
    assert texts["the questions about behaviours"].count("Answer: Y") == 4
    assert texts["the chat template of their judge"] == tiny.tokenizer.chat_template
