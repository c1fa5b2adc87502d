r"""Whether ranks are uniform: the test behind calibration and predictive checks.

A number t and L draws t_1, ..., t_L that should be from its own distribution: then its rank among
them, \sum_l 1[t_l < t], is uniform on 0, ..., L. Ties are broken at random, and a uniform random
number within the rank makes it a PIT value u, uniform on [0, 1].

Of n such ranks the number below k is C_k ~ Binomial(n, k / K), K = L + 1, and the test looks at
all k = 1, ..., L at once, by the smallest tail probability among them,

    gamma = 2 min_k min(P(C_k <= c_k), P(C_k >= c_k)) .

The band that an empirical distribution function stays in with probability 1 - p has this gamma at
each k, and the p-value is that of the widest band that it leaves (Graphical Test for Discrete
Uniformity and Its Applications in Goodness-of-Fit Evaluation and Multiple Sample Comparison,
Säilynoja, Bürkner & Vehtari, 2022, https://arxiv.org/abs/2103.10522). It is found exactly, not by
simulation: given their sum, n independent Poisson counts of the ranks are the multinomial ones,
so the probability of staying inside is a chain of convolutions. Holm's method adjusts the
p-values of several quantities.

How ranks deviate says what is wrong with the draws: the means of the Legendre polynomials of
2u - 1, which are independent in large samples, tell a slope (the draws are too high or too low), a
U or a bump (too narrow or too wide) and a skewed shape.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.polynomial import legendre
from numpy.typing import NDArray
from torch import Tensor

from pyrovae.errors import Error
from pyrovae.evaluate.weights import Array
from pyrovae.report import Table

LEAST = 20
"""Rows below which no test of uniformity could see anything."""
LEVEL = 0.01
"""The probability of any finding at all where there is nothing to find."""
LOWEST = 1e-12
"""The smallest p-value that rounding leaves."""
SMALL = 1e-6
"""The p-value below which no digits are told."""
CLEAR = 3.0
"""The standard deviations from which a shape is told."""
SHAPES = (
    ("too low", "too high"),
    ("too narrow", "too wide"),
    ("too left-skewed", "too right-skewed"),
)
"""What the draws are where a Legendre mean is positive, and where it is negative."""


def pit(truth: Tensor, draws: Tensor, tolerance: float = 0.0) -> Array:
    """The PIT value of each number among its draws, `(rows, quantities)`; NaN if one is NaN.

    Args:
        truth: shape `(rows, quantities)`.
        draws: shape `(draws, rows, quantities)`.
        tolerance: the relative difference up to which two numbers are tied.
    """
    margin = tolerance * truth.abs()
    below = (draws < truth - margin).sum(0)
    tied = ((draws - truth).abs() <= margin).sum(0)
    u = torch.rand(truth.shape, dtype=torch.float64, device=truth.device)
    values = (below + u * (tied + 1)) / (len(draws) + 1)
    unknown = truth.isnan() | draws.isnan().any(0)
    return torch.where(unknown, torch.nan, values).cpu().numpy()


@dataclass(frozen=True, eq=False)
class Uniformity:
    """The PIT values of several quantities, and whether each is uniform.

    Args:
        names: of the quantities.
        pit: shape `(rows, quantities)`, NaN where a row does not have the quantity.
        draws: that each was ranked among, L.
    """

    names: tuple[str, ...]
    pit: Array
    draws: int

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """How many ranks of each quantity are below k = 0, ..., K, `(quantities, K + 1)`."""
        values = self.draws + 1
        ranks = [(u[~np.isnan(u)] * values).astype(int).clip(max=self.draws) for u in self.pit.T]
        sums = [np.bincount(rank, minlength=values).cumsum() for rank in ranks]
        return np.pad(np.array(sums).reshape(-1, values), ((0, 0), (1, 0)))

    @cached_property
    def gap(self) -> Array:
        """The largest difference from the uniform distribution function, from 0 to 1."""
        uniform = np.linspace(0, 1, self.counts.shape[1])
        gap: Array = np.abs(self.counts / self.counts[:, -1:] - uniform).max(1)
        return gap

    @cached_property
    def p_value(self) -> Array:
        """The p-value of each quantity by itself; those below 1e-12 are 1e-12."""
        return np.array([_p_value(count) for count in self.counts])

    @cached_property
    def adjusted(self) -> Array:
        """The p-values, adjusted for the number of quantities by Holm's method."""
        order, m = np.argsort(self.p_value), len(self.names)
        steps = np.maximum.accumulate(self.p_value[order] * np.arange(m, 0, -1))
        adjusted: Array = np.empty(m)
        adjusted[order] = np.minimum(steps, 1.0)
        return adjusted

    @cached_property
    def findings(self) -> tuple[str, ...]:
        """What the draws are, such as `too narrow`; empty where ranks are uniform."""
        return tuple(
            _shape(u[~np.isnan(u)]) if p < LEVEL else ""
            for u, p in zip(self.pit.T, self.adjusted, strict=True)
        )

    @property
    def order(self) -> NDArray[np.int64]:
        """The quantities, from the one that deviates most clearly."""
        return np.lexsort((-self.gap, self.adjusted))

    def sentence(self) -> str:
        """The findings with the quantities they are about, those that deviate most first."""
        groups: dict[str, list[str]] = {}
        for index in self.order:
            if finding := self.findings[index]:
                groups.setdefault(finding, []).append(self.names[index])
        return "; ".join(f"{finding} in {listed(names)}" for finding, names in groups.items())

    def table(self, of: str, notes: Sequence[str], most: int, **beside: Sequence[str]) -> Table:
        """One line a quantity, from the one that deviates most clearly.

        Args:
            of: whose draws they are.
            notes: what has to be known to read it.
            most: how many lines.
            beside: further columns.
        """
        p_values = (f"{p:.2g}" if p >= SMALL else f"< {SMALL:g}" for p in self.adjusted)
        gaps = (f"{gap:.3f}" for gap in self.gap)
        lines = [*zip(self.names, gaps, p_values, self.findings, *beside.values(), strict=True)]
        heads = ("quantity", "largest gap", "p (Holm)", f"{of} draws are", *beside)
        rest = len(lines) - most
        more = (f"{rest} more quantities deviate less.",) if rest > 0 else ()
        return Table(heads, [lines[index] for index in self.order[:most]], (*more, *notes))

    def summary(self) -> dict[str, float]:
        """The figures of all quantities together."""
        return {
            "quantities": len(self.names),
            "deviating": sum(map(bool, self.findings)),
            "smallest_adjusted_p": float(self.adjusted.min()),
            "largest_gap": float(self.gap.max()),
            "rows": len(self.pit),
            "draws": self.draws,
        }


