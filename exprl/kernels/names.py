"""The words that options of kernels may be; without torch, so that a config is checked before it is loaded."""

from typing import Literal

Backend = Literal["auto", "triton", "eager", "compile"]
"""Who runs the row operations."""

KL = Literal["k1", "k2", "k3"]
"""Estimators of a KL from the log-probs of sampled tokens."""

Divergence = Literal["rkl", "fkl", "jsd"]
"""Divergences between the heads of policy and reference."""
