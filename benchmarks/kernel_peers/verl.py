"""verl 0.9.1, read in verl/utils/kernel, verl/utils/torch_functional.py and verl/utils/experimental.

`import verl` brings ray, tensordict, hydra and more; these three files need little of it, so their packages are entered
without their `__init__`.
"""

from __future__ import annotations

import importlib
import sys
import types
from functools import partial
from typing import Any

from kernel_peers.base import Adapter, Forward, Outputs, Problem, missing, without_init


def _module(name: str) -> Any:
    without_init("verl", "verl.utils")
    if missing("tensordict"):
        # verl/utils/torch_functional.py imports this one name, for functions that are not measured here.
        stand_in = types.ModuleType("tensordict")
        stand_in.TensorDict = type("TensorDict", (), {})  # type: ignore[attr-defined]
        sys.modules["tensordict"] = stand_in
    return importlib.import_module(name)


def _triton() -> Forward:
    # kernel/linear_cross_entropy.py: linear_cross_entropy(hidden, weight, labels, temperature, reduction,
    # dist_process_group) -> logprobs, entropy, both fp32; temperature must be a float.
    linear_cross_entropy = _module("verl.utils.kernel.linear_cross_entropy").linear_cross_entropy

    def forward(problem: Problem) -> Outputs:
        return Outputs(*linear_cross_entropy(*problem.inputs, problem.ids, 1.0, "none", None))

    return forward


def _fused_linear(backend: str) -> Forward:
    # experimental/torch_functional.py: FusedLinearForPPO(chunk_size=512, impl_backend)(hidden_states, vocab_weights,
    # input_ids, temperature) -> log_probs fp32, entropy in the dtype of hidden.
    head = _module("verl.utils.experimental.torch_functional").FusedLinearForPPO(impl_backend=backend)
    return lambda problem: Outputs(*head(*problem.inputs, problem.ids, 1.0))


def _from_logits() -> Forward:
    # torch_functional.py: logprobs_from_logits(logits, labels) without flash-attn goes row by row for bf16;
    # entropy_from_logits(logits) is the default of verl's actors. Both compute in the logits' dtype.
    functions = _module("verl.utils.torch_functional")

    def forward(problem: Problem) -> Outputs:
        logits = problem.inputs[0]
        return Outputs(
            logp=functions.logprobs_from_logits(logits, problem.ids, inplace_backward=False),
            entropy=functions.entropy_from_logits(logits),
        )

    return forward


ADAPTERS = [
    Adapter(peer="verl torch", task="logits", load=_from_logits, on_cpu=True, note="computed in the logits' dtype"),
    Adapter(
        peer="verl torch", task="linear", load=partial(_fused_linear, "torch"), on_cpu=True, note="entropy in bf16"
    ),
    Adapter(peer="verl Triton", task="linear", load=_triton),
]
