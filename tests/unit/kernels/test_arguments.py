"""Every wrong argument is named, with its shape, before anything is computed."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from exprl.kernels import (
    LinearHead,
    binary_divergence,
    by_token,
    clipped_surrogate,
    kl_estimate,
    linear_logprob,
    logprob_entropy,
    mean_by_rollout,
    policy_token_loss,
    ratio_of,
    sum_by_rollout,
)

NAN, INF = math.nan, math.inf
INT = torch.int64


class NothingIsComputed(TorchDispatchMode):
    """Checks compare, count and index; any arithmetic beyond that raises what no test expects."""

    COMPUTES = ("mm", "addmm", "bmm", "exp", "log", "tanh", "amax", "logaddexp", "softmax", "add", "sub")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__.rstrip("_") in self.COMPUTES:
            raise AssertionError(f"computed something before the arguments were checked: {func}")
        return func(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def nothing_is_computed():
    with NothingIsComputed():
        yield


def meta(*shape, dtype=torch.float32):
    return torch.zeros(*shape, dtype=dtype, device="meta")


def zeros(*shape, dtype=torch.float32):
    return torch.zeros(*shape, dtype=dtype)


def frozen(hidden=(2, 4), weight=(5, 4), bias=None, **options):
    return LinearHead(zeros(*hidden, **options), zeros(*weight), None if bias is None else zeros(*bias))


def trained_frozen(name):
    head = frozen(bias=(5,))
    getattr(head, name).requires_grad_()
    return head


# T = 2, D = 3, V = 5, D_frozen = 4
LINEAR = {"hidden": zeros(2, 3), "weight": zeros(5, 3), "ids": zeros(2, dtype=INT)}


def run_linear(change):
    return linear_logprob(**{**LINEAR, **change})


def test_the_arguments_that_are_changed_below_are_right():
    for function, arguments in (
        (linear_logprob, {**LINEAR, "frozen": frozen(bias=(5,)), "divergence": "jsd", "bias": zeros(5)}),
        (logprob_entropy, LOGITS),
        (policy_token_loss, POLICY),
    ):
        with pytest.raises(AssertionError, match="computed something"):
            function(**arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": zeros(3)}, r"hidden: expected floating point \[T, D\], but got float32 \[3\] on cpu"),
        ({"hidden": zeros(1, 2, 3)}, r"hidden: expected .* but got float32 \[1, 2, 3\]"),
        ({"hidden": zeros(2, 3, dtype=INT)}, r"hidden: expected floating point .* int64 \[2, 3\]"),
        ({"hidden": [[0.0]]}, r"hidden: expected floating point .* but got list"),
        ({"weight": zeros(5, 4)}, r"weight: expected floating point \[V, 3\], but got float32 \[5, 4\]"),
        ({"weight": zeros(5)}, r"weight: expected .* \[5\]"),
        ({"weight": zeros(5, 3, dtype=INT)}, r"weight: expected floating point .* int64"),
        ({"weight": meta(5, 3)}, r"weight: expected a tensor on cpu, but got float32 \[5, 3\] on meta"),
        ({"bias": zeros(4)}, r"bias: expected floating point \[5\], but got float32 \[4\]"),
        ({"bias": zeros(5, 1)}, r"bias: expected floating point \[5\], but got float32 \[5, 1\]"),
        ({"bias": zeros(5, dtype=INT)}, r"bias: expected floating point \[5\], but got int64"),
        ({"bias": meta(5)}, r"bias: expected a tensor on cpu, but got float32 \[5\] on meta"),
        ({"ids": zeros(3, dtype=INT)}, r"ids: expected int64 \[2\], but got int64 \[3\]"),
        ({"ids": zeros(2, 1, dtype=INT)}, r"ids: expected int64 \[2\], but got int64 \[2, 1\]"),
        ({"ids": zeros(2)}, r"ids: expected int64 \[2\], but got float32"),
        ({"ids": zeros(2, dtype=torch.int32)}, r"ids: expected int64 \[2\], but got int32"),
        ({"ids": meta(2, dtype=INT)}, r"ids: expected a tensor on cpu, but got int64 \[2\] on meta"),
        ({"ids": torch.tensor([0, 5])}, r"ids: expected values in 0\.\.4 .* int64 \[2\] on cpu holds 0\.\.5"),
        ({"ids": torch.tensor([-100, 1])}, r"ids: expected values in 0\.\.4 .* holds -100\.\.1"),
        (
            {"ids": torch.tensor([-100, 5]), "mask": torch.tensor([False, True])},
            r"ids: expected values in 0\.\.4 wherever the mask is true, .* int64 \[1\]",
        ),
        ({"softcap": 0.0}, r"softcap: expected a finite number above 0, but got 0\.0"),
        ({"softcap": -1.0}, r"softcap: .* -1\.0"),
        ({"softcap": NAN}, r"softcap: .* nan"),
        ({"softcap": INF}, r"softcap: .* inf"),
        ({"vocab_block": 0}, r"vocab_block: expected a whole number of at least 1 or None, but got 0"),
        ({"vocab_block": 2.5}, r"vocab_block: expected a whole number .* 2\.5"),
        ({"softcap": "30"}, r"softcap: expected a finite number above 0, but got '30'"),
        ({"bias": [0.0] * 5}, r"bias: expected floating point \[5\], but got list"),
        ({"mask": [True, True]}, r"mask: expected bool \[2\], but got list"),
        ({"ids": [0, 1]}, r"ids: expected int64 \[2\], but got list"),
        ({"weight_grad_out": [[0.0]]}, r"weight_grad_out: expected floating point \[5, 3\], but got list"),
        ({"temperature": "1"}, r"temperature: expected a number"),
        ({"vocab_block": -256}, r"vocab_block: .* -256"),
        ({"mask": zeros(2, dtype=torch.uint8)}, r"mask: expected bool \[2\], but got uint8 \[2\]"),
        ({"mask": zeros(3, dtype=torch.bool)}, r"mask: expected bool \[2\], but got bool \[3\]"),
        ({"mask": meta(2, dtype=torch.bool)}, r"mask: expected a tensor on cpu, but got bool \[2\] on meta"),
        ({"backend": "cuda"}, r"backend: expected one of auto, triton, eager, compile, but got 'cuda'"),
        ({"weight_grad_out": zeros(5, 4)}, r"weight_grad_out: expected .* \[5, 3\], but got float32 \[5, 4\]"),
        (
            {"weight_grad_out": zeros(5, 3, dtype=torch.bfloat16)},
            r"weight_grad_out: expected float32.* bfloat16 \[5, 3\]",
        ),
        ({"weight_grad_out": zeros(5, 3).requires_grad_()}, r"weight_grad_out: expected .* without requires_grad"),
        ({"weight_grad_out": meta(5, 3)}, r"weight_grad_out: expected a tensor on cpu, .* on meta"),
    ],
)
def test_linear_logprob(change, message):
    with pytest.raises(ValueError, match=message):
        run_linear(change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"divergence": "rkl"}, r"frozen: required for divergence 'rkl', but got None"),
        ({"divergence": "kl"}, r"divergence: expected one of rkl, fkl, jsd or None, but got 'kl'"),
        ({"frozen": zeros(2, 4)}, r"frozen: expected \(hidden, weight\) or a LinearHead, but got float32 \[2, 4\]"),
        ({"frozen": (zeros(2, 4),)}, r"frozen: expected \(hidden, weight\) or a LinearHead, but got tuple"),
        ({"frozen": ([0.0], [0.0])}, r"frozen hidden: expected floating point \[2, D_frozen\], but got list"),
        ({"frozen": frozen(), "divergence": "RKL"}, r"divergence: expected one of .* 'RKL'"),
        ({"frozen": frozen(hidden=(3, 4))}, r"frozen hidden: expected .* \[2, D_frozen\], but got float32 \[3, 4\]"),
        ({"frozen": frozen(hidden=(2,))}, r"frozen hidden: expected .* \[2, D_frozen\], but got float32 \[2\]"),
        ({"frozen": frozen(dtype=INT)}, r"frozen hidden: expected floating point .* int64"),
        ({"frozen": frozen(weight=(5, 3))}, r"frozen weight: expected .* \[5, 4\], but got float32 \[5, 3\]"),
        ({"frozen": frozen(weight=(6, 4))}, r"frozen weight: expected .* \[5, 4\], but got float32 \[6, 4\]"),
        ({"frozen": frozen(bias=(4,))}, r"frozen bias: expected floating point \[5\], but got float32 \[4\]"),
        ({"frozen": (meta(2, 4), zeros(5, 4))}, r"frozen hidden: expected a tensor on cpu, .* on meta"),
        ({"frozen": (zeros(2, 4), meta(5, 4))}, r"frozen weight: expected a tensor on cpu, .* on meta"),
        ({"frozen": (zeros(2, 4), zeros(5, 4), meta(5))}, r"frozen bias: expected a tensor on cpu, .* on meta"),
        *(
            ({"frozen": trained_frozen(name)}, r"frozen: it is a constant here and gets no gradient")
            for name in ("hidden", "weight", "bias")
        ),
    ],
)
def test_the_frozen_head(change, message):
    with pytest.raises(ValueError, match=message):
        run_linear(change)


def test_without_gradient_a_frozen_head_may_require_one():
    with torch.no_grad(), pytest.raises(AssertionError, match="computed something"):
        run_linear({"frozen": trained_frozen("weight")})


LOGITS = {"logits": zeros(2, 5), "ids": zeros(2, dtype=INT)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": zeros(5)}, r"logits: expected floating point \[T, V\], but got float32 \[5\]"),
        ({"logits": zeros(1, 2, 5)}, r"logits: expected floating point \[T, V\], but got float32 \[1, 2, 5\]"),
        ({"logits": zeros(2, 5, dtype=INT)}, r"logits: expected floating point .* int64"),
        ({"ids": zeros(3, dtype=INT)}, r"ids: expected int64 \[2\], but got int64 \[3\]"),
        ({"ids": zeros(2)}, r"ids: expected int64 \[2\], but got float32"),
        ({"ids": meta(2, dtype=INT)}, r"ids: expected a tensor on cpu, .* on meta"),
        ({"ids": torch.tensor([0, 5])}, r"ids: expected values in 0\.\.4 .* holds 0\.\.5"),
        ({"ids": torch.tensor([-1, 0])}, r"ids: expected values in 0\.\.4 .* holds -1\.\.0"),
        ({"mask": zeros(2)}, r"mask: expected bool \[2\], but got float32 \[2\]"),
        ({"mask": zeros(1, dtype=torch.bool)}, r"mask: expected bool \[2\], but got bool \[1\]"),
        ({"mask": meta(2, dtype=torch.bool)}, r"mask: expected a tensor on cpu"),
        ({"backend": "numpy"}, r"backend: expected one of .* 'numpy'"),
        ({"logits": zeros(2, 5).requires_grad_(), "inplace_backward": True}, r"inplace_backward: logits are a leaf"),
    ],
)
def test_logprob_entropy(change, message):
    with pytest.raises(ValueError, match=message):
        logprob_entropy(**{**LOGITS, **change})


@pytest.mark.parametrize(
    ("temperature", "message"),
    [
        *((x, rf"temperature: expected a finite number above 0, but got {x}") for x in (0.0, -1.0, NAN, INF)),
        *(
            (
                torch.tensor([1.0, x]),
                r"temperature: expected finite values above 0, but float32 \[2\] on cpu holds others",
            )
            for x in (0.0, -1.0, NAN, INF)
        ),
        (torch.ones(3), r"temperature: expected floating point \[2\], but got float32 \[3\]"),
        (torch.ones(2, 1), r"temperature: expected floating point \[2\], but got float32 \[2, 1\]"),
        (torch.tensor(1.0), r"temperature: expected floating point \[2\], but got float32 \[\]"),
        (torch.ones(2, dtype=INT), r"temperature: expected floating point \[2\], but got int64"),
        (torch.ones(2, requires_grad=True), r"temperature: it is a constant here"),
        (meta(2), r"temperature: expected a tensor on cpu, but got float32 \[2\] on meta"),
        (None, r"temperature: .*None"),
    ],
)
@pytest.mark.parametrize(("function", "right"), [(linear_logprob, LINEAR), (logprob_entropy, LOGITS)])
def test_temperature(function, right, temperature, message):
    with pytest.raises(ValueError, match=message):
        function(**{**right, "temperature": temperature})


POLICY = {"logp": zeros(3), "old_logp": zeros(3), "advantages": zeros(3)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logp": zeros(1, 3)}, r"logp: expected floating point \[T\], but got float32 \[1, 3\]"),
        ({"logp": [0.0] * 3}, r"logp: expected floating point \[T\], but got list"),
        ({"clip_low": "0.2"}, r"clip_low: expected 0\.\.1, but got '0\.2'"),
        ({"kl_coef": None}, r"kl_coef: expected a finite number, but got None"),
        ({"logp": torch.tensor(0.0)}, r"logp: expected floating point .* float32 \[\]"),
        ({"logp": zeros(3, dtype=INT)}, r"logp: expected floating point \[T\], but got int64"),
        *(
            ({name: value}, rf"{name}: expected {message}")
            for name in ("old_logp", "advantages", "is_weight", "initial_logp")
            for value, message in (
                (zeros(2), r"floating point \[3\], but got float32 \[2\]"),
                (zeros(3, 1), r"floating point \[3\], but got float32 \[3, 1\]"),
                (zeros(3, dtype=INT), r"floating point \[3\], but got int64"),
                (meta(3), r"a tensor on cpu, but got float32 \[3\] on meta"),
            )
        ),
        ({"mask": zeros(3)}, r"mask: expected bool \[3\], but got float32"),
        ({"mask": zeros(2, dtype=torch.bool)}, r"mask: expected bool \[3\], but got bool \[2\]"),
        ({"mask": meta(3, dtype=torch.bool)}, r"mask: expected a tensor on cpu"),
        *(({"clip_low": x}, r"clip_low: expected 0\.\.1") for x in (-0.1, 1.1, NAN)),
        *(({"clip_high": x}, r"clip_high: expected at least 0") for x in (-0.1, NAN)),
        *(({"dual_clip": x}, r"dual_clip: expected above 1 or None") for x in (1.0, 0.0, -3.0, NAN)),
        ({"kl_coef": 0.1}, r"initial_logp: required with kl_coef 0\.1, but got None"),
        *(({"initial_logp": zeros(3), "kl_coef": x}, r"kl_coef: ") for x in (NAN, INF)),
        ({"kl": "k4"}, r"kl: expected one of k1, k2, k3, but got 'k4'"),
        ({"backend": "gpu"}, r"backend: expected one of .* 'gpu'"),
    ],
)
def test_policy_token_loss(change, message):
    with pytest.raises(ValueError, match=message):
        policy_token_loss(**{**POLICY, **change})


def run_surrogate(**change):
    clips = {"clip_low": 0.2, "clip_high": 0.2, "dual_clip": 3.0}
    return clipped_surrogate(**{"ratio": zeros(3), "advantages": zeros(3), **clips, **change})


FORMULAS = [
    (run_surrogate, ("ratio", "advantages"), {}),
    (kl_estimate, ("logp", "initial_logp"), {"kind": "k3"}),
    (binary_divergence, ("logp", "old_logp"), {"kind": "kl"}),
    (ratio_of, ("logp", "other_logp"), {}),
]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (zeros(3, 1), r"float32 \[3, 1\]"),
        (torch.tensor(0.0), r"float32 \[\]"),
        (zeros(3, dtype=INT), "int64"),
        ([0.0] * 3, "list"),
        (0.0, "float"),
        (None, "NoneType"),
    ],
)
@pytest.mark.parametrize(("function", "names", "options"), FORMULAS)
def test_the_formulas(function, names, options, value, message):
    for name in names:
        arguments = {**{n: zeros(3) for n in names}, **options, name: value}
        if value is None and name != names[0]:
            continue
        with pytest.raises(ValueError, match=rf"^{name}: expected floating point \[[T3]\], but got {message}"):
            function(**arguments)


@pytest.mark.parametrize(("function", "names", "options"), FORMULAS)
def test_formulas_broadcast_nothing(function, names, options):
    first, second = names
    with pytest.raises(ValueError, match=rf"^{second}: expected floating point \[3\], but got float32 \[1\]"):
        function(**{first: zeros(3), second: zeros(1), **options})
    with pytest.raises(ValueError, match=rf"^{second}: expected a tensor on cpu"):
        function(**{first: zeros(3), second: meta(3), **options})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kl_estimate(zeros(1), zeros(1), "k9"), r"kind: expected one of k1, k2, k3, but got 'k9'"),
        (lambda: kl_estimate(zeros(1), zeros(1), None), r"kind: expected one of k1, k2, k3, but got None"),
        (lambda: binary_divergence(zeros(1), zeros(1), "jsd"), r"kind: expected one of tv, kl, but got 'jsd'"),
        (lambda: run_surrogate(clip_low=2), r"clip_low: expected 0\.\.1, but got 2"),
        (lambda: run_surrogate(clip_high=NAN), r"clip_high: expected at least 0, but got nan"),
        (lambda: run_surrogate(dual_clip=1), r"dual_clip: expected above 1 or None, but got 1"),
        *(
            (lambda f=f, v=v: f(v, [1, 2]), rf"values: expected floating point \[T\], but got {got}")
            for f in (sum_by_rollout, mean_by_rollout)
            for v, got in ((zeros(3, 1), "float32"), (zeros(3, dtype=INT), "int64"), ([0.0] * 3, "list"))
        ),
        *(
            (lambda f=f, n=n: f(zeros(3), n), rf"lengths: expected the tokens of each rollout.* {got}")
            for f in (sum_by_rollout, mean_by_rollout)
            for n, got in (([1, 1], r"\(2 together"), ([4, -1], r"\[4, -1\]"), ([1.5, 1.5], "list"), (None, "NoneType"))
        ),
        (lambda: by_token(zeros(3), [1, 2]), r"values: expected a tensor \[2\], one for each length, but got float32"),
        (lambda: by_token([0.0], [1]), r"values: expected a tensor \[1\], one for each length, but got list"),
        (lambda: by_token(zeros(2), [1, -1]), r"lengths: expected the tokens of each rollout.*\[1, -1\]"),
        (lambda: by_token(zeros(2), [1, 1.0]), r"lengths: expected the tokens of each rollout, but got list"),
    ],
)
def test_kinds_clips_and_lengths(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (linear_logprob, {k: v.double() if v.is_floating_point() else v for k, v in LINEAR.items()}),
        (logprob_entropy, {k: v.double() if v.is_floating_point() else v for k, v in LOGITS.items()}),
        (policy_token_loss, {k: v.double() for k, v in POLICY.items()}),
    ],
)
def test_triton_does_not_compute_in_float64(monkeypatch, function, arguments):
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # else, with a GPU, the device comes first
    with pytest.raises(
        ValueError, match=r"backend: triton cannot run here: it computes in float32 or bfloat16.*float64"
    ):
        function(**arguments, backend="triton")
