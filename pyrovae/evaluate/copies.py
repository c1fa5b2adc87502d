r"""Samples near training rows: are they more than copies?

A model that returns its training rows passes most tests against test rows. But to a model that has
not seen them, training rows are no different from test rows. Of N training and M test rows the
nearest one to a sample is then a training row with probability N / (N + M), *whatever* the model's
distribution, and the share of samples for which it is one is tested by random divisions of the
N + M rows. That samples lie closer to the training rows than test rows do (Mann-Whitney) says
less: samples that vary too little lie close to everything.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyrovae.evaluate.twosample import LEVEL, Array, TwoSample, permuted, pooled
from pyrovae.models.model import require_positive

HALFWAY = 0.5
"""The excess of training rows among nearest rows from which it is called memorisation."""


@dataclass(frozen=True, eq=False)
class Memorisation:
    """How near samples are to training rows, and how near they would be had none been seen.

    Args:
        distances: of each sample to the nearest training row, shape `(samples,)`.
        test_distances: of each test row likewise, shape `(rows,)`.
        nearest: the share of samples to which, of all training and test rows, a training row is
            the nearest.
        closer: the share of pairs in which a sample is closer to the training rows than a test
            row is.
        within: the share of samples that are closer to a training row than all other ones are.
        test_within: the share of test rows that are.
        copies: how many samples are equal to a training row.
        test_copies: how many test rows are.
    """

    distances: Array
    test_distances: Array
    nearest: TwoSample
    closer: TwoSample
    within: float
    test_within: float
    copies: int
    test_copies: int

    @property
    def excess(self) -> float:
        """How far the share of nearest rows is from chance, 0, on the way to 1, all of them."""
        return (self.nearest.statistic - self.nearest.expected) / (1 - self.nearest.expected)

    @property
    def found(self) -> bool:
        """Whether it is training rows that samples are near, at least half way from chance."""
        return self.nearest.p_value < LEVEL and self.excess >= HALFWAY

    @property
    def verdict(self) -> str:
        """What the figures say, in a clause."""
        nearest = self.nearest
        figures = (
            f"to {nearest.statistic:.1%} of samples the nearest row is a training row, "
            f"{nearest.expected:.1%} ± {nearest.se:.1%} by chance (p = {nearest.p_value:.2g})"
        )
        if self.found:
            return f"memorisation: {figures}"
        if nearest.p_value < LEVEL:
            return f"samples lean towards training rows, as of an overfitted model: {figures}"
        if self.closer.p_value < LEVEL:
            return f"samples vary too little, and memorise nothing: {figures}"
        return f"no sign of memorisation: {figures}"

    def summary(self) -> dict[str, Any]:
        """The figures, as they are written to results.json."""
        return {
            "nearest": self.nearest.summary(),
            "closer": self.closer.summary(),
            "within": self.within,
            "test_within": self.test_within,
            "copies": self.copies,
            "test_copies": self.test_copies,
            "samples": len(self.distances),
        }

    def lines(self) -> Iterator[tuple[str, ...]]:
        """The lines of a table; what is expected of copies is what test rows show."""
        yield self.nearest.cells()
        yield self.closer.cells()
        yield self._share("closer to a training row than others", self.within, self.test_within)
        copies = self.copies / len(self.distances)
        test_copies = self.test_copies / len(self.test_distances)
        yield self._share("equal to a training row", copies, test_copies)

    @staticmethod
    def _share(name: str, samples: float, test: float) -> tuple[str, ...]:
        return name, f"{samples:.3g}", f"{test:.3g}", "-", "-"


def memorisation(
    samples: Tensor, train: Tensor, test: Tensor, *, permutations: int = 200, seed: int = 0
) -> Memorisation:
    """Whether samples are nearer to training rows than they would be had none been seen.

    A Non-Parametric Test to Detect Data-Copying in Generative Models (Meehan, Chaudhuri &
    Dasgupta, 2020, https://arxiv.org/abs/2004.05675), which compares the distances of samples and
    of test rows to the training rows; beside it the share of samples whose nearest row is a
    training row. Which rows are test rows is to have been chosen at random.

    Args:
        samples: of a model, shape `(samples, *event)`.
        train: the rows that it was trained on, shape `(N, *event)`.
        test: rows that it was not trained on, shape `(M, *event)`.
        permutations: how often training and test rows are divided at random.
        seed: of the divisions.

    Raises:
        Error: fewer than two rows, or entries that are not finite.
    """
    from scipy.stats import mannwhitneyu

    require_positive(permutations, "permutations")
    known, drawn = pooled(train, test, 2), pooled(samples, test, 2)[: len(samples)]
    known, drawn = known - known[0], drawn - known[0]  # distances lose digits far from zero
    train, test = known.split([len(train), len(test)])
    random = np.random.default_rng(seed)
    distinct, which, times = known.unique(dim=0, return_inverse=True, return_counts=True)
    met = torch.from_numpy(_nearest(drawn, distinct)[1]).bincount(minlength=len(distinct))
    weight = (met / times / len(drawn))[which].numpy()  # equal rows are nearest together
    null = [random.permutation(weight)[: len(train)].sum() for _ in range(permutations)]
    (d, at), (test_d, test_at) = _nearest(drawn, train), _nearest(test, train)
    touched, back = np.unique(np.concatenate([at, test_at]), return_inverse=True)
    gap, test_gap = np.split(_nearest(train[touched], train, itself=touched)[0][back], [len(at)])
    u, p_value = mannwhitneyu(test_d, d, alternative="greater", method="asymptotic")
    pairs = len(d) * len(test_d)
    return Memorisation(
        distances=d,
        test_distances=test_d,
        nearest=permuted(
            "nearest row is a training row",
            float(weight[: len(train)].sum()),
            len(train) / len(known),
            np.array(null),
        ),
        closer=TwoSample(
            "closer to training rows than a test row",
            statistic=float(u / pairs),
            expected=0.5,
            se=math.sqrt((len(d) + len(test_d) + 1) / (12 * pairs)),
            p_value=float(p_value),
        ),
        within=float((d < gap).mean()),
        test_within=float((test_d < test_gap).mean()),
        copies=int((d == 0).sum()),
        test_copies=int((test_d == 0).sum()),
    )


def _nearest(
    rows: Tensor, others: Tensor, itself: NDArray[np.intp] | None = None
) -> tuple[Array, NDArray[np.intp]]:
    """The distance of each row to the nearest of others, and which that is.

    Args:
        rows: shape `(rows, entries)`.
        others: shape `(others, entries)`.
        itself: the place of each row among the others, where it is one of them and does not count.
    """
    found = []
    for chosen in torch.arange(len(rows)).split(max(1, 2**24 // len(others))):
        d = torch.cdist(rows[chosen], others)
        if itself is not None:
            d[torch.arange(len(chosen)), torch.as_tensor(itself)[chosen]] = torch.inf
        found.append(d.argmin(-1))
    index = torch.cat(found)
    return (rows - others[index]).norm(dim=-1).numpy(), index.numpy()
