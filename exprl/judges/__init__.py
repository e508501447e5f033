"""Judges: who grades a trace against the hidden reference."""

from exprl.judges.base import Judge
from exprl.judges.llm import LLMJudge, ReferenceJudge
from exprl.judges.no_reference import NoReferenceJudge
from exprl.judges.reference_steps import ReferenceStepsJudge
from exprl.judges.rubric import RubricJudge
from exprl.judges.same_model import SameModelJudge
from exprl.judges.smaller_model import SmallerModelJudge
from exprl.judges.verdict import parse_score
from exprl.judges.wrapping import WrappingJudge
from exprl.judges.wrong_reference import WrongReferenceJudge

__all__ = [
    "Judge",
    "LLMJudge",
    "NoReferenceJudge",
    "ReferenceJudge",
    "ReferenceStepsJudge",
    "RubricJudge",
    "SameModelJudge",
    "SmallerModelJudge",
    "WrappingJudge",
    "WrongReferenceJudge",
    "parse_score",
]
