"""How often 95 % intervals of pass@k cover the true mean, and how wide they are: exprl's and others, simulated.

Problems get solve rates from one of several distributions, each problem n samples; pass@k is averaged over problems.
Run with `python benchmarks/intervals.py` (some minutes on one core; prints a Markdown report).
"""

from __future__ import annotations

import itertools
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy
from scipy import optimize, special, stats

from exprl.evaluation.intervals import DIFFERENCE, SHARE, interval_95, problem_weights
from exprl.evaluation.pass_at_k import pass_at_k

Array = npt.NDArray[np.float64]
Ends = tuple[Array, Array]

MEANS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.3, 0.5, 0.7, 0.9, 0.95, 0.98, 0.99, 0.995)
PROBLEMS = (8, 16, 64, 256)
SAMPLES = ((1, 1), (8, 4), (64, 1), (64, 16))
"""(n, k): samples a problem and the k of pass@k."""
TRIALS = 300
AGAIN = 3_000
"""Trials of a cell whose coverage was low at first: the lowest of thousands of cells is low by chance alone."""
SUSPECT = 0.95
RESAMPLES = 1_500

# ------------------------------------------------------------------ solve rates of problems


@dataclass(frozen=True)
class Family:
    """Distributions of a problem's solve rate, one for each `mean`: how to draw them, and E[1 - (1 - p)^k]."""

    name: str
    draw: Callable[[np.random.Generator, float, tuple[int, int]], Array]
    expected: Callable[[float, int], float]

    def mean_for(self, target: float, k: int) -> float:
        """The mean solve rate at which pass@k is `target`."""
        if k == 1:
            return target
        return float(optimize.brentq(lambda mean: self.expected(mean, k) - target, 1e-9, 1 - 1e-9, xtol=1e-13))


def beta(concentration: float) -> Family:
    def draw(generator: np.random.Generator, mean: float, shape: tuple[int, int]) -> Array:
        return generator.beta(mean * concentration, (1 - mean) * concentration, shape)

    def expected(mean: float, k: int) -> float:
        a, b = mean * concentration, (1 - mean) * concentration
        return float(1 - np.exp(special.betaln(a, b + k) - special.betaln(a, b)))

    return Family(f"Beta, concentration {concentration:g}", draw, expected)


def mostly(share: float) -> Family:
    """All but `share` of the problems have rate 0 (for means above 1/2: rate 1), the others one rate in between."""

    def parts(mean: float) -> tuple[float, float, float]:
        rest = float(mean > 0.5)
        far = abs(mean - rest)
        some = max(share, 2 * far)
        return rest, some, rest + (1 - 2 * rest) * far / min(some, 1.0)

    def draw(generator: np.random.Generator, mean: float, shape: tuple[int, int]) -> Array:
        rest, some, rate = parts(mean)
        return np.where(generator.random(shape) < some, rate, rest)

    def expected(mean: float, k: int) -> float:
        rest, some, rate = parts(mean)
        return min(some, 1.0) * (1 - (1 - rate) ** k) + (1 - min(some, 1.0)) * rest

    return Family(f"mostly 0 (or 1), {100 * share:g} % other", draw, expected)


FAMILIES = (
    Family("one rate", lambda _, mean, shape: np.full(shape, mean), lambda mean, k: 1 - (1 - mean) ** k),
    Family(
        "0 or 1", lambda generator, mean, shape: (generator.random(shape) < mean).astype(float), lambda mean, _: mean
    ),
    beta(0.3),
    beta(20),
    mostly(0.02),
    mostly(0.1),
)

# ------------------------------------------------------------------ intervals, of many trials at once


def exprl_interval(values: Array, support: tuple[float, float] = SHARE) -> Ends:
    """That of `exprl.evaluation.intervals` for [T, P] values: the same weights for all trials."""
    return _gaffke(values, support, problem_weights(RESAMPLES, values.shape[1], np.random.default_rng(1)))


def lighter(values: Array, support: tuple[float, float] = SHARE) -> Ends:
    """The same with an unseen problem that counts for three quarters of one: tighter, and nothing is claimed for it."""
    generator, problems = np.random.default_rng(1), values.shape[1]
    weights = generator.standard_gamma(np.append(np.ones(problems), 0.75), (RESAMPLES, problems + 1))
    return _gaffke(values, support, weights / weights.sum(axis=1, keepdims=True))


def _gaffke(values: Array, support: tuple[float, float], weights: Array) -> Ends:
    means, spare = values @ weights[:, :-1].T, weights[:, -1]
    low = np.quantile(means + support[0] * spare, 0.025, axis=1)
    return low, np.quantile(means + support[1] * spare, 0.975, axis=1)


