"""A vLLM server as its routes behave, with a real model whose weights its control plane takes: all but vLLM itself."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from exprl.engines.sampling import draw, sampling_logprobs, uniforms_for
from exprl.engines.transfer.buckets import Bucket, read_bucket
from exprl.models.base import LanguageModel
from tests.control_server import ControlServer

SERVED = "policy"
"""The name by which requests ask for the model itself, which with an adapter is its base."""


class PolicyServer(ControlServer):
    """Loads the buckets it is told of into a model like the policy, and samples from that; or with an adapter.

    Attributes:
        models: by the name that requests give: the served one, and one for each adapter.
        asked: the bodies of the completions asked for.
        keeps: names of weights that it leaves as they are.
    """

    def __init__(self, policy: LanguageModel, port: int = 0) -> None:
        super().__init__(port)
        base = type(policy.model)(policy.model.config).eval()
        with torch.no_grad():
            for parameter in base.parameters():  # what a server starts with is no policy's
                parameter.normal_()
        self.models: dict[str, PreTrainedModel] = {SERVED: base}
        self.end = policy.tokenizer.eos_token_id
        self.asked: list[Any] = []
        self.keeps: set[str] = set()
        self._folder = Path()

    def _usual(self, path: str, body: Any) -> tuple[int, Any]:
        if path == "/v1/completions":
            self.asked.append(body)
            if (model := self.models.get(body["model"])) is None:
                return 404, {"error": {"message": f"The model `{body['model']}` does not exist."}}
            return 200, {"choices": [_choice(model, body)]}
        if path == "/init_weight_transfer_engine":
            self._folder = Path(body["init_info"]["folder"])
        if path == "/update_weights" and body["update_info"]:
            info = body["update_info"]
            bucket = Bucket(file=info["file"], size=info["size"], digest=info["digest"])
            taken = {n: w for n, w in read_bucket(self._folder, bucket).items() if n not in self.keeps}
            self.models[SERVED].load_state_dict(taken, strict=False)
        if path == "/v1/load_lora_adapter":
            self.models[body["lora_name"]] = with_adapter(self.models[SERVED], Path(body["lora_path"]))
        if path == "/v1/unload_lora_adapter":
            self.models.pop(body["lora_name"], None)
        return super()._usual(path, body)


@torch.no_grad()
def with_adapter(base: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """A copy of `base` that computes with the adapter in peft's files, by the book: W + alpha / rank * B A."""
    model, weights = copy.deepcopy(base), load_file(folder / "adapter_model.safetensors")
    config = json.loads((folder / "adapter_config.json").read_text())
    for name in weights:
        if name.endswith(".lora_A.weight"):
            stem = name.removesuffix(".lora_A.weight")
            change = weights[f"{stem}.lora_B.weight"] @ weights[name]
            layer = model.get_submodule(stem.removeprefix("base_model.model."))
            layer.weight.add_(change, alpha=config["lora_alpha"] / config["r"])
    return model


@torch.no_grad()
def _logprobs(model: PreTrainedModel, ids: list[int]) -> Tensor:
    return model(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1)


def _choice(model: PreTrainedModel, body: Any) -> dict[str, Any]:
    ids = list(body["prompt"])
    choice: dict[str, Any] = {"index": 0, "text": "", "finish_reason": "length"}
    if body.get("prompt_logprobs") is not None:
        own = _logprobs(model, ids)[:-1].gather(-1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()
        places = [{str(i): {"logprob": p, "rank": 1}} for i, p in zip(ids[1:], own, strict=True)]
        return {**choice, "prompt_logprobs": [None, *places]}
    if body.get("return_tokens_as_token_ids"):
        top = _logprobs(model, ids)[-1].topk(body["logprobs"])
        named = {f"token_id:{i}": p for i, p in zip(top.indices.tolist(), top.values.tolist(), strict=True)}
        return {**choice, "logprobs": {"token_logprobs": [top.values[0].item()], "top_logprobs": [named]}}
    drawn, logprobs = [], []
    uniforms = uniforms_for(body["seed"], 0, 0, body["max_tokens"])
    for uniform in uniforms:
        row = sampling_logprobs(_logprobs(model, ids + drawn)[-1:], body["temperature"])
        drawn.append(int(draw(row, uniform[None])))
        logprobs.append(float(row[0, drawn[-1]]))
        if drawn[-1] in body["stop_token_ids"]:
            choice["finish_reason"] = "stop"
            break
    return {**choice, "token_ids": drawn, "logprobs": {"token_logprobs": logprobs}}
