"""Data: named sets, files, arrays and frames, as rows to train on, to judge by and to test with.

The split is a function of the seed; a set with an official test part keeps it. Noise of the
preprocessing is drawn anew at every use of a training row, and once, by the seed, for validation
and test rows: all models are tested on the same x. Training rows that are bytes stay bytes, and
the rows of a large file stay there, see `stored`.

What a row is given (a context, a label, a size factor) is read beside x and stays with its row.
NaN in x is a missing entry; whether a model can do without it is for the model to say.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, NonNegativeInt
from torch import Tensor

from pyrovae.batch import ENTRIES, Batch, Rows, in_blocks
from pyrovae.columns import Levels
from pyrovae.conditions import Column, Context, conditions
from pyrovae.errors import Error
from pyrovae.models import Model, Transformed
from pyrovae.part import validated
from pyrovae.place import seeded
from pyrovae.sources import Table, named, read, table
from pyrovae.stored import CPU, InFile, Raw, in_file, is_file, prepared
from pyrovae.transforms import Transform

Fraction = Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True, eq=False)
class Data:
    """Rows for training, validation and test.

    Args:
        name: of the set.
        train: rows to fit; noisy where the preprocessing is.
        validation: rows for early stopping and choices; `None` where the fraction is 0.
        test: rows that nothing is fitted or chosen on; both are a `Batch`, or rows in a file.
        columns: their names, for tables.
        quantised: whether all values are whole, for which a density would be without bound.
        transforms: the invertible steps, which go into the model.
        fingerprint: of the values, of what rows are given, and of the split.
        classes: the names of the labels 0, 1, ...; empty without labels.
        levels: of each column that is a category, the names of its codes 0, 1, ..., or in a
            context of its columns of zeros and ones.
    """

    name: str
    train: Rows
    validation: Batch | Raw | None
    test: Batch | Raw
    columns: tuple[str, ...]
    quantised: bool
    transforms: tuple[Transform, ...]
    fingerprint: str
    classes: Levels = ()
    levels: Mapping[str, Levels] = field(default_factory=dict)

    @property
    def event(self) -> tuple[int, ...]:
        """The shape of one row."""
        return tuple(self.test[:1].x.shape[1:])

    @property
    def context(self) -> tuple[int, ...] | None:
        """The shape of the context of one row, `None` without a context."""
        context = self.test[:1].context
        return None if context is None else tuple(context.shape[1:])

    @property
    def declares(self) -> dict[str, Any]:
        """The fields of a model that the data decide: x, and context and classes if given."""
        known = {"x": self.event, "context": self.context, "classes": len(self.classes)}
        return {name: value for name, value in known.items() if value}

    def wrap(self, model: Model) -> Model:
        """The model behind each invertible transform that it has not yet, with its Jacobian.

        Raises:
            Error: a density for whole levels, or a transform before a model of probabilities.
        """
        carried = list(_transforms(model))
        for transform in reversed(self.transforms):
            if transform.spec() not in carried:
                model = Transformed(base=model, transform=deepcopy(transform))
        self._refuse_density_of_levels(model)
        return model

    def rows_of(self, model: Model, *names: str) -> tuple[Any, ...]:
        """The named rows, for a model that they can be given to.

        Raises:
            Error: a model that lacks an invertible transform of the data, or a density for levels.
        """
        self._refuse_density_of_levels(model)
        carried = list(_transforms(model))
        for transform in self.transforms:
            if transform.spec() not in carried:
                raise Error(
                    f"these data go through {transform.kind}: use data.wrap(model)", "model"
                )
        return tuple(getattr(self, name) for name in names)

    def _refuse_density_of_levels(self, model: Model) -> None:
        if self.quantised and "lebesgue" in model.tag.measure:
            raise Error(
                f"the values of '{self.name}' are whole levels, of which a density has no bound: "
                "add the transform 'dequantize', or choose a likelihood of probabilities"
            )


def _transforms(model: Model) -> Iterator[dict[str, Any]]:
    while isinstance(model, Transformed):
        yield model.transform.spec()
        model = model.base


@validated
def load(
    data: Any = None,
    *,
    name: str | None = None,
    path: str | None = None,
    columns: tuple[str, ...] | None = None,
    categories: tuple[str, ...] = (),
    context: Context = None,
    labels: Column = None,
    offset: Column = None,
    transforms: tuple[Transform, ...] = (),
    validation: Fraction = 0.15,
    test: Annotated[float, Field(gt=0, lt=1)] = 0.2,
    flatten: bool = False,
    seed: NonNegativeInt = 0,
) -> Data:
    """Load rows, preprocess and split them.

    NaN in x is a missing entry, for models with `missing = true`. In the sets of scikit-learn and
    mnist the class of a row is a column beside x, called "target".

    The rows of an npy file from 1 GiB on, and of a `numpy.memmap` of any size, stay in the file.
    They are looked at once, block by block, and read where they are used; validation and test
    rows to which random noise is added are held in memory.

    Args:
        data: an array, a tensor or a data frame, shape `(rows, *x)`, or a name or path as below.
        name: `digits` (unless something else is given), `wine`, `breast-cancer`, `iris` or
            `mnist`.
        path: a file (npy, npz, csv, parquet, idx, gzipped or not); for `mnist` the folder of its
            idx files.
        columns: those of a table to use as x; all that are not named below unless given.
        categories: columns, of words or numbers, whose levels become codes 0, 1, ... in x, or
            columns of zeros and ones in a context.
        context: what rows are conditioned on: names of columns, which leave x and of which those
            of words become zeros and ones; or an array, shape `(rows, *context)`.
        labels: a column, or an array of the shape `(rows,)`, of whole numbers or words; missing
            where it is NaN, empty or -1.
        offset: a column, or an array of the shape `(rows,)`, of size factors, positive.
        transforms: preprocessing steps; noise before invertible ones.
        validation: the fraction of the training rows that is set aside for validation.
        test: the fraction of all rows that is set aside for test, where the set has no official
            test rows.
        flatten: make each row a vector.
        seed: of the split, and of the noise in validation and test rows.

    Raises:
        Error: an unknown name, a missing or unreadable file, columns that are not numbers, no
            rows, what does not belong to the rows.

    Example:
        >>> data = load("iris", labels="target")
        >>> data.event, len(data.train), len(data.validation), len(data.test)
        ((4,), 102, 18, 30)
        >>> data.classes
        ('setosa', 'versicolor', 'virginica')
    """
    source = _source(data, name, path)
    given = conditions(source, context, labels, offset, categories)
    chosen = source.choose(columns, categories, given.columns)
    whole = _all_rows(chosen.x, given.entries, flatten)
    x = whole[:1].x
    if not x.numel():
        what = "no column" if len(whole) else "no row"
        raise Error(f"'{source.name}' has {what}", "data")
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    if isinstance(whole, Batch):
        _refuse_infinite(_infinite(whole.x), source.name)
    parts = _split(len(whole), source.official, validation, test, seed)
    noise = [deepcopy(step) for step in transforms if not step.invertible]
    if any(step.invertible for step in transforms[: len(noise)]):
        raise Error(
            "noise comes before invertible transforms: put binarize and dequantize first",
            "data.transforms",
        )
    digest = hashlib.blake2b(digest_size=8)
    if isinstance(whole, InFile):
        whole = _surveyed(whole, parts, dtype, source.name, digest)
        rows, *others = (Raw(whole.part(part), dtype=dtype) for part in parts)
    else:
        rows, *others = (Raw(whole[part]).to(CPU, dtype) for part in parts)
        _refuse_empty(rows.source[:].x.isnan().all(0), source.name, chosen.columns)
    with seeded(seed):
        for index, step in enumerate(noise):
            step.setup(tuple(x.shape[1:]))
            step.to(CPU, dtype)
            for block in rows.blocks:
                step.start(prepared(block, noise[:index], dtype).filled().x)
    with seeded(seed):
        held_out, tested = (_once(part, noise) for part in others)
    if isinstance(whole, Batch):
        _digest(digest, rows, held_out, tested)
    return Data(
        name=source.name,
        train=_train(rows, noise),
        validation=held_out if len(held_out) else None,
        test=tested,
        columns=chosen.columns,
        quantised=all(_whole(block.x) for block in in_blocks(tested)),
        transforms=tuple(step for step in transforms if step.invertible),
        fingerprint=digest.hexdigest(),
        classes=given.classes,
        levels={**given.levels, **chosen.levels},
    )


def _all_rows(x: Any, given: Mapping[str, Tensor], flatten: bool) -> Batch | InFile:
    if is_file(x):
        return in_file(x, flatten, **given)
    x = torch.as_tensor(x)
    return Batch(x.flatten(1) if flatten else x, **given)


def _once(rows: Raw, noise: Sequence[Transform]) -> Batch | Raw:
    """The rows with noise drawn once, now; those of a file stay there where it is not random."""
    if rows.streamed and not any(step.random for step in noise):
        return Raw(rows.source, noise, dtype=rows.dtype)
    return prepared(rows[:], noise, rows.dtype)


def _train(rows: Raw, noise: Sequence[Transform]) -> Batch | Raw:
    """The rows with noise that is drawn at every use; bytes stay bytes where it is not random."""
    if any(step.random for step in noise):
        return Raw(rows.source, noise, dtype=rows.dtype)
    once = _once(rows, noise)
    if isinstance(once, Batch) and rows.source[:1].x.dtype == torch.uint8:
        as_bytes = once.replace(x=once.x.to(torch.uint8))
        return Raw(as_bytes, dtype=rows.dtype) if (as_bytes.x == once.x).all() else once
    return once


def _whole(x: Tensor) -> bool:
    """Whether all values are whole, where the precision leaves room for others."""
    missing = x.isnan()
    return bool(((x == x.round()) & (x.abs() < 2**20) | missing).all())


def _source(data: Any, name: str | None, path: str | None) -> Table:
    if data is not None and (name is not None or path is not None):
        raise Error("give rows, or a name or path, not both", "data")
    if isinstance(data, (str, Path)):
        name, path = (None, str(data)) if Path(data).suffix else (str(data), None)
    elif data is not None:
        return table(data)
    if path is not None and name is None:
        return read(Path(path))
    return named("digits" if name is None else name, path)


def _split(
    rows: int, official: int, validation: float, test: float, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Indices for training, validation and test; the last `official` rows are for test."""
    order = torch.randperm(rows - official, generator=torch.Generator().manual_seed(seed))
    tested = torch.arange(rows - official, rows)
    if not official:
        count = round(test * rows)
        tested, order = order[:count], order[count:]
    count = round(validation * len(order))
    held_out, train = order[:count], order[count:]
    if not len(tested) or not len(train) or (validation and not len(held_out)):
        raise Error(
            f"{rows} rows are too few to set validation = {validation} and test = {test} aside",
            "data",
        )
    return train, held_out, tested


