"""What language models wrote for CHAMP's problems, with a person's word on where the first wrong step begins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from exprl.data.champ import installed_records
from exprl.errors import DataError
from exprl.rollouts.importing import Response, grouped
from exprl.rollouts.stored import Label, StoredGroup
from exprl.types import Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def champ_rollouts(
    problems: Sequence[Problem], tokenizer: PreTrainedTokenizerBase | None = None
) -> dict[int, tuple[StoredGroup, ...]]:
    """The labelled solutions to these problems, as one step, 0 (Mao et al. 2024, section 4.3).

    Args:
        problems: of the source `champ`; others have none.
        tokenizer: makes the token ids; None: a token a character, its code point.

    Raises:
        DataError: none of the problems is CHAMP's, or `champ-dataset` is not installed.
    """
    records = {record.id: record for record in installed_records()}
    responses = [
        Response(
            problem=problem,
            prompt="",
            text=attempt.text,
            label=Label(correct=attempt.first_error is None, first_error=attempt.first_error, author=attempt.author),
        )
        for problem in problems
        if problem.id in records
        for attempt in records[problem.id].attempts
    ]
    if not responses:
        raise DataError(
            "champ: none of the config's problems has a labelled solution. Set data.train.name=champ, and no "
            "data.train.limit that leaves out all that have."
        )
    return grouped(responses, tokenizer)