def percentile_bootstrap(values: Array, _: tuple[float, float] = SHARE) -> Ends:
    """Efron's: what exprl used before."""
    problems = values.shape[1]
    counts = np.random.default_rng(1).multinomial(problems, np.full(problems, 1 / problems), size=RESAMPLES)
    low, high = np.quantile(values @ counts.T / problems, [0.025, 0.975], axis=1)
    return low, high


def student(values: Array, _: tuple[float, float] = SHARE) -> Ends:
    problems = values.shape[1]
    mean = values.mean(axis=1)
    half = stats.t.ppf(0.975, problems - 1) * values.std(axis=1, ddof=1) / np.sqrt(problems)
    return mean - half, mean + half


def wilson(values: Array, support: tuple[float, float] = SHARE) -> Ends:
    """Wilson's score interval with the mean for a share of P trials: right for values 0 or 1."""
    problems, z = values.shape[1], float(stats.norm.ppf(0.975))
    share = (values.mean(axis=1) - support[0]) / (support[1] - support[0])
    middle = (share + z**2 / (2 * problems)) / (1 + z**2 / problems)
    half = z / (1 + z**2 / problems) * np.sqrt(share * (1 - share) / problems + (z / (2 * problems)) ** 2)
    scale = support[1] - support[0]
    return support[0] + scale * (middle - half), support[0] + scale * (middle + half)


def clopper_pearson(values: Array, support: tuple[float, float] = SHARE) -> Ends:
    """Clopper and Pearson's with the (fractional) sum for a count among P trials."""
    problems, scale = values.shape[1], support[1] - support[0]
    count = (values.sum(axis=1) - problems * support[0]) / scale
    low = np.where(count > 0, special.betaincinv(np.maximum(count, 1e-12), problems - count + 1, 0.025), 0.0)
    high = np.where(count < problems, special.betaincinv(count + 1, np.maximum(problems - count, 1e-12), 0.975), 1.0)
    return support[0] + scale * low, support[0] + scale * high


def chernoff(values: Array, support: tuple[float, float] = SHARE) -> Ends:
    """The means m with P KL(sample mean, m) <= log(2 / 0.05) (Hoeffding 1963, theorem 1): proven for any values."""
    problems, scale = values.shape[1], support[1] - support[0]
    share = (values.mean(axis=1) - support[0]) / scale
    ends = []
    for side in (0.0, 1.0):
        inner, outer = share.copy(), np.full_like(share, side)
        for _ in range(50):
            middle = (inner + outer) / 2
            near = special.rel_entr(share, middle) + special.rel_entr(1 - share, 1 - middle) <= np.log(40) / problems
            inner, outer = np.where(near, middle, inner), np.where(near, outer, middle)
        ends.append(support[0] + scale * outer)
    return ends[0], ends[1]


OURS = "exprl (Gaffke)"
METHODS: dict[str, Callable[..., Ends]] = {
    OURS: exprl_interval,
    "the same, 3/4 of a problem": lighter,
    "percentile bootstrap": percentile_bootstrap,
    "Student's t": student,
    "Wilson, problems as trials": wilson,
    "Clopper-Pearson, problems as trials": clopper_pearson,
    "Chernoff": chernoff,
}

