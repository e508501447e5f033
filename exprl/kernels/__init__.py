"""Log-prob, entropy, KL and policy loss over large vocabularies and long sequences; see docs/kernels.md.

Every function has one meaning and several backends (`auto`, `triton`, `eager`, `compile`); none needs the rest of
exprl. What computes is imported when it is first named (PEP 562), so options can name a backend without loading torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

from exprl.kernels.names import KL, Backend, Divergence

if TYPE_CHECKING:
    from exprl.kernels.linear import TokenStatistics, linear_logprob
    from exprl.kernels.logits import logprob_entropy
    from exprl.kernels.policy import TokenLoss, importance_weight, kl_estimate, policy_token_loss, ratio_of
    from exprl.kernels.sweep import LinearHead

__all__ = [
    "KL",
    "Backend",
    "Divergence",
    "LinearHead",
    "TokenLoss",
    "TokenStatistics",
    "importance_weight",
    "kl_estimate",
    "linear_logprob",
    "logprob_entropy",
    "policy_token_loss",
    "ratio_of",
]

_MODULES = {
    "LinearHead": "sweep",
    "TokenLoss": "policy",
    "TokenStatistics": "linear",
    "importance_weight": "policy",
    "kl_estimate": "policy",
    "linear_logprob": "linear",
    "logprob_entropy": "logits",
    "policy_token_loss": "policy",
    "ratio_of": "policy",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
