"""Rows as they are kept: bytes in memory, or a file that is larger than memory.

Rows of images are whole numbers from 0 to 255. Kept as bytes they take a quarter of the memory of
float32; a batch becomes numbers, and goes through the preprocessing, when it is taken.

Rows in a file are read when they are taken. An epoch visits them in a random order that a disk can
follow: the file is cut into *blocks* of adjacent rows, the blocks are put in random order, some of
them at a time are read into a *buffer*, and the rows of the buffer are put in random order. Each
row comes once an epoch, and the memory is that of the buffer whatever the size of the file. What
has to look at all rows goes through them piece by piece; what has to see many at once, such as
the start of a model, sees a buffer of rows drawn from all over the file.

On a device rows are kept whole where they fit; else a batch is copied while the one before it is
in use.
"""

import mmap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any, Protocol, TypeGuard

import numpy as np
import torch
from torch import Tensor

from pyrovae.batch import ENTRIES, Batch, Rows, as_rows
from pyrovae.transforms import Transform

BLOCK, BUFFER = 2**20, 2**26
"""Bytes of adjacent rows that stay together, and of rows that are in memory at a time."""
CPU = torch.device("cpu")
FileMap = np.memmap[Any, Any]


class Source(Protocol):
    """Where raw rows are kept: a `Batch`, or `InFile`."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any) -> Batch: ...


@dataclass(frozen=True, eq=False)
class InFile:
    """Rows of a file, on the CPU and in the file's type.

    Args:
        file: a map of the file, an array of the shape `(rows, *event)`.
        index: which of its rows, shape `(rows,)`.
        given: the other entries of a batch, for each row of the file, in memory.
        flatten: whether a row becomes a vector.
        complete: whether it is known that no entry of x is missing.
    """

    file: FileMap
    index: Tensor
    given: Mapping[str, Tensor]
    flatten: bool = False
    complete: bool = False

    def __reduce__(self) -> Any:
        file = self.file
        order = "C" if file.flags.c_contiguous else "F"
        place = (str(file.filename), file.dtype, "r", file.offset, file.shape, order)
        return _reopened, (place, self.index, dict(self.given), self.flatten, self.complete)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, rows: Any) -> Batch:
        index = self.index[rows]
        x = torch.from_numpy(_read(self.file, index.numpy()))
        batch = Batch(
            x.flatten(1) if self.flatten else x,
            **{name: entry[index] for name, entry in self.given.items()},
        )
        return batch.known_complete() if self.complete else batch

    def part(self, index: Tensor) -> "InFile":
        """Some of the rows, in the order of the file."""
        return replace(self, index=self.index[index].sort().values)


def _reopened(place: Any, *fields: Any) -> InFile:
    """The rows of the file at a place: a pickle has the place, not the rows."""
    return InFile(np.memmap(*place), *fields)


def _read(file: FileMap, index: Any) -> Any:
    """Rows of a file, by way of short-lived maps: what a map has read stays in memory with it."""
    order: Any = "C" if file.flags.c_contiguous else "F"
    x = np.empty((len(index), *file.shape[1:]), file.dtype.newbyteorder("="))
    rows = max(1, BLOCK // max(1, x[:1].nbytes))
    for first in range(0, len(index), rows):
        again: Any = np.memmap(str(file.filename), file.dtype, "r", file.offset, file.shape, order)
        x[first : first + rows] = again[index[first : first + rows]]
    return x


class Raw:
    """Rows that become numbers, and are preprocessed, with new noise, whenever they are taken.

    Args:
        source: the raw rows.
        steps: the preprocessing, in order.
        device: where batches are.
        dtype: of their numbers.
    """

    def __init__(
        self,
        source: Source,
        steps: Sequence[Transform] = (),
        device: torch.device = CPU,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.source, self.steps, self.device, self.dtype = source, steps, device, dtype

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, rows: Any) -> Batch:
        return self._taken(self.source[rows])

    def __getattr__(self, name: str) -> Any:
        if name in ENTRIES:
            return getattr(self[:], name)
        raise AttributeError(name)

    def _taken(self, raw: Batch) -> Batch:
        return prepared(raw.cast(self.device, self.dtype), self.steps, self.dtype)

    def to(self, device: torch.device, dtype: torch.dtype) -> "Raw":
        """The same rows on a device, or for it, where they are in a file or do not fit there.

        Raises:
            Error: differences between rows that the dtype cannot hold.
        """
        source = self.source
        if isinstance(source, Batch):
            source.refuse_rounding(dtype)
            source = source.cast(device if fits(source, device) else CPU, dtype)
        else:
            source[self._sample].refuse_rounding(dtype)
        return Raw(
            source, [deepcopy(step).to(device, dtype) for step in self.steps], device, dtype
        )

    @property
    def streamed(self) -> bool:
        """Whether the rows are too many for one batch."""
        source = self.source
        return not isinstance(source, Batch) or source.x.device.type != self.device.type

    @property
    def blocks(self) -> "Blocks":
        """All rows in order, a buffer of them at a time."""
        return Blocks(self, self._rows_in(BUFFER))

    def some(self) -> Batch:
        """As many rows as the buffer holds, in blocks from all over; the same at every call."""
        return self[self._sample]

    def shuffled(
        self, batch_size: int, generator: torch.Generator, done: int = 0
    ) -> Iterator[Batch]:
        """All rows in random order, by blocks and then within the buffer, in batches.

        The first ones, as many as are done, are left out.
        """
        left = islice(self._drawn(batch_size, generator), done, None)
        return map(self._taken, ahead(left, self.device))

    def _drawn(self, batch_size: int, generator: torch.Generator) -> Iterator[Batch]:
        batches = -(-len(self) // batch_size)
        buffers = min(batches, -(-len(self) // self._rows_in(BUFFER)))
        ends = [batches * buffer // buffers * batch_size for buffer in range(1, buffers)]
        for part in self._by_blocks(generator).tensor_split(ends):
            places = part.sort().values
            buffer = self.source[places]
            for chosen in torch.randperm(len(places), generator=generator).split(batch_size):
                yield buffer[chosen].replace(index=places[chosen])

    @property
    def _sample(self) -> Tensor:
        order = self._by_blocks(torch.Generator().manual_seed(0))
        return order[: self._rows_in(BUFFER)].sort().values

    def _by_blocks(self, generator: torch.Generator) -> Tensor:
        """The places of all rows, block by block, the blocks in random order."""
        blocks = torch.arange(len(self)).split(self._rows_in(BLOCK))
        order = torch.randperm(len(blocks), generator=generator)
        return torch.cat([blocks[block] for block in order])

    def _rows_in(self, size: int) -> int:
        """How many rows so many bytes hold."""
        return max(1, size // max(1, self.source[:1].x.numel() * self.dtype.itemsize))


@dataclass(frozen=True, eq=False)
class Blocks:
    """Rows in order, so many at a time, as often as they are gone through."""

    rows: Rows
    size: int

    def __iter__(self) -> Iterator[Batch]:
        return (
            self.rows[first : first + self.size] for first in range(0, len(self.rows), self.size)
        )


def prepared(raw: Batch, steps: Sequence[Transform], dtype: torch.dtype) -> Batch:
    """The batch as numbers after the steps, noise drawn now."""
    x = raw.x
    for step in steps:
        x = step.of_bytes(x, dtype) if x.dtype == torch.uint8 else step(x)
    return raw.replace(x=x.to(dtype))


def ahead(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """The batches; on a GPU each is copied there while the one before it is in use."""
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None
    now: Callable[[], Batch] | None = None
    for batch in batches:
        following = _copied(batch, stream) if stream else partial(_same, batch)
        if now:
            yield now()
        now = following
    if now:
        yield now()


def _same(batch: Batch) -> Batch:
    return batch


def _copied(batch: Batch, stream: torch.cuda.Stream) -> Callable[[], Batch]:
    """Begin to copy a batch to a GPU; what is returned waits for the copy."""
    with torch.cuda.stream(stream):
        copy = batch.map(lambda entry: entry.pin_memory().to(stream.device, non_blocking=True))
    copy, done = copy.incomplete_as(batch), stream.record_event()

    def arrived() -> Batch:
        user = torch.cuda.current_stream(stream.device)
        user.wait_event(done)
        for _, entry in copy.named:
            entry.record_stream(user)
        return copy

    return arrived


def fits(batch: Batch, device: torch.device) -> bool:
    """Whether rows leave half of what is free on a GPU; they are in the memory of a CPU anyway."""
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return batch.x.nbytes <= free / 2


def is_file(data: Any) -> TypeGuard[FileMap]:
    """Whether data are the map of a whole file of rows of numbers."""
    return (
        isinstance(data, np.memmap)
        and isinstance(data.base, mmap.mmap)
        and data.filename is not None
        and data.ndim > 1
        and data.dtype.kind in "biuf"
        and data.dtype.itemsize <= 8
    )


def in_file(file: FileMap, flatten: bool = False, **given: Tensor) -> InFile:
    """All rows of a file."""
    return InFile(file, torch.arange(len(file)), given, flatten)


def kept(data: Any, device: torch.device) -> Rows:
    """The rows of `as_rows`, raw where they are bytes, in a file, or too many for a device."""
    if is_file(data):
        return Raw(in_file(data))
    rows = as_rows(data)
    if isinstance(rows, Batch) and (rows.x.dtype == torch.uint8 or not fits(rows, device)):
        return Raw(rows)
    return rows
