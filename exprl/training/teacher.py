"""What the teacher of self-distillation reads: the policy's own prompt, and the reference.

Only the teacher's log-probs of what the policy wrote go on from here. `rl` never imports this module.
"""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from exprl.judges.prompting import defuse, read_prompt
from exprl.prompts import PLACEHOLDER, PromptBuilder, PromptConfig
from exprl.types import Problem, Question

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SLOT = re.compile(r"\{(task|reference)\}")
_MARK = "\ue000"  # a private-use character: stands for text from outside while the chat template is applied


class TeacherPrompts:
    """Builds the teacher's prompts with the policy's chat template and system message.

    Question and reference come from outside: they are tokenised by themselves, with control tokens spelled out as
    ordinary text, and cannot close the tag around the reference.

    Args:
        tokenizer: of policy and teacher.
        config: of the policy's prompts.
        template: a user message with {task} and {reference}; None: exprl's own.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, config: PromptConfig | None = None, template: str | None = None
    ) -> None:
        self.tokenizer = tokenizer
        self.config = config or PromptConfig()
        self.template = template or read_prompt("teacher")

    def build(self, problem: Problem) -> tuple[int, ...]:
        """The ids up to where the response begins; the problem has a reference."""
        frames, contents = self._frames
        reference = problem.scaffold.reference
        assert reference is not None, "the method checks"
        outside = {"question": problem.question.text, "reference": reference.reveal()}
        tokens = {
            name: self.tokenizer(defuse(text), add_special_tokens=False, split_special_tokens=True)["input_ids"]
            for name, text in outside.items()
        }
        ids = list(frames[0])
        for content, frame in zip(contents, frames[1:], strict=True):
            ids += [*tokens[content], *frame]
        return tuple(ids)

    @cached_property
    def _frames(self) -> tuple[list[list[int]], list[Literal["question", "reference"]]]:
        """The templated message between what comes from outside, and what that is, in order."""
        message = ""
        contents: list[Literal["question", "reference"]] = []
        for index, part in enumerate(_SLOT.split(self.template)):
            if index % 2 == 0:
                message += part
            elif part == "task":
                message += self.config.template
                contents += ["question"] * self.config.template.count(PLACEHOLDER)
            else:
                message += _MARK
                contents.append("reference")
        # Nothing hidden goes through the policy's builder: the mark stands for it.
        builder = PromptBuilder(self.tokenizer, replace(self.config, template=message, max_prompt_tokens=sys.maxsize))
        text = builder.build(Question(problem_id="teacher", text=_MARK)).text
        return [self.tokenizer(part, add_special_tokens=False)["input_ids"] for part in text.split(_MARK)], contents
