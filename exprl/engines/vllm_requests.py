"""What is asked of a vLLM engine, and what comes back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Output:
    """What vLLM made of one request.

    Attributes:
        token_ids: the sampled tokens.
        logprobs: of each sampled token, under the distribution it was sampled from.
        label_logprobs: of each label asked for, at the first position.
        finish_reason: "stop" or "length".
        prompt_logprobs: of each prompt token but the first, at temperature 1, where asked for.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    label_logprobs: tuple[float, ...]
    finish_reason: str
    prompt_logprobs: tuple[float, ...]


@dataclass
class Ticket:
    """A request under way; `output` is None until it is done."""

    prompt: tuple[int, ...]
    labels: tuple[int, ...] = ()
    output: Output | None = None


def sampling_params(labels: Sequence[int], regex: str, sampling: dict[str, Any]) -> Any:
    """VLLM's parameters of one request."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

    extra: dict[str, Any] = {"logprob_token_ids": list(labels)} if labels else {"logprobs": 0}
    if regex:
        extra["structured_outputs"] = StructuredOutputsParams(regex=regex)
    return SamplingParams(
        output_kind=RequestOutputKind.FINAL_ONLY, detokenize=bool(sampling.get("stop")), **{**extra, **sampling}
    )


def ticket_name(request_id: str) -> str:
    """What a request was submitted as; vLLM adds to it."""
    return request_id.split("-", 1)[0]


def to_output(result: Any, ticket: Ticket) -> Output:
    """VLLM's finished request in plain values."""
    answer = result.outputs[0]
    ids = tuple(answer.token_ids)
    own = () if ticket.labels else tuple(p[i].logprob for i, p in zip(ids, answer.logprobs or (), strict=False))
    prompt = zip(ticket.prompt[1:], (result.prompt_logprobs or ())[1:], strict=False)
    return Output(
        token_ids=ids,
        logprobs=own,
        label_logprobs=tuple(answer.logprobs[0][label].logprob for label in ticket.labels),
        finish_reason=answer.finish_reason,
        prompt_logprobs=tuple(position[token].logprob for token, position in prompt),
    )