def listed(names: Sequence[str], most: int = 5) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def refuse_few(rows: int) -> None:
    """Refuse rows that are too few to test."""
    if rows < LEAST:
        raise Error(f"a test of uniformity needs at least {LEAST} rows, got {rows}")


def _p_value(counts: NDArray[np.int64]) -> float:
    """The p-value of the ranks below k = 0, ..., K, n of them below K."""
    from scipy import stats

    n, k = int(counts[-1]), len(counts) - 1
    share, inner = np.arange(1, k) / k, counts[1:-1]
    tails = stats.binom.cdf(inner, n, share), stats.binom.sf(inner - 1, n, share)
    tail = np.min(tails) * (1 + 1e-9)  # the band is inside of it, whatever rounding does
    if 2 * k * tail < LOWEST:  # more than the sum of all tails
        return LOWEST
    low = np.append(stats.binom.ppf(tail, n, share).clip(min=0), n).astype(int)
    high = np.append(stats.binom.isf(tail, n, share), n).astype(int)
    step = stats.poisson.pmf(np.arange(n + 1), n / k)
    step = step[: np.flatnonzero(step > 1e-20)[-1] + 1]
    start, inside = 0, np.ones(1)
    for a, b in zip(low, high, strict=True):
        reached = np.convolve(inside, step)
        padded = np.pad(reached, (0, max(0, b + 1 - start - len(reached))))
        start, inside = a, padded[a - start : b + 1 - start]
        if not len(inside):
            return 1.0
    return float(np.clip(1 - inside[0] / stats.poisson.pmf(n, n), LOWEST, 1.0))


def _shape(u: Array) -> str:
    """What the draws are, from PIT values that are not uniform."""
    means = legendre.legvander(2 * u - 1, len(SHAPES)).mean(0)[1:]
    largest = int(np.argmax(np.abs(means)))
    sd = 1 / math.sqrt((2 * largest + 3) * len(u))
    if abs(means[largest]) < CLEAR * sd:
        return "of another shape"
    return SHAPES[largest][int(means[largest] < 0)]
