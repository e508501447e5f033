"""The public names, each with the module it lives in: read by type checkers, and by `__init__.py` at run time."""

from .linear import TokenStatistics as TokenStatistics, linear_logprob as linear_logprob
from .logits import logprob_entropy as logprob_entropy
from .names import KL as KL, Backend as Backend, Divergence as Divergence
from .policy import (
    TokenLoss as TokenLoss,
    importance_weight as importance_weight,
    kl_estimate as kl_estimate,
    policy_token_loss as policy_token_loss,
    ratio_of as ratio_of,
)
from .sweep import LinearHead as LinearHead
