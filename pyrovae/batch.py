"""What travels through models, objectives and evaluation: a batch of rows.

Every function of the package takes a `Batch`, so that conditioning, labels and size factors never
need a new signature. A tensor, an array or a data frame is accepted wherever rows are expected and
wrapped.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Protocol, Self, TypeGuard

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pyrovae.errors import Error

ENTRIES = ("x", "context", "labels", "offset")
"""What a batch holds beside the index of its rows, in order."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows of data with what they are conditioned on.

    Args:
        x: the data, shape `(rows, *event)`; NaN where an entry is missing.
        context: what the model is conditioned on, shape `(rows, *context)`.
        labels: whole numbers from 0, shape `(rows,)`; -1 where a label is missing.
        offset: size factors (exposures), positive, shape `(rows,)`.
        index: in training, the places of the rows among the training rows, shape `(rows,)`.
    """

    x: Tensor
    context: Tensor | None = None
    labels: Tensor | None = None
    offset: Tensor | None = None
    index: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows: Any) -> Self:
        """The rows of an index tensor or a slice."""
        if isinstance(rows, Tensor) and rows.dtype == torch.int64:
            some = self.map(lambda entry: entry.index_select(0, rows.to(entry.device)))
        else:
            some = self.map(lambda entry: entry[rows])
        return some if self.incomplete else some.known_complete()

    def replace(self, **entries: Tensor) -> Self:
        """The batch with other entries; what is missing in x stays missing."""
        other = replace(self, **entries)
        return other if self.incomplete else other.known_complete()

    def transformed(self, function: Callable[[Tensor], Tensor]) -> Self:
        """The batch with `function(x)` for x, NaN where x is."""
        return replace(self, x=function(self.x)).incomplete_as(self)

    def incomplete_as(self, other: "Batch") -> Self:
        """The batch, known to miss entries of x if the other one does."""
        self.__dict__["incomplete"] = other.incomplete
        return self

    def known_complete(self) -> Self:
        """The batch, known to miss no entry of x."""
        self.__dict__["incomplete"] = False
        return self

    @cached_property
    def incomplete(self) -> bool:
        """Whether entries of x are missing, which is looked up once for all parts of a batch."""
        return self.x.is_floating_point() and bool(self.x.isnan().any())

    def filled(self, inside: float | Tensor = 0.0) -> Self:
        """The batch with each missing entry drawn from those of its column that are there.

        Args:
            inside: what a column without any is filled with: a number, or one for each entry.
        """
        if not self.incomplete:
            return self
        x = self.x.flatten(1).clone()
        instead = (torch.zeros_like(self.x[0]) + inside).flatten()
        for column, number in zip(x.mT, instead, strict=True):
            missing = column.isnan()
            there = column[~missing]
            chosen = torch.randint(max(len(there), 1), (int(missing.sum()),)).to(x.device)
            column[missing] = there[chosen] if len(there) else number
        return replace(self, x=x.unflatten(1, self.x.shape[1:]))

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """The batch with `function` applied to every entry that is there."""
        return type(self)(**{name: function(entry) for name, entry in self.named})

    @property
    def named(self) -> Iterator[tuple[str, Tensor]]:
        """The entries that are there, by name."""
        entries = ((field.name, getattr(self, field.name)) for field in fields(self))
        return ((name, entry) for name, entry in entries if entry is not None)

    def unsqueeze(self, dims: int) -> Self:
        """The rows with dimensions of size one behind the first, to stand against a table."""
        spread = self.map(lambda entry: entry.reshape(len(entry), *[1] * dims, *entry.shape[1:]))
        return spread.incomplete_as(self)

    def to(self, device: torch.device, dtype: torch.dtype) -> Self:
        """The batch on a device; labels and index stay whole, all other entries take the dtype.

        Raises:
            Error: differences between rows of x that the dtype cannot hold.
        """
        self.refuse_rounding(dtype)
        batch = self.cast(device, dtype)
        return replace(batch, x=batch.x.to(dtype)).incomplete_as(batch)

    def cast(self, device: torch.device, dtype: torch.dtype) -> Self:
        """As `to`, unchecked, with bytes in x left what they are."""

        def placed(name: str, entry: Tensor) -> Tensor:
            whole = name in ("labels", "index") or (name == "x" and entry.dtype == torch.uint8)
            return entry.to(device) if whole else entry.to(device, dtype)

        return replace(
            self, **{name: placed(name, entry) for name, entry in self.named}
        ).incomplete_as(self)

    def refuse_rounding(self, dtype: torch.dtype) -> None:
        """Refuse differences between rows that the dtype cannot hold."""
        _refuse_rounding("x", self.x, dtype)
        if self.context is not None:
            _refuse_rounding("context", self.context, dtype)

    def check(self) -> None:
        """Refuse entries that rows cannot be given; looked up for all rows at once, before a fit.

        Raises:
            Error: another number of rows, a context that is not finite, labels that are not whole
                numbers, an offset that is not positive.
        """
        _refuse_misaligned(self)
        if self.context is not None and not self.context.isfinite().all():
            raise Error("the context holds NaN or infinite values: only x can be missing")
        if self.labels is not None and (self.labels.dtype != torch.int64 or self.labels.ndim > 1):
            raise Error(
                "labels are whole numbers of the type torch.int64, shape (rows,), got "
                f"{self.labels.dtype}, {tuple(self.labels.shape)}"
            )
        if self.offset is not None:
            if self.offset.ndim > 1:
                raise Error(f"the offset has the shape (rows,), got {tuple(self.offset.shape)}")
            if len(bad := torch.nonzero(~((self.offset > 0) & self.offset.isfinite()))):
                raise Error(
                    f"size factors, the offset, are positive, got {self.offset[bad[0]].item():g} "
                    f"in row {bad[0].item()}"
                )

    def split(self, size: int) -> Iterator["Batch"]:
        """Batches of `size` rows, the last one of what is left."""
        return (self[first : first + size] for first in range(0, len(self), size))

    @property
    def entries(self) -> tuple[Tensor, ...]:
        """What was given, in order: the arguments of a plain Pyro model."""
        given = (getattr(self, name) for name in ENTRIES)
        return tuple(entry for entry in given if entry is not None)

    @property
    def parts(self) -> tuple[Any, ...]:
        """All that a program can read of the batch, given or not."""
        return self.x, self.context, self.labels, self.offset, self.index, self.incomplete


pytree.register_dataclass(Batch)


def _refuse_misaligned(batch: Batch) -> None:
    for field in fields(batch):
        entry = getattr(batch, field.name)
        if entry is not None and not isinstance(entry, Tensor):
            raise Error(f"the {field.name} of a batch is a tensor, got {type(entry).__name__}")
        if entry is not None and entry.shape[:1] != batch.x.shape[:1]:
            wanted = (len(batch.x), *entry.shape[1:])
            raise Error(
                f"the {field.name} of {len(batch.x)} rows should have the shape {wanted}, "
                f"got {tuple(entry.shape)}"
            )


def _refuse_rounding(name: str, x: Tensor, dtype: torch.dtype) -> None:
    if x.dtype != torch.float64 or dtype == torch.float64 or len(x) < 2:
        return
    x = torch.where(x.isnan(), x.nanmean(0), x)
    error, sd = (x - x.to(dtype)).abs().amax(0), x.std(0)
    if len(bad := torch.nonzero((sd > 0) & (error > 1e-2 * sd))):
        raise Error(
            f"{dtype} is too coarse for the entries {bad[0].tolist()} of {name}, whose standard "
            f"deviation is {sd[tuple(bad[0])]:g}: pass dtype = 'float64', or subtract their mean"
        )


class Rows(Protocol):
    """Rows that give out batches: a `Batch`, or rows that are preprocessed or read when taken."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any) -> Batch: ...

    def to(self, device: torch.device, dtype: torch.dtype) -> "Rows":
        """The same rows on a device."""
        ...


