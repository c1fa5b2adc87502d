r"""Samples against data: could they be test rows, and are they more than copies of training rows?

For a distance between rows their entries have to be comparable. A class is a name, a count spans
orders of magnitude, and one column is in metres, another in grams: rows are taken as the
likelihood's encoder sees them, and each entry in units of its standard deviation.

What a model says of x given c is right if *pairs* (c, x) cannot be told from pairs of test rows. A
sample that shared its c with a test row in the comparison would not be independent of it. So half
of the test rows lend their c to samples, and the other half are what these are compared with.
"""

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, NonNegativeInt
from torch import Tensor

from pyrovae.batch import Batch
from pyrovae.errors import Error
from pyrovae.evaluate.copies import Memorisation, memorisation
from pyrovae.evaluate.twosample import LEVEL, TwoSample, c2st, mmd
from pyrovae.evaluate.weights import checked, evaluating
from pyrovae.families import Columns, Family
from pyrovae.models import Model
from pyrovae.part import validated
from pyrovae.report import Table
from pyrovae.transforms import spread

LEAST = 20
"""With fewer rows on a side only gross differences would be seen."""

FAR = 10.0
"""The standard deviations from the mean beyond which all entries are as far."""


@dataclass(frozen=True, eq=False)
class SampleGrade:
    """Samples of a model against test rows, and against training rows where these were given.

    Args:
        rows: how many test rows there were, and as many samples.
        mmd: the maximum mean discrepancy of the two.
        classifier: how well a classifier tells them apart.
        memorisation: how near samples are to training rows.
        given: what rows and samples are conditioned on, which the tests see beside them.
    """

    rows: int
    mmd: TwoSample
    classifier: TwoSample
    memorisation: Memorisation | None = None
    given: str = ""

    @property
    def differ(self) -> bool:
        """Whether a test tells samples from test rows."""
        return min(self.mmd.p_value, self.classifier.p_value) < LEVEL

    @property
    def verdict(self) -> str:
        """What the figures say, in a sentence."""
        return "; ".join(self._clauses()) + "."

    def _clauses(self) -> Iterator[str]:
        given = f", given {self.given}" if self.given else ""
        yield (
            f"samples {'can' if self.differ else 'cannot'} be told from {self.rows} test rows"
            f"{given} (MMD p = {self.mmd.p_value:.2g}, classifier accuracy "
            f"{self.classifier.statistic:.1%} ± {self.classifier.se:.1%})"
        )
        if self.memorisation is not None:
            yield self.memorisation.verdict

    def summary(self) -> dict[str, Any]:
        """The figures, as they are written to results.json."""
        return {
            "rows": self.rows,
            "mmd": self.mmd.summary(),
            "classifier": self.classifier.summary(),
            "memorisation": self.memorisation and self.memorisation.summary(),
            "given": self.given,
            "verdict": self.verdict,
        }

    def table(self) -> Table:
        """One line a statistic: its value, what is expected where nothing is wrong, its error."""
        lines = [self.mmd.cells(), self.classifier.cells()]
        lines += self.memorisation.lines() if self.memorisation else ()
        return Table(("samples", "value", "expected", "error", "p"), lines)

    def __str__(self) -> str:
        return f"{self.table()}\n\n{textwrap.fill(self.verdict, 80)}"


