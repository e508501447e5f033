"""What the teacher of self-distillation reads: the policy's own prompt, and the reference.

Only the teacher's log-probs of what the policy wrote go on from here. `rl` never imports this module.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from exprl.judges.defusing import defuse, frame_names
from exprl.judges.prompting import read_prompt
from exprl.text.encoding import encoder_of
from exprl.text.prompts import PromptBuilder, Prompting
from exprl.types import Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SLOT = re.compile(r"\{(task|reference)\}")


class TeacherPrompts:
    """Builds the teacher's prompts with the policy's chat template and system message.

    Question and reference come from outside: they are plain text, in which nothing is a control token, and cannot close
    the tag around the reference.

    Args:
        tokenizer: of policy and teacher.
        prompt: the policy's.
        template: a user message with {task} and {reference}; None: exprl's own.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, prompt: Prompting | None = None, template: str | None = None
    ) -> None:
        self.tokenizer = tokenizer
        self.template = template or read_prompt("teacher")
        self._around = PromptBuilder(tokenizer, prompt)

    def build(self, problem: Problem) -> tuple[int, ...]:
        """The ids up to where the response begins; the problem has a reference."""
        reference = problem.scaffold.reference
        assert reference is not None, "the method checks"
        own, frames = self._around.prompt.template_of(problem.domain), frame_names(self.template)
        texts = {
            "task": own.filled(defuse(problem.question.text, frames)),
            "reference": defuse(reference.reveal(), frames),
        }
        message = _SLOT.sub(lambda slot: texts[slot[1]], self.template)
        # Nothing hidden goes through the policy's builder: it only says what stands around its messages.
        return encoder_of(self.tokenizer).encode(self._around.frame(own).parts(*own.messages(message)))
