"""What `linear_logprob` and `logprob_entropy` allocate: logits of all tokens in no one tensor, and in many if few."""

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from exprl.kernels import linear_logprob, logprob_entropy, sweep
from tests.unit.kernels.naive import head_inputs, linear_statistics

T, V, D, BLOCK = 256, 20_000, 16, 512
SLICES = 12  # as many copies of one slice, in the arithmetic of plain torch on two heads


class Allocations(TorchDispatchMode):
    """Numbers in the largest storage that an operation made, and in all that were alive at once."""

    def __init__(self, *known):
        super().__init__()
        self.largest = self.peak = 0
        self._known = {x.untyped_storage().data_ptr() for x in known}
        self._alive = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self._alive = {k: v for k, v in self._alive.items() if not v[0].expired()}
        for x in tree_leaves(result):
            if isinstance(x, torch.Tensor) and x.untyped_storage().data_ptr() not in self._known:
                storage = x.untyped_storage()
                numbers = storage.nbytes() // 4
                self.largest = max(self.largest, numbers)
                self._alive[storage.data_ptr()] = StorageWeakRef(storage), numbers
        self.peak = max(self.peak, sum(numbers for _, numbers in self._alive.values()))
        return result


@pytest.fixture(scope="module")
def x():
    return head_inputs(T, V, D, frozen_width=24).to(torch.float32)


@pytest.mark.parametrize(
    ("divergence", "masked"), [(None, False), ("rkl", False), ("fkl", False), ("jsd", False), ("jsd", True)]
)
def test_no_logits_of_all_tokens(x, divergence, masked, monkeypatch):
    monkeypatch.setattr(sweep, "_KEPT_BYTES", 4 * T * V // 2 - 1)  # half of the tokens are too many
    mask = torch.arange(T) % 2 == 0 if masked else None
    with Allocations(*x) as allocations:
        got = linear_logprob(
            x.hidden,
            x.weight,
            x.ids,
            bias=x.bias,
            frozen=x.frozen if divergence else None,
            divergence=divergence,
            mask=mask,
            temperature=0.7,
            softcap=20.0,
            vocab_block=BLOCK,
            backend="eager",
        )
        forward = allocations.peak
        torch.autograd.grad(sum(y.sum() for y in got if y is not None and y.requires_grad), x.trained)
    # The weight's gradient is the only large result; everything else is a slice's, and a few of those at a time.
    assert allocations.largest <= max(V * D, T * BLOCK)
    assert forward <= SLICES * T * BLOCK < T * V / 2
    assert allocations.peak <= V * D + SLICES * T * BLOCK < T * V / 2


@pytest.mark.parametrize("divergence", [None, "rkl", "jsd"])
def test_logits_that_fit_are_kept_and_change_nothing(x, divergence, monkeypatch):
    def run(budget):
        monkeypatch.setattr(sweep, "_KEPT_BYTES", budget)
        frozen = x.frozen if divergence else None
        with Allocations(*x) as allocations:
            got = linear_logprob(
                x.hidden, x.weight, x.ids, frozen=frozen, divergence=divergence, vocab_block=BLOCK, backend="eager"
            )
            total = sum(y.sum() for y in got if y is not None and y.requires_grad)
            forward = allocations.peak
            gradients = torch.autograd.grad(total, [x.hidden, x.weight], retain_graph=True)
            again = torch.autograd.grad(total, [x.hidden, x.weight])
        assert all(map(torch.equal, gradients, again)), "kept logits are not written to"
        with Allocations(*x) as without, torch.no_grad():
            linear_logprob(x.hidden, x.weight, x.ids, vocab_block=BLOCK, backend="eager")
        assert without.peak <= SLICES * T * BLOCK, "nothing to differentiate"
        return forward, gradients

    kept, gradients = run(4 * T * V)
    dropped, expected = run(4 * T * V - 1)
    assert kept >= T * V > 2 * dropped
    assert all(map(torch.equal, gradients, expected))


def test_a_main_gradient_leaves_nothing_large(x, monkeypatch):
    monkeypatch.setattr(sweep, "_KEPT_BYTES", 0)
    main = torch.zeros(V, D)
    with Allocations(*x, main) as allocations:
        got = linear_logprob(
            x.hidden, x.weight, x.ids, weight_grad_out=main, vocab_block=BLOCK, backend="eager", entropy=True
        )
        (got.logp.sum() + got.entropy.sum()).backward()
    assert main.any()
    assert allocations.largest <= T * BLOCK < V * D
    assert allocations.peak <= SLICES * T * BLOCK


def test_a_block_of_its_own_choice_is_small_too():
    # Without vocab_block, many tokens get narrow slices: 32 MiB of logits on a CPU.
    many = head_inputs(8192, 2048, 4).to(torch.float32)
    with Allocations(*many) as allocations, torch.no_grad():
        linear_logprob(many.hidden, many.weight, many.ids, backend="eager")
    assert allocations.largest <= 8 * 2**20 < 8192 * 2048


def test_logits_in_place_allocate_no_second_copy():
    leaf = torch.randn(T, V, generator=torch.Generator().manual_seed(0), requires_grad=True)
    ids = torch.arange(T)
    peaks = {}
    for inplace in (False, True):
        logits = leaf * 1
        with Allocations(leaf, logits, ids) as allocations:
            logp, entropy = logprob_entropy(logits, ids, inplace_backward=inplace, backend="eager")
            forward = allocations.peak
            torch.autograd.grad((logp + entropy).sum(), logits)
        peaks[inplace] = allocations.peak
        assert forward < 10 * T * 8192  # a slice's copies
    assert peaks[False] - peaks[True] >= 0.9 * T * V


def test_the_counting_sees_materialised_logits(x):
    with Allocations(*x) as allocations:
        got = linear_statistics(x.hidden, x.weight, x.ids, bias=x.bias)
        (got.logp.sum() + got.entropy.sum()).backward()
    assert allocations.largest == T * V
    assert allocations.peak >= 3 * T * V
