r"""Two sets of rows: do they have the same distribution?

Rows a_1, ..., a_n and b_1, ..., b_m are told apart in two ways. Where the distributions are the
same it does not matter which rows are called a, which gives both an exact p-value.

* The *maximum mean discrepancy* of a kernel k, here a sum of Gaussian ones, is zero only between
  equal distributions. Without bias it is estimated by

      MMD^2 = mean_{i != j} k(a_i, a_j) + mean_{i != j} k(b_i, b_j) - 2 mean_{ij} k(a_i, b_j) ,

  and its p-value is the share of random divisions of all rows with a value at least as large.
* A *classifier* learns on one half of the rows which are a, and of the other half it gets half
  right, unless there is something to learn. Where there is not, the number of its hits among the
  rows that it calls b is hypergeometric.
"""

from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrovae.errors import Error
from pyrovae.models.model import require_positive

Array = NDArray[np.float64]
WIDTHS = (0.5, 1.0, 2.0)
"""The widths of the kernels, in median distances between rows."""

LEVEL = 0.01
"""The p-value below which a difference is taken as real."""


@dataclass(frozen=True)
class TwoSample:
    """A statistic that says whether two sets of rows have the same distribution.

    Args:
        name: of the statistic.
        statistic: its value.
        expected: its mean where the distributions are the same.
        se: its standard error; that of a permutation test where they are the same.
        p_value: the probability of a value at least as large where they are the same.
    """

    name: str
    statistic: float
    expected: float
    se: float
    p_value: float

    def summary(self) -> dict[str, float]:
        """The figures, as they are written to results.json."""
        figures = asdict(self)
        del figures["name"]
        return figures

    def cells(self) -> tuple[str, ...]:
        """A line of a table: the name, the value, what is expected, the error, p."""
        return self.name, *(f"{figure:.3g}" for figure in self.summary().values())


def permuted(name: str, statistic: float, expected: float, null: Array) -> TwoSample:
    """The test of a statistic by its values under random divisions, shape `(permutations,)`."""
    p_value = (1 + int((null >= statistic - 1e-12).sum())) / (1 + len(null))
    return TwoSample(name, statistic, expected, float(null.std()), p_value)


def mmd(a: Tensor, b: Tensor, *, permutations: int = 200, seed: int = 0) -> TwoSample:
    """The unbiased MMD^2 of two sets of rows, with a permutation p-value.

    A Kernel Two-Sample Test (Gretton, Borgwardt, Rasch, Schölkopf & Smola, 2012). Entries should
    be of comparable size; memory grows with the square of the number of rows.

    Args:
        a: rows, shape `(n, *event)`.
        b: rows, shape `(m, *event)`.
        permutations: how often all rows are divided at random.
        seed: of the divisions.

    Raises:
        Error: fewer than two rows, or entries that are not finite.

    Example:
        >>> rows = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
        >>> mmd(rows[:30], rows[30:] + 3).p_value < 0.01
        True
    """
    require_positive(permutations, "permutations")
    k = _kernel(pooled(a, b, least=2))
    n, m = len(a), len(b)
    order = torch.rand(permutations, n + m, generator=_random(seed)).argsort(-1)
    is_a = k.new_zeros(permutations + 1, n + m)
    is_a[0, :n] = 1
    is_a[1:].scatter_(1, order[:, :n], 1.0)
    sums = is_a @ k
    aa, of_a = (sums * is_a).sum(-1), sums.sum(-1)
    bb = k.sum() - 2 * of_a + aa
    values = aa / (n * (n - 1)) + bb / (m * (m - 1)) - 2 * (of_a - aa) / (n * m)
    return permuted("MMD^2", float(values[0]), 0.0, values[1:].numpy())


def _kernel(rows: Tensor) -> Tensor:
    """The sum of the kernels between rows, 0 between a row and itself, shape `(rows, rows)`."""
    squares = torch.cdist(rows - rows[0], rows - rows[0]).square_()
    apart = squares[squares > 1e-12 * squares.max()]
    median = apart.median() if len(apart) else 1.0
    k = sum((squares / (-2 * width**2 * median)).exp_() for width in WIDTHS)
    return torch.as_tensor(k).fill_diagonal_(0.0)


def c2st(a: Tensor, b: Tensor, *, seed: int = 0) -> TwoSample:
    """The accuracy of a classifier that tells two sets of rows apart, 0.5 where none can.

    Revisiting Classifier Two-Sample Tests (Lopez-Paz & Oquab, 2017,
    https://arxiv.org/abs/1610.06545). A forest of random trees, which does not care for the units
    of the entries, learns on one half of each set; the accuracy is the mean of those on the other
    halves, and the p-value Fisher's exact one.

    Args:
        a: rows, shape `(n, *event)`.
        b: rows, shape `(m, *event)`.
        seed: of the halves and of the trees.

    Raises:
        Error: fewer than four rows, or entries that are not finite.
    """
    from scipy.stats import hypergeom
    from sklearn.ensemble import ExtraTreesClassifier

    rows = pooled(a, b, least=4).numpy()
    random = _random(seed)
    places = [torch.randperm(len(part), generator=random).numpy() for part in (a, b)]
    learn = np.concatenate([places[0][: len(a) // 2], len(a) + places[1][: len(b) // 2]])
    told = np.delete(np.arange(len(rows)), learn)
    forest = ExtraTreesClassifier(min_samples_leaf=5, class_weight="balanced", random_state=seed)
    says_b = forest.fit(rows[learn], learn >= len(a)).predict(rows[told])
    is_b = told >= len(a)
    hits = np.array([(~says_b[~is_b]).mean(), says_b[is_b].mean()])
    se = np.sqrt((hits * (1 - hits) / [(~is_b).sum(), is_b.sum()]).sum()) / 2
    p_value = hypergeom.sf((says_b & is_b).sum() - 1, len(told), says_b.sum(), is_b.sum())
    return TwoSample("classifier accuracy", float(hits.mean()), 0.5, float(se), float(p_value))


def _random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pooled(a: Tensor, b: Tensor, least: int) -> Tensor:
    """All rows, flat, in float64, shape `(n + m, entries)`."""
    if min(len(a), len(b)) < least:
        raise Error(f"two sets of at least {least} rows are needed, got {len(a)} and {len(b)}")
    if a.shape[1:] != b.shape[1:]:
        raise Error(f"the rows differ in shape, {tuple(a.shape[1:])} and {tuple(b.shape[1:])}")
    pooled = torch.cat([rows.detach().cpu().double().flatten(1) for rows in (a, b)])
    if len(bad := torch.nonzero(~pooled.isfinite().all(-1))):
        row = int(bad[0])
        place = f"{row} of the first set" if row < len(a) else f"{row - len(a)} of the second set"
        raise Error(f"row {place} holds entries that are not finite")
    return pooled