@validated
def grade_samples(
    model: Model,
    test: Any,
    train: Any = None,
    *,
    rows: Annotated[int, Field(ge=LEAST)] = 1000,
    permutations: Annotated[int, Field(ge=100)] = 200,
    seed: NonNegativeInt = 0,
    device: str | None = None,
    dtype: Literal["float32", "float64"] | None = None,
) -> SampleGrade:
    """Whether samples can be told from test rows, and whether they are copies of training rows.

    Rows are compared as an encoder sees them, classes one-hot and counts on a log scale, in
    standard deviations. What they are conditioned on stands beside them; samples take it from the
    other half of the test rows. They miss the entries that those miss, and what is missing counts
    as the median of its column.

    Args:
        model: a fitted model; it is as it was, to the bit, afterwards.
        test: rows that it was not trained on, shape `(rows, *x)`, raw.
        train: the rows that it was trained on, to look for copies.
        rows: how many samples, and how many test rows at most, chosen at random.
        permutations: random divisions for each p-value.
        seed: of everything random.
        device: where to sample, such as `cuda`; the model's own unless given.
        dtype: `float32` or `float64`; the model's own unless given.

    Raises:
        Error: rows that the model cannot have generated, or too few; samples that are not finite.

    Example:
        >>> from pyrovae import Mixture
        >>> model = Mixture(x=(2,), family="fixed-normal")
        >>> grade_samples(model, model.sample(100, seed=1)).differ
        False
    """
    with evaluating(model, seed, device, dtype) as place:
        own, others = _divided(model, checked(model, test, place), rows)
        count = len(own) if train is None else rows
        drawn = _drawn(model, others[torch.arange(count) % len(others)])
        both = [[_seen(model, part.x, own.x), *_given(part)] for part in (own, drawn)]
        references = [_reference(*entries) for entries in zip(*both, strict=True)]
        (x, *beside), (samples, *drawn_beside) = (
            [_standard(*entries) for entries in zip(part, references, strict=True)]
            for part in both
        )
        near = None
        if train is not None:
            seen = _seen(model, checked(model, train, place).x, own.x)
            known = _standard(seen, references[0])
            near = memorisation(samples, known, x, permutations=permutations, seed=seed)
    a = torch.cat([samples, *drawn_beside], -1)[: len(own)]
    b = torch.cat([x, *beside], -1)
    return SampleGrade(
        rows=len(own),
        mmd=mmd(a, b, permutations=permutations, seed=seed),
        classifier=c2st(a, b, seed=seed),
        memorisation=near,
        given=model.tag.given,
    )


def _divided(model: Model, batch: Batch, rows: int) -> tuple[Batch, Batch]:
    """Test rows, and as many in whose place samples stand: others, if it matters which."""
    given = model.tag.given or batch.context is not None or batch.offset is not None
    halves = 2 if given or batch.incomplete else 1
    n = min(rows, len(batch) // halves)
    if n < LEAST:
        raise Error(f"{LEAST * halves} test rows are needed at least, got {len(batch)}", "test")
    order = torch.randperm(len(batch))
    return batch[order[:n]], batch[order[-n:]]


def _drawn(model: Model, batch: Batch) -> Batch:
    """Samples in place of rows, missing where these are."""
    x = torch.cat([model.sample(part) for part in batch.split(256)])
    if bad := int((~x.isfinite().flatten(1).all(-1)).sum()):
        raise Error(f"{bad} of {len(x)} samples are not finite", "model")
    return batch.replace(x=torch.where(batch.x.isnan(), batch.x, x))


def _seen(model: Model, x: Tensor, own: Tensor) -> Tensor:
    """Rows as an encoder sees them, of a table without what it has learned of classes.

    A missing entry is filled with the median of test rows, which is in any support.
    """
    family: Family | None = getattr(model, "observation", None)
    median = own.nanmedian(0).values
    filling = torch.where(median.isnan(), getattr(family, "inside", 0.0), median)
    x = torch.where(x.isnan(), filling, x)
    if isinstance(family, Columns):
        parts = zip(family.columns.values(), x.split(1, -1), strict=True)
        return torch.cat([part.encode(column).flatten(1) for part, column in parts], -1)
    return x if family is None else family.encode(x)


def _given(batch: Batch) -> list[Tensor]:
    context = [] if batch.context is None else [batch.context.flatten(1)]
    return context if batch.offset is None else [*context, batch.offset.log()[:, None]]


def _reference(own: Tensor, drawn: Tensor) -> Tensor:
    """What the units are taken from: test rows, and as many samples.

    The units of test rows alone would suit these better than samples from the same distribution.
    Samples are held to about the range of test rows, so that a few cannot make up the spread.
    """
    low, high = own.amin(0), own.amax(0)
    return torch.cat([own, drawn[: len(own)].clamp(2 * low - high, 2 * high - low)])


def _standard(x: Tensor, reference: Tensor) -> Tensor:
    """Rows in standard deviations of reference rows from their mean, shape `(rows, entries)`.

    Zeros and ones, of which a rare one would be far from all, count as evenly distributed, and the
    entries of an image, which are all in one unit, have one standard deviation.
    """
    x, reference = x.cpu().double(), reference.cpu().double()
    mean, sd = reference.mean(0), spread(reference)
    sd = torch.where(((reference == 0) | (reference == 1)).all(0), 0.5, sd)
    if x.dim() > 2:
        sd = spread((reference - mean).reshape(-1, 1))
    return ((x - mean) / sd).clamp(-FAR, FAR).flatten(1)
