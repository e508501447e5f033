"""Log-prob and entropy over large vocabularies."""

from exprl.kernels.eager import linear_logprob, logprob_entropy

__all__ = ["linear_logprob", "logprob_entropy"]