class ManyRows(Rows, Protocol):
    """Rows that can be too many for one batch, and say so, `streamed`; see `Raw`."""

    @property
    def streamed(self) -> bool: ...

    @property
    def blocks(self) -> Iterable[Batch]: ...

    def some(self) -> Batch: ...

    def shuffled(
        self, batch_size: int, generator: torch.Generator, done: int = 0
    ) -> Iterator[Batch]: ...


def as_rows(data: Any) -> Rows:
    """Rows from a `Batch`, a tensor, an array, a data frame, or anything that is rows already.

    Raises:
        Error: the data are not numbers, or have no row; entries of a batch differ in length.
    """
    rows = data if hasattr(data, "to") and not isinstance(data, Tensor) else Batch(_tensor(data))
    if isinstance(rows, Batch):
        _refuse_misaligned(rows)
    if len(rows) == 0:
        raise Error("the data have no row")
    return rows


def as_batch(data: Any) -> Batch:
    """All rows of `as_rows(data)` in one batch."""
    rows = as_rows(data)
    return rows if isinstance(rows, Batch) else rows[:]


def gathered(rows: Rows) -> Rows:
    """The rows in one batch, noise drawn now, unless they are too many for that."""
    return rows if streamed(rows) else as_batch(rows)


def in_blocks(rows: Rows) -> Iterable[Batch]:
    """All rows in order, in one batch or, where they can be too many, in several."""
    if isinstance(rows, Batch):
        return (rows,)
    return rows.blocks if hasattr(rows, "blocks") else (rows[:],)


def beginning(rows: Rows) -> Batch:
    """The rows that a model starts at: all, or a sample where they are too many."""
    return rows.some() if streamed(rows) else as_batch(rows)


def streamed(rows: Rows) -> TypeGuard[ManyRows]:
    """Whether the rows are too many for one batch."""
    return getattr(rows, "streamed", False)


def _tensor(data: Any) -> Tensor:
    if isinstance(data, Tensor):
        tensor = data
    else:
        array = np.asarray(data)
        if array.dtype.kind not in "biuf":
            hint = ": pass data.train or data.test" if hasattr(data, "test") else ""
            raise Error(f"the data should be numbers, got an array of type {array.dtype}{hint}")
        tensor = torch.tensor(np.ascontiguousarray(array))
    if tensor.ndim < 2:
        raise Error(f"the data should have the shape (rows, *event), got {tuple(tensor.shape)}")
    return tensor
