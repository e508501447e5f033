"""What vLLM makes of transformers' classes holds for its own models."""

from __future__ import annotations

import torch

from exprl.engines.vllm_classes import classes_kept
from tests.families import miniature


def test_a_class_that_vllm_compiles_stays_what_it_was_for_others():
    from vllm.compilation.decorators import support_torch_compile

    policy, ids = miniature("olmo2"), torch.arange(3, 9)[None]
    before, seen = policy(ids).logits, []
    with classes_kept(policy):
        support_torch_compile(dynamic_arg_dims={"input_ids": 1})(type(policy.model))
    policy.model.register_forward_hook(lambda *_: seen.append(True))
    torch.testing.assert_close(policy(ids).logits, before, rtol=0, atol=0)
    assert seen, "hooks are called as on any module"
    torch.testing.assert_close(miniature("olmo2")(ids).logits, before, rtol=0, atol=0)