# ------------------------------------------------------------------ simulation


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One setting, and of each method how often it covers and how wide it is."""

    mean: float
    problems: int
    coverage: dict[str, float]
    width: dict[str, float]
    setting: str


def measured(values: Array, truth: float, support: tuple[float, float]) -> tuple[dict[str, float], dict[str, float]]:
    ends = {name: method(values, support) for name, method in METHODS.items()}
    covered = {n: float(np.mean((low <= truth + 1e-12) & (truth - 1e-12 <= high))) for n, (low, high) in ends.items()}
    width = {
        n: float(np.mean(np.minimum(high, support[1]) - np.maximum(low, support[0]))) for n, (low, high) in ends.items()
    }
    return covered, width


def cell(mean: float, problems: int, setting: str, draw: Callable[[int], Array], support: tuple[float, float]) -> Cell:
    covered, width = measured(draw(TRIALS), mean, support)
    if covered[OURS] < SUSPECT:
        parts = [measured(draw(TRIALS), mean, support) for _ in range(AGAIN // TRIALS)]
        covered = {name: float(np.mean([part[0][name] for part in parts])) for name in METHODS}
    return Cell(mean=mean, problems=problems, coverage=covered, width=width, setting=setting)


def passes(generator: np.random.Generator, rates: Array, n: int, k: int) -> Array:
    table = np.array([pass_at_k(n, c, k) for c in range(n + 1)])
    return table[generator.binomial(n, np.clip(rates, 0, 1))]


def of_means(generator: np.random.Generator) -> Iterator[Cell]:
    for family, mean, problems, (n, k) in itertools.product(FAMILIES, MEANS, PROBLEMS, SAMPLES):
        if abs(family.expected(family.mean_for(mean, k), k) - mean) > 1e-6:
            continue
        rate = family.mean_for(mean, k)

        def draw(
            trials: int, family: Family = family, rate: float = rate, n: int = n, k: int = k, problems: int = problems
        ) -> Array:
            return passes(generator, family.draw(generator, rate, (trials, problems)), n, k)

        yield cell(mean, problems, f"{family.name}, n = {n}, k = {k}", draw, SHARE)


def of_differences(generator: np.random.Generator) -> Iterator[Cell]:
    """Two policies of the same solve rates (0 is true), and one that solves a share of what the other does not."""
    for family, mean, problems, gain in itertools.product(
        FAMILIES, (0.005, 0.02, 0.1, 0.5), PROBLEMS, (0.0, 0.02, 0.3)
    ):
        truth = gain * (1 - mean)

        def draw(
            trials: int, family: Family = family, mean: float = mean, gain: float = gain, problems: int = problems
        ) -> Array:
            rates = family.draw(generator, mean, (trials, problems))
            better = rates + gain * (1 - rates)
            return passes(generator, better, 8, 1) - passes(generator, rates, 8, 1)

        yield cell(truth, problems, f"{family.name}, mean {mean}, gain {gain}", draw, DIFFERENCE)


# ------------------------------------------------------------------ report


def summary(cells: list[Cell]) -> Iterator[str]:
    yield (
        "| interval | lowest coverage | settings below 93 % | "
        + " | ".join(f"width, {p} problems" for p in PROBLEMS)
        + " |"
    )
    yield "|---|---:|---:|" + "---:|" * len(PROBLEMS)
    for name in METHODS:
        coverage = [c.coverage[name] for c in cells]
        widths = [100 * np.mean([c.width[name] for c in cells if c.problems == p]) for p in PROBLEMS]
        below = sum(value < 0.93 for value in coverage)
        yield (
            f"| {name} | {100 * min(coverage):.1f} % | {below} of {len(cells)} | "
            + " | ".join(f"{w:.1f}" for w in widths)
            + " |"
        )


def by_mean(cells: list[Cell]) -> Iterator[str]:
    yield "| mean | " + " | ".join(METHODS) + " |"
    yield "|---:|" + "---:|" * len(METHODS)
    for mean in MEANS:
        here = [c for c in cells if c.mean == mean]
        yield (
            f"| {100 * mean:g} % | "
            + " | ".join(f"{100 * min(c.coverage[name] for c in here):.1f}" for name in METHODS)
            + " |"
        )


def check() -> None:
    """What is simulated is what exprl computes, up to the chance in the weights."""
    values = np.random.default_rng(5).beta(0.3, 0.9, (3, 64))
    for low, high, row in zip(*exprl_interval(values), values, strict=True):
        found = interval_95(row)
        assert np.allclose([low, high], [found.low, found.high], atol=0.01)


def report(means: list[Cell], differences: list[Cell]) -> None:
    worst = min(means, key=lambda c: c.coverage[OURS])
    print("# 95 % intervals of pass@k: how often they cover, and how wide they are\n")
    print(
        f"`python benchmarks/intervals.py`; {platform.machine()}, numpy {np.__version__}, scipy {scipy.__version__}. "
        f"{len(means)} settings of means: {'; '.join(f.name for f in FAMILIES)} for the problems' solve rates; means "
        f"of pass@k from {100 * MEANS[0]:g} to {100 * MEANS[-1]:g} %; {', '.join(map(str, PROBLEMS))} problems; (n, k) "
        f"of {', '.join(map(str, SAMPLES))}. {TRIALS} trials a setting, and another {AGAIN} where exprl's covered less "
        f"than {100 * SUSPECT:g} % in these. Widths are means over settings, in points.\n"
    )
    print("## Means\n", *summary(means), sep="\n")
    print(f"\nThe lowest of exprl's: {worst.setting}, {worst.problems} problems, mean {100 * worst.mean:g} %.")
    print("\nLowest coverage at each mean, %:\n", *by_mean(means), sep="\n")
    print(f"\n## Paired differences\n\n{len(differences)} settings of two policies with 8 samples a problem, pass@1.\n")
    print(*summary(differences), sep="\n")


def main() -> None:
    check()
    generator = np.random.default_rng(0)
    report(list(of_means(generator)), list(of_differences(generator)))


if __name__ == "__main__":
    main()
