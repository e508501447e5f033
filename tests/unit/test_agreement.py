"""What ranks are compared by, and what is said of those that differ."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from exprl.data.fingerprint import fingerprint
from exprl.errors import RanksDifferError
from exprl.experiment import load_experiment
from exprl.training.agreement import (
    check_alike,
    check_problems,
    code,
    digest_of_files,
    of_tokenizer,
    of_weights,
    settings,
    versions,
)
from exprl.training.world import World
from exprl.types import Hidden, Problem, Question, Scaffold
from tests.conftest import character_tokenizer, tiny_llama

QUICKSTART = Path(__file__).parents[2] / "configs/quickstart.yaml"


def problems(count: int, **changed: str) -> list[Problem]:
    return [
        Problem(
            question=Question(problem_id=f"p{i}", text="?"),
            scaffold=Scaffold(reference=Hidden(changed.get(f"p{i}", "because")), answer=Hidden("1")),
        )
        for i in range(count)
    ]


class Second(World):
    """Rank 1 of two, where rank 0 gives what it is told to."""

    def __init__(self, *first: Any) -> None:
        super().__init__()
        self.rank, self.size = 1, 2
        self.first_gives = list(first)

    def enter(self, phase: str) -> None:
        """Nobody hears it."""

    def gather(self, value: Any, what: str) -> list[Any]:
        return [self.first_gives.pop(0) if self.first_gives else value, value]


def test_ranks_that_are_alike_are_left_in_peace() -> None:
    facts = settings(load_experiment(QUICKSTART)) | code([]) | versions()
    check_alike([facts, dict(facts), dict(facts)])
    check_problems(Second(), "data.train", problems(3))


def test_options_that_differ_are_named_with_their_ranks() -> None:
    one, two = (settings(load_experiment(QUICKSTART, [f"optimizer.lr={lr}"])) for lr in ("1e-6", "1e-5"))
    with pytest.raises(RanksDifferError, match=r"optimizer\.lr: 1e-06 on rank 0, 2; 1e-05 on rank 1\n"):
        check_alike([one, two, one])
    assert set(one) == set(two)
    assert one["data.prompts_per_step"] == "36"


def test_a_fact_that_one_rank_lacks_differs_and_many_are_counted() -> None:
    with pytest.raises(RanksDifferError, match=r"x: 1 on rank 0; missing on rank 1"):
        check_alike([{"x": "1"}, {}])
    with pytest.raises(RanksDifferError, match="and 2 more"):
        check_alike([{str(i): "1" for i in range(7)}, {str(i): "2" for i in range(7)}])


@pytest.mark.parametrize(
    ("theirs", "ours", "said"),
    [
        (
            problems(400),
            problems(401),
            r"400 problems on rank 0 and 401 on rank 1; problem 401, 'p400', is on rank 1 alone",
        ),
        (problems(3), problems(2), r"problem 3, 'p2', is on rank 0 alone"),
        (problems(3), problems(3, p1="so"), r"question, reference or answer of 'p1' \(problem 2\) is another"),
        (problems(3), problems(3)[::-1], r"problem 1 is 'p0' on rank 0 and 'p2' on rank 1"),
    ],
    ids=["more", "fewer", "other rows with the same ids", "another order"],
)
def test_problems_that_differ_are_named_without_their_reference(
    theirs: list[Problem], ours: list[Problem], said: str
) -> None:
    with pytest.raises(RanksDifferError, match=said) as raised:
        check_problems(Second("another digest", fingerprint(theirs)), "data.train", ours)
    assert "because" not in str(raised.value)


def test_code_is_compared_by_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "a_plugin_of_mine"
    (package / "__pycache__").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "part.py").write_text("X = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    __import__("a_plugin_of_mine")
    before = code(["a_plugin_of_mine"])
    (package / "__pycache__" / "part.pyc").write_text("compiled")
    assert code(["a_plugin_of_mine"]) == before
    (package / "part.py").write_text("X = 2\n")
    after = code(["a_plugin_of_mine"])
    assert {name for name in before if before[name] != after[name]} == {"the code of the plugin a_plugin_of_mine"}
    assert digest_of_files(package / "part.py") != digest_of_files(package / "__init__.py")
    sys.modules.pop("a_plugin_of_mine")


def test_weights_and_tokenizers_are_told_apart() -> None:
    tokenizer = character_tokenizer()
    size = len(tokenizer)
    model = tiny_llama(size)
    assert of_weights(model) == of_weights(tiny_llama(size)) != of_weights(tiny_llama(size, seed=1))
    assert of_weights(model) != of_weights(tiny_llama(size).to(torch.bfloat16))
    before = of_tokenizer(tokenizer)
    assert before == of_tokenizer(character_tokenizer())
    tokenizer.chat_template = "{{ messages }}"
    assert of_tokenizer(tokenizer) != before
