r"""Whether rows look like rows of the model: predictive checks.

A row x that the model has not seen, and L new ones x_1, ..., x_L ~ p(x): if the model is right,
the rank of an entry of x among theirs is uniform, and so is that of any number T(x) that sums a
row up. The rank says where an entry is in its marginal p(x_i), its PIT value (Probabilistic
Forecasts, Calibration and Sharpness, Gneiting, Balabdaoui & Raftery, 2007). Each row has L draws
of its own, given its own context, size factor and total, so that ranks are independent; ties,
which discrete entries have, are broken at random. The test is that of
`pyrovae.evaluate.uniformity`.

How entries go together is seen by T alone. Draws of p(x | z), z ~ q(z | x), are no alternative:
they have seen x, and its rank among them is near the middle where the model is right, too.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor

from pyrovae.batch import Batch
from pyrovae.errors import Error
from pyrovae.evaluate.uniformity import LEAST, Uniformity, listed, pit, refuse_few
from pyrovae.evaluate.weights import BLOCK, Array, checked, evaluating
from pyrovae.models import Model
from pyrovae.part import validated
from pyrovae.report import Table, entries

ROUNDING = 1e-12
"""The relative difference up to which two sums are the same."""
Statistic = Callable[[Tensor], Tensor]
"""T: rows `(rows, *x)`, NaN where an entry is missing, to one number each, `(rows,)`."""


@dataclass(frozen=True, eq=False)
class PredictiveCheck:
    """The ranks of entries and statistics of rows among those of the model's rows.

    Args:
        test: the ranks and whether they are uniform.
        left_out: what was not ranked, and why, a sentence each.
        given: what the rows are conditioned on, empty for nothing.
    """

    test: Uniformity
    left_out: tuple[str, ...] = ()
    given: str = ""

    @property
    def fits(self) -> bool:
        """Whether all ranks pass for uniform."""
        return not any(self.test.findings)

    @property
    def verdict(self) -> str:
        """What the ranks say of the model, in a sentence."""
        p = f"p(x | {self.given})" if self.given else "p(x)"
        told = f"{len(self.test.pit)} rows, {len(self.test.names)} quantities"
        if self.fits:
            least = self.test.adjusted.min()
            return (
                f"Rows pass for draws of {p}, entry by entry (smallest p = {least:.2g}; {told})."
            )
        return f"Rows are not draws of {p}: those are {self.test.sentence()} ({told})."

    def summary(self) -> dict[str, float]:
        """The figures of all quantities together."""
        return self.test.summary()

    def table(self, most: int = 20) -> Table:
        """One line a quantity, from the one that deviates most clearly.

        Args:
            most: how many lines.
        """
        return self.test.table("the model's", self.left_out, most)

    def __str__(self) -> str:
        return f"{self.table()}\n\n{self.verdict}"


@validated
def predictive_check(
    model: Model,
    data: Any,
    *,
    draws: PositiveInt = 99,
    statistic: Statistic | None = None,
    seed: NonNegativeInt = 0,
    device: str | None = None,
    dtype: Literal["float32", "float64"] | None = None,
) -> PredictiveCheck:
    """The place of each entry of rows, and of what sums a row up, among draws of the model.

    Args:
        model: a fitted model; it is as it was, to the bit, afterwards.
        data: rows that it was not fitted to, shape `(rows, *x)`, raw. Missing entries are skipped.
        draws: rows of the model for each of them, L.
        statistic: a function T of rows `(rows, *x)`, one number each, `(rows,)`, to be checked
            beside the mean, standard deviation, smallest and largest entry of a row.
        seed: of the draws.
        device: where to compute, such as `cuda`; the model's own unless given.
        dtype: `float32` or `float64`; the model's own unless given.

    Raises:
        Error: fewer than 20 rows; rows that the model cannot have generated; nothing to check.
    """
    with evaluating(model, seed, device, dtype) as place:
        batch = checked(model, data, place)
        refuse_few(len(batch))
        parts = [
            _ranked(model, rows, draws, statistic) for rows in batch.split(max(1, BLOCK // draws))
        ]
    names = _names(model, statistic)
    truth, u = (np.concatenate(column) for column in zip(*parts, strict=True))
    if len(bad := np.argwhere(np.isnan(u) & ~np.isnan(truth))):
        raise Error(f"draws of {names[bad[0, 1]]} are not numbers, first for row {bad[0, 0]}")
    few = (~np.isnan(truth)).sum(0) < LEAST
    same = ~few & ~(np.nanmax(truth, 0, initial=-np.inf) > np.nanmin(truth, 0, initial=np.inf))
    keep = ~few & ~same
    if not keep.any():
        raise Error(f"nothing to check: no column has {LEAST} entries that are not all the same")
    left_out = [
        f"Left out for {why} ({which.sum()}): {listed([names[i] for i in np.flatnonzero(which)])}."
        for why, which in (("being constant", same), (f"fewer than {LEAST} entries", few))
        if which.any()
    ]
    chosen = tuple(names[i] for i in np.flatnonzero(keep))
    return PredictiveCheck(Uniformity(chosen, u[:, keep], draws), tuple(left_out), model.tag.given)


def _names(model: Model, statistic: Statistic | None) -> list[str]:
    """The names of the columns, and of what sums a row up."""
    places = entries("x", model.event)
    names = [*model.names] if len(model.names) == len(places) else places
    whole = ["mean of x", "sd of x", "min of x", "max of x"] if len(places) > 1 else []
    return [*names, *whole, *(["T(x)"] if statistic else [])]


def _ranked(
    model: Model, batch: Batch, draws: int, statistic: Statistic | None
) -> tuple[Array, Array]:
    """The quantities of rows, and their PIT values, each `(rows, quantities)`."""
    missing = batch.x.isnan()
    x = model.sample(batch.map(lambda entry: entry.repeat(draws, *[1] * (entry.dim() - 1))))
    x = x.unflatten(0, (draws, len(batch))).masked_fill(missing, torch.nan)
    truth, drawn = _quantities(batch.x, statistic), _quantities(x.flatten(0, 1), statistic)
    u = pit(truth, drawn.unflatten(0, (draws, len(batch))), ROUNDING)
    return truth.cpu().numpy(), u


def _quantities(x: Tensor, statistic: Statistic | None) -> Tensor:
    """The entries of rows and what sums them up, `(rows, quantities)`."""
    flat = x.flatten(1).double()
    columns = [flat]
    if flat.shape[1] > 1:
        missing = flat.isnan()
        mean = flat.nanmean(1, keepdim=True)
        sd = (flat - mean).square().nanmean(1, keepdim=True).sqrt()
        low = flat.masked_fill(missing, torch.inf).amin(1, keepdim=True)
        high = flat.masked_fill(missing, -torch.inf).amax(1, keepdim=True)
        none = missing.all(1, keepdim=True)
        columns += [mean, sd, low.masked_fill(none, torch.nan), high.masked_fill(none, torch.nan)]
    if statistic:
        value = statistic(x)
        if not isinstance(value, Tensor) or value.shape != x.shape[:1]:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise Error(
                f"should give one number a row, shape {tuple(x.shape[:1])}, got {got}", "statistic"
            )
        columns.append(value[:, None].double())
    return torch.cat(columns, 1)
