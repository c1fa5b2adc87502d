r"""Exposure: how much of a row was looked at.

Counts of a deep and of a shallow sequencing run, of a long and of a short text differ in size
before they differ in kind. With a size factor e_i for each row,

    E[x_ij | h] = e_i mu_ij,        log(e_i mu_ij) = h_ij + log e_i,

so under a log link it is an *offset*, added to h. It is given with the rows, or taken from them:
the total of a row over the mean total of the training rows. Either way log p is that of x given e.
What is not made use of is that the entries have to add up to the total that e was made of: that is
worth something, and `Multinomial` does it.

This is written once for all families with a field `exposure`: they take these functions as their
methods, and log e beside h in their `forward`.
"""

from typing import Any, Literal

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.batch import Batch
from pyrovae.errors import Error
from pyrovae.families.family import Family

Exposure = Literal["none", "offset", "total"]
NONE = torch.zeros(())
"""Log e where no size is taken into account."""


def setup(family: Any, event: tuple[int, ...]) -> None:
    """As every family does, with a place for the mean total of the training rows."""
    Family.setup(family, event)
    family.typical = nn.Buffer(torch.ones(()))


def totals(family: Family, x: Tensor) -> Tensor:
    """The totals of rows `(..., *event)`, shape `(...)`."""
    return x.flatten(-len(family.event)).sum(-1)


@torch.no_grad()
def start(family: Any, x: Tensor) -> None:
    """Take the mean total of the training rows."""
    family.typical.copy_(totals(family, x).mean().clamp(min=1))


def conditions(family: Any) -> str:
    """What p(x | h) is given besides h."""
    return {"none": "", "offset": "the size factors", "total": "the row totals"}[family.exposure]


def log_exposure(family: Any, batch: Batch) -> Tensor:
    """Log e, shape `(rows, 1, ...)` with a one for each dimension of the event, or `()`."""
    if family.exposure == "total":
        e = totals(family, batch.x) / family.typical
    elif family.exposure == "offset" and batch.offset is not None:
        e = batch.offset
    else:
        return NONE  # also of rows to sample in place of, which come without size factors
    return e.log()[(..., *[None] * len(family.event))]


def given(family: Any, h: Tensor, batch: Batch) -> dist.Distribution:
    """p(x | h, e)."""
    return family(h, log_exposure(family, batch))


def blank(family: Any, x: Tensor) -> Tensor:
    """Rows with the mean total, spread over the entries."""
    return x + family.typical / family.event.numel() if family.exposure == "total" else x


def encode(_: Family, x: Tensor) -> Tensor:
    """log(1 + x): counts span orders of magnitude."""
    return x.log1p()


def check(family: Any, batch: Batch) -> None:
    """Refuse rows whose size is not known, or that come with a size which is not made use of."""
    name = f"{family.kind} with exposure = '{family.exposure}'"
    if family.exposure == "offset":
        if batch.offset is None:
            raise Error(
                f"{name} needs size factors: Batch(x, offset = ...), or data.offset in a spec"
            )
        batch.check()
    elif batch.offset is not None:
        raise Error(f"{name} ignores size factors: leave the offset out, or exposure = 'offset'")
    if family.exposure == "total":
        _refuse_unknown_totals(name, totals(family, batch.x))


def _refuse_unknown_totals(name: str, n: Tensor) -> None:
    if n.isnan().any():
        raise Error(f"{name} cannot skip single entries: drop or impute incomplete rows")
    if len(bad := torch.nonzero(n <= 0)):
        raise Error(
            f"{len(bad)} of {len(n)} rows have the total 0, such as row {bad[0].item()}, and no "
            "size: drop them, or pass size factors"
        )