def _infinite(x: Tensor) -> Tensor:
    """Whether a row holds infinite values, shape `(rows,)`."""
    return x.flatten(1).isinf().any(-1)


def _refuse_infinite(infinite: Tensor, name: str) -> None:
    if len(bad := torch.nonzero(infinite)):
        raise Error(
            f"{len(bad)} of {len(infinite)} rows of '{name}' hold infinite values, "
            f"first row {bad[0].item()}",
            "data",
        )


def _refuse_empty(empty: Tensor, name: str, columns: tuple[str, ...] = ()) -> None:
    """Refuse entries that are missing in all training rows, of which nothing can be learnt."""
    if not empty.any():
        return
    place = torch.nonzero(empty)[0].tolist()
    if empty.ndim == 1:
        what = f"column '{columns[place[0]] if columns else place[0] + 1}'"
    else:
        what = f"the entry {place}"
    raise Error(f"{what} of '{name}' is missing in every training row: leave it out", "data")


def _surveyed(
    whole: InFile, parts: Sequence[Tensor], dtype: torch.dtype, name: str, digest: Any
) -> InFile:
    """The rows of a file after all were looked at: refused, fingerprinted, known to be complete.

    Raises:
        Error: infinite values; entries that are missing in every training row.
    """
    blocks = Raw(replace(whole, complete=True), dtype=dtype).blocks
    train, infinite = torch.zeros(2, len(whole), dtype=torch.bool)
    train[parts[0]] = True
    empty, complete = torch.ones(whole[:1].x.shape[1:], dtype=torch.bool), True
    masks = (mask.split(blocks.size) for mask in (train, infinite))
    for block, ours, bad in zip(blocks, *masks, strict=True):
        x = block.x
        if not all(end.isfinite() for end in x.aminmax()):
            complete = False
            bad.copy_(_infinite(x))
            empty &= x[ours].isnan().all(0)
        elif ours.any():
            empty.fill_(False)
        digest.update(x.numpy())
    _refuse_infinite(infinite, name)
    _refuse_empty(empty, name)
    for entry in (*whole.given.values(), *parts):
        digest.update(entry.numpy().tobytes())
    return replace(whole, complete=complete)


def fingerprint(rows: Batch) -> str:
    """A number in hexadecimal that tells rows from any others."""
    digest = hashlib.blake2b(digest_size=8)
    _digest(digest, rows)
    return digest.hexdigest()


def _digest(digest: Any, *parts: Batch | Raw) -> None:
    """Add all values of rows in memory, entry by entry, as they are told by the fingerprint."""
    for name in ENTRIES:
        for rows in parts:
            if getattr(rows[:1], name) is not None:
                digest.update(b"" if name == "x" else name.encode())
                for block in in_blocks(rows):
                    digest.update(getattr(block, name).cpu().contiguous().numpy().tobytes())
