"""Per-token policy losses: thin registered classes over pure formulas.

Nothing is reduced here: the caller sums the [N] losses and divides by what the whole batch has. Gradient flows through
the current policy's log-probs, and its entropies, only.
"""

from exprl.objectives.base import Objective, PolicyTokens, Surrogate
from exprl.objectives.cispo import CISPO
from exprl.objectives.clipped import Clipped
from exprl.objectives.dppo import DPPO
from exprl.objectives.gspo import GSPO
from exprl.objectives.reinforce import Reinforce

__all__ = ["CISPO", "DPPO", "GSPO", "Clipped", "Objective", "PolicyTokens", "Reinforce", "Surrogate"]
