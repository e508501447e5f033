"""How a model makes logits of its last hidden states: the one place that decides, by asking the model itself.

Families scale, cap, shift or transform between backbone and logits, under names of their own. So a model's forward
pass is run on chosen hidden states, its backbone standing aside, and what comes out is compared with the forms that
need no logits tensor. A model that fits none of them computes its logits itself, a slice of tokens at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

from exprl.errors import ModelError
from exprl.kernels import Backend, Divergence, LinearHead, TokenStatistics, linear_logprob, logprob_entropy

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_KNOWN = "_exprl_head"  # where a model carries what was found out of it

_DIVIDES = ("logits_scaling",)
_MULTIPLIES = ("logits_scaling", "logit_scale", "lm_head_multiplier", "output_multiplier")
_CAPS = ("final_logit_softcapping", "output_logit_soft_cap", "logits_soft_cap")
"""Names of configs, tried on the model: the same one divides in one family and multiplies in another."""

_PROBES = 8
_PROBE_SPREAD = 20.0  # standard deviation of the probes' logits: a cap of 30 bends such ones visibly
_PROBE_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-6}  # of the largest logit; else that of 8 bits

_SLICE_LOGITS = 2**25
"""Logits of one slice where the model computes them itself: 128 MiB in float32."""


@dataclass(frozen=True)
class Affine:
    """Logits softcap(scale · (hidden @ weight.T + bias)), of which kernels need no tensor."""

    scale: float = 1.0
    softcap: float | None = None

    def of(self, logits: Tensor) -> Tensor:
        """What becomes of hidden @ weight.T + bias."""
        scaled = logits * self.scale
        return scaled if self.softcap is None else self.softcap * (scaled / self.softcap).tanh()


@dataclass(frozen=True)
class Head:
    """A model between backbone and logits.

    Attributes:
        backbone: the name of the module whose last hidden states the logits are made of.
        affine: how, where it is known; None: the model's own forward says.
    """

    backbone: str
    affine: Affine | None


@dataclass(frozen=True)
class FrozenHidden:
    """Last hidden states [N, D] of a model that does not train, for a divergence from its distributions."""

    model: PreTrainedModel
    hidden: Tensor


def head_of(model: PreTrainedModel) -> Head:
    """What `model` does after its backbone, measured once while its weights are whole.

    Raises:
        ModelError: its forward pass uses no backbone of its own.
    """
    known: Head | None = getattr(model, _KNOWN, None)
    if known is None:
        known = _measure(model)
        setattr(model, _KNOWN, known)
    return known


def backbone_of(model: PreTrainedModel) -> nn.Module:
    """The module that gives the last hidden states."""
    return model.get_submodule(head_of(model).backbone)


def own_logits(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Logits [N, V] of last hidden states [N, D] by the model's own forward pass, with gradient."""
    return _through(model, backbone_of(model), hidden)[0]


