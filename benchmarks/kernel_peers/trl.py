"""TRL 1.16.0, read in trl/kernels and trl/trainer/utils.py."""

from __future__ import annotations

import importlib
import sys
import types
from contextlib import nullcontext
from functools import partial
from typing import Any

from kernel_peers.base import Adapter, Forward, Outputs, Problem, missing, without_init

BETA = {"fkl": 0.0, "rkl": 1.0, "jsd": 0.5}
"""kernels/chunked_divergence.py: 0 is KL(teacher ‖ student), 1 the reverse."""

CHUNK = 32768
"""`_CHUNKED_LOGPROB_CHUNK_SIZE` of trl/trainer/utils.py, which its trainers pass."""


def _module(name: str) -> Any:
    """A module of trl.kernels.

    The kernels import one function of trl.trainer.utils, which gathers weights that DeepSpeed has cut into pieces. That
    file imports the trainers' requirements; where those are missing, a context that does nothing stands in for it.
    """
    if missing("trl"):
        raise ImportError("no module named 'trl'")
    if missing("accelerate", "datasets", "pandas"):
        without_init("trl", "trl.trainer")
        stand_in = types.ModuleType("trl.trainer.utils")
        stand_in.maybe_gather_lm_head_ctx = lambda *_: nullcontext()  # type: ignore[attr-defined]
        sys.modules.setdefault("trl.trainer.utils", stand_in)
    return importlib.import_module(name)


def _logits() -> Forward:
    # kernels/logprob_entropy.py: selective_log_softmax_and_entropy(logits, index, temperature) -> both fp32; Triton.
    function = _module("trl.kernels.logprob_entropy").selective_log_softmax_and_entropy
    return lambda problem: Outputs(*function(problem.inputs[0], problem.ids, 1.0))


def _linear() -> Forward:
    # kernels/chunked_logprob.py: apply(hidden, weight, bias, targets, temperature, chunk_size,
    # final_logit_softcapping, logit_scale, outputs) -> logprobs, entropy and three optional ones.
    function = _module("trl.kernels.chunked_logprob").ChunkedLogProbFunction

    def forward(problem: Problem) -> Outputs:
        hidden, weight = problem.inputs
        logp, entropy, *_ = function.apply(hidden, weight, None, problem.ids, 1.0, CHUNK, None, 1.0, ("entropy",))
        return Outputs(logp=logp, entropy=entropy)

    return forward


def _divergence(kind: str) -> Forward:
    # kernels/chunked_divergence.py: apply(student_hidden, student_weight, student_bias, teacher_hidden,
    # teacher_weight, teacher_bias, beta) -> divergence, entropy (which has no gradient).
    function = _module("trl.kernels.chunked_divergence").ChunkedDivergenceFunction

    def forward(problem: Problem) -> Outputs:
        assert problem.frozen is not None
        hidden, weight = problem.inputs
        frozen_hidden, frozen_weight = problem.frozen
        return Outputs(
            divergence=function.apply(hidden, weight, None, frozen_hidden, frozen_weight, None, BETA[kind])[0]
        )

    return forward


ADAPTERS = [
    Adapter(peer="TRL", task="logits", load=_logits),
    Adapter(peer="TRL", task="linear", load=_linear, on_cpu=True),
    *(Adapter(peer="TRL", task=kind, load=partial(_divergence, kind), on_cpu=True) for kind in ("rkl", "fkl", "jsd")),
]
