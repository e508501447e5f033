"""An exported folder in a vLLM of its own, started as a user would."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from exprl.commands.export import write_model
from exprl.experiment import LoRAConfig
from exprl.models.base import LanguageModel
from exprl.models.lora import attach, without_adapter
from tests.vllm.helpers import chat_prompt, small_policy

pytestmark = pytest.mark.usefixtures("forking_vllm")

SERVE = """
import json, os, sys
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"
from vllm import LLM, SamplingParams
folder, ids, messages = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
llm = LLM(folder, dtype="float32", max_model_len=256, enforce_eager=True, kv_cache_memory_bytes=2**27)
[result] = llm.generate({"prompt_token_ids": ids}, SamplingParams(max_tokens=1, prompt_logprobs=0), use_tqdm=False)
found = [place[token].logprob for token, place in zip(ids[1:], result.prompt_logprobs[1:])]
[chat] = llm.chat(messages, SamplingParams(max_tokens=1), use_tqdm=False)
print("RESULT " + json.dumps([found, chat.prompt_token_ids]))
"""


def logprobs(policy: LanguageModel, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        distribution = policy.model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    return distribution.gather(-1, torch.tensor(ids[1:])[:, None]).squeeze(-1)


@pytest.mark.slow
def test_vllm_loads_a_merged_export(tmp_path: Path) -> None:
    policy = small_policy(tied=True)
    attach(policy.model, **vars(LoRAConfig(rank=4)))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in policy.model.named_parameters():
        if ".lora_B." in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    folder = tmp_path / "exported"
    folder.mkdir()
    write_model(policy, folder)
    question = "How many are three and four?"
    ids = list(chat_prompt(policy.tokenizer, question).token_ids)
    messages = [{"role": "user", "content": question}]
    done = subprocess.run(
        [sys.executable, "-c", SERVE, str(folder), json.dumps(ids), json.dumps(messages)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found, templated = json.loads(done.stdout.rpartition("RESULT ")[2].splitlines()[0])
    assert templated == ids, "its chat template is the policy's"
    torch.testing.assert_close(torch.tensor(found), logprobs(policy, ids), atol=2e-3, rtol=0)
    with without_adapter(policy.model):
        assert (torch.tensor(found) - logprobs(policy, ids)).abs().mean() > 0.1