def token_statistics(
    model: PreTrainedModel,
    hidden: Tensor,
    ids: Tensor,
    *,
    temperature: float = 1.0,
    backend: Backend = "auto",
    entropy: bool = False,
    frozen: FrozenHidden | None = None,
    divergence: Divergence | None = None,
) -> TokenStatistics:
    """Statistics [N] of the tempered distributions that `model` makes of last hidden states [N, D].

    Args:
        model: whose head it is.
        hidden: its last hidden states.
        ids: [N] chosen tokens.
        temperature: of the sampling.
        backend: who computes.
        entropy: whether to.
        frozen: gives `frozen_logp` and the divergence from another model over the same vocabulary.
        divergence: see `linear_logprob`.
    """
    form = head_of(model).affine
    if form is not None and (frozen is None or head_of(frozen.model).affine == form):
        weight, bias = _weights(model)
        assert weight is not None
        return linear_logprob(
            hidden,
            weight,
            ids,
            bias=bias,
            temperature=temperature / form.scale,  # softcap(scale · z) / T is softcap' (z) / T' with both divided
            softcap=None if form.softcap is None else form.softcap / form.scale,
            entropy=entropy,
            frozen=None if frozen is None else _frozen_head(frozen),
            divergence=divergence,
            backend=backend,
        )
    rows = max(1, _SLICE_LOGITS // _vocabulary(model))
    parts = [
        checkpoint(
            _slice_statistics,
            *(model, hidden[start : start + rows], ids[start : start + rows], temperature, backend),
            None if frozen is None else FrozenHidden(frozen.model, frozen.hidden[start : start + rows]),
            divergence,
            use_reentrant=False,
            preserve_rng_state=False,
        )
        for start in range(0, len(hidden), rows)
    ]
    return TokenStatistics._make(None if p[0] is None else torch.cat(p) for p in zip(*parts, strict=True))


def _slice_statistics(
    model: PreTrainedModel,
    hidden: Tensor,
    ids: Tensor,
    temperature: float,
    backend: Backend,
    frozen: FrozenHidden | None,
    divergence: Divergence | None,
) -> tuple[Tensor | None, ...]:
    """`TokenStatistics` of tokens whose logits fit the memory."""
    logits = own_logits(model, hidden)
    logp, entropy = logprob_entropy(logits, ids, temperature=temperature, backend=backend)
    chosen = logits.gather(-1, ids[:, None])[:, 0].float() / temperature
    if frozen is None:
        return logp, entropy, None, None, chosen - logp
    with torch.no_grad():
        other = (own_logits(frozen.model, frozen.hidden).float() / temperature).log_softmax(-1)
    between = None
    if divergence is not None:
        between = _divergence((logits.float() / temperature).log_softmax(-1), other, divergence)
    return logp, entropy, between, other.gather(-1, ids[:, None])[:, 0], chosen - logp


def _frozen_head(frozen: FrozenHidden) -> LinearHead:
    weight, bias = _weights(frozen.model)
    assert weight is not None
    return LinearHead(frozen.hidden, weight.detach(), None if bias is None else bias.detach())


def _divergence(p: Tensor, q: Tensor, kind: Divergence) -> Tensor:
    """[N] of log-probs [N, V]; the kinds are those of `linear_logprob`."""
    if kind == "rkl":
        return _kl(p, q)
    if kind == "fkl":
        return _kl(q, p)
    mean = torch.logaddexp(p, q) - torch.log(torch.tensor(2.0))
    return (_kl(p, mean) + _kl(q, mean)) / 2


def _kl(p: Tensor, q: Tensor) -> Tensor:
    return torch.nn.functional.kl_div(q, p, reduction="none", log_target=True).sum(-1)


# ------------------------------------------------------------------ asking the model


def _measure(model: PreTrainedModel) -> Head:
    names = {id(module): name for name, module in model.named_modules()}
    with torch.no_grad():
        for backbone, width in product(_candidates(model), _widths(model)):
            probe = torch.randn(_PROBES, width, generator=torch.Generator().manual_seed(0))
            probe = probe.to(model.device, model.dtype)
            try:
                unit, calls = _through(model, backbone, probe)
            except (RuntimeError, ValueError):  # of another width
                continue
            if calls != 1 or unit.shape[0] != _PROBES:
                continue
            probe = probe * (_PROBE_SPREAD / unit.float().std().clamp(min=1e-6)).to(probe.dtype)
            return Head(backbone=names[id(backbone)], affine=_fit(model, backbone, probe))
    raise ModelError(
        f"{type(model).__name__} cannot be trained or judged with here: its forward pass does not use its own backbone "
        "once, so log-probs of tokens cannot be had of its hidden states. Choose another model."
    )


def _candidates(model: PreTrainedModel) -> Iterator[nn.Module]:
    """Modules that may be the backbone; `base_model` is the model itself where a family names it wrongly."""
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
    found = dict.fromkeys([model.base_model, decoder, *model.children()])
    unfit = (None, model, model.get_output_embeddings())
    yield from (module for module in found if isinstance(module, nn.Module) and module not in unfit)


def _fit(model: PreTrainedModel, backbone: nn.Module, probe: Tensor) -> Affine | None:
    """The form that gives the model's own logits of `probe` [N, D]; None if none does."""
    weight, bias = _weights(model)
    if weight is None or weight.dim() != 2 or weight.shape[1] != probe.shape[1]:
        return None
    own = _through(model, backbone, probe)[0].float()
    plain = linear(probe, weight, bias).float()
    if plain.shape != own.shape:
        return None
    allowed = _PROBE_TOLERANCE.get(model.dtype, 2**-6) * own.abs().max()
    # Both were given up to rounding: with half precision a scale of 1 and one that hardly differs look the same.
    return next((form for form in _forms(model.config) if (form.of(plain) - own).abs().max() <= allowed), None)


def _forms(config: Any) -> Iterator[Affine]:
    """Plain first, then with the scales and caps that the config names."""
    text = config.get_text_config(decoder=True)
    caps = [None, *_numbers(text, _CAPS)]
    scales = [1.0, *(1 / value for value in _numbers(text, _DIVIDES)), *_numbers(text, _MULTIPLIES)]
    yield from (Affine(scale=scale, softcap=cap) for cap in caps for scale in scales)


def _numbers(config: Any, names: tuple[str, ...]) -> list[float]:
    values = (getattr(config, name, None) for name in names)
    return [float(value) for value in values if isinstance(value, (int, float)) and value > 0]


def _weights(model: PreTrainedModel) -> tuple[Tensor | None, Tensor | None]:
    head: Any = model.get_output_embeddings()
    return getattr(head, "weight", None), getattr(head, "bias", None)


def _widths(model: PreTrainedModel) -> list[int]:
    """What last hidden states may be wide: as the head's weight wants them, or as the config says."""
    weight, config = _weights(model)[0], model.config.get_text_config(decoder=True)
    widths = [
        weight.shape[1] if weight is not None and weight.dim() == 2 else None,
        getattr(config, "hidden_size", None),
    ]
    return list(dict.fromkeys(width for width in widths if isinstance(width, int)))


def _vocabulary(model: PreTrainedModel) -> int:
    weight = _weights(model)[0]
    return len(weight) if weight is not None else int(model.config.get_text_config(decoder=True).vocab_size)


class _Output(tuple[Any, ...]):
    """What a backbone returns, the hidden states alone: by index, by name, everything else None."""

    __slots__ = ()

    @property
    def last_hidden_state(self) -> Tensor:
        hidden: Tensor = self[0]
        return hidden

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


@contextmanager
def _answering(backbone: nn.Module, hidden: Tensor) -> Iterator[list[bool]]:
    """Inside, `backbone` returns `hidden` [N, D] as one sequence, whatever it is given; the list counts its calls."""
    calls: list[bool] = []

    def forward(*_args: object, **_options: object) -> _Output:
        calls.append(True)
        return _Output((hidden[None],))

    before = vars(backbone).get("forward")
    vars(backbone)["forward"] = forward
    try:
        yield calls
    finally:
        if before is None:
            del vars(backbone)["forward"]
        else:
            vars(backbone)["forward"] = before


def _through(model: PreTrainedModel, backbone: nn.Module, hidden: Tensor) -> tuple[Tensor, int]:
    """Logits [N, V] of the model's forward pass with `hidden` [N, D] in place of its backbone's; how often it asked."""
    ids = torch.zeros((1, len(hidden)), dtype=torch.int64, device=hidden.device)
    with _answering(backbone, hidden) as calls:
        # `forward` itself: around a sharded model's call the weights would be gathered and dropped again.
        logits: Tensor = model.forward(input_ids=ids, use_cache=False).logits
    return logits[0], len(calls)
