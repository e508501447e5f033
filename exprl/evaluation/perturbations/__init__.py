"""Changes to a response by which a judge is tried: of its style, of its content, and reward hacks."""

from exprl.evaluation.perturbations import attacks, content, style
from exprl.evaluation.perturbations.base import KINDS, Kind, Perturbation

__all__ = ["KINDS", "Kind", "Perturbation", "attacks", "content", "style"]
