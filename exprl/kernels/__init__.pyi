"""The public names, each with the module it lives in: read by type checkers, and by `__init__.py` at run time."""

from .linear import TokenStatistics as TokenStatistics, linear_logprob as linear_logprob
from .logits import logprob_entropy as logprob_entropy
from .names import KL as KL, Backend as Backend, Divergence as Divergence
from .policy import (
    TokenLoss as TokenLoss,
    binary_divergence as binary_divergence,
    clipped_surrogate as clipped_surrogate,
    kl_estimate as kl_estimate,
    policy_token_loss as policy_token_loss,
    ratio_of as ratio_of,
)
from .rollouts import by_token as by_token, mean_by_rollout as mean_by_rollout, sum_by_rollout as sum_by_rollout
from .sweep import LinearHead as LinearHead
