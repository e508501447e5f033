"""Log-prob, entropy, KL and policy loss over large vocabularies and long sequences; see docs/kernels.md.

Every function has one meaning and several backends (`auto`, `triton`, `eager`, `compile`); none needs the rest of
exprl.
"""

from exprl.kernels.backends import Backend
from exprl.kernels.linear import TokenStatistics, linear_logprob
from exprl.kernels.logits import logprob_entropy
from exprl.kernels.policy import TokenLoss, policy_token_loss
from exprl.kernels.rows import Divergence
from exprl.kernels.sweep import LinearHead

__all__ = [
    "Backend",
    "Divergence",
    "LinearHead",
    "TokenLoss",
    "TokenStatistics",
    "linear_logprob",
    "logprob_entropy",
    "policy_token_loss",
]
