"""Data: named sets, files, arrays and frames, as rows to train on, to judge by and to test with.

The split is a function of the seed; a set with an official test part keeps it. Noise of the
preprocessing is drawn anew at every use of a training row, and once, by the seed, for validation
and test rows: all models are tested on the same x.

What a row is given (a context, a label, a size factor) is read beside x and stays with its row.
NaN in x is a missing entry; whether a model can do without it is for the model to say.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, NonNegativeInt
from torch import Tensor

from pyrovae.batch import ENTRIES, Batch, Rows
from pyrovae.columns import Levels
from pyrovae.conditions import Column, Context, conditions
from pyrovae.errors import Error
from pyrovae.models import Model, Transformed
from pyrovae.part import validated
from pyrovae.place import seeded
from pyrovae.sources import Table, named, read, table
from pyrovae.transforms import Transform

Fraction = Annotated[float, Field(ge=0, lt=1)]


class Noisy:
    """Rows that are preprocessed anew, with new noise, whenever they are taken.

    Args:
        batch: the raw rows.
        steps: the preprocessing, in order.
    """

    def __init__(self, batch: Batch, steps: Sequence[Transform]) -> None:
        self.batch, self.steps = batch, steps

    def __len__(self) -> int:
        return len(self.batch)

    def __getitem__(self, rows: Any) -> Batch:
        return prepared(self.batch[rows], self.steps)

    def to(self, device: torch.device, dtype: torch.dtype) -> "Noisy":
        """The same rows on a device."""
        return Noisy(
            self.batch.to(device, dtype), [deepcopy(step).to(device, dtype) for step in self.steps]
        )


def prepared(batch: Batch, steps: Sequence[Transform]) -> Batch:
    """The batch after the steps, noise drawn now."""
    x = batch.x
    for step in steps:
        x = step(x)
    return batch.replace(x=x)


@dataclass(frozen=True, eq=False)
class Data:
    """Rows for training, validation and test.

    Args:
        name: of the set.
        train: rows to fit; noisy where the preprocessing is.
        validation: rows for early stopping and choices; `None` where the fraction is 0.
        test: rows that nothing is fitted or chosen on.
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
    validation: Batch | None
    test: Batch
    columns: tuple[str, ...]
    quantised: bool
    transforms: tuple[Transform, ...]
    fingerprint: str
    classes: Levels = ()
    levels: Mapping[str, Levels] = field(default_factory=dict)

    @property
    def event(self) -> tuple[int, ...]:
        """The shape of one row."""
        return tuple(self.test.x.shape[1:])

    @property
    def context(self) -> tuple[int, ...] | None:
        """The shape of the context of one row, `None` without a context."""
        return None if self.test.context is None else tuple(self.test.context.shape[1:])

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
    x = torch.as_tensor(chosen.x)
    x = x.flatten(1) if flatten else x
    if not x.numel():
        what = "no column" if len(x) else "no row"
        raise Error(f"'{source.name}' has {what}", "data")
    _refuse_infinite(x, source.name)
    train, held_out, tested = _split(len(x), source.official, validation, test, seed)
    noise = [deepcopy(step) for step in transforms if not step.invertible]
    if any(step.invertible for step in transforms[: len(noise)]):
        raise Error(
            "noise comes before invertible transforms: put binarize and dequantize first",
            "data.transforms",
        )
    place = (torch.device("cpu"), torch.float64 if x.dtype == torch.float64 else torch.float32)
    parts = (Batch(x, **given.entries)[part].to(*place) for part in (train, held_out, tested))
    rows, *others = parts
    _refuse_empty(rows.x, source.name, chosen.columns)
    with seeded(seed):
        for index, step in enumerate(noise):
            step.setup(tuple(rows.x.shape[1:]))
            step.to(*place)
            step.start(prepared(rows, noise[:index]).filled().x)
    with seeded(seed):
        judged = [prepared(part, noise) for part in others]
    return Data(
        name=source.name,
        train=Noisy(rows, noise) if any(step.random for step in noise) else prepared(rows, noise),
        validation=judged[0] if len(held_out) else None,
        test=judged[1],
        columns=chosen.columns,
        quantised=_whole(judged[1].x),
        transforms=tuple(step for step in transforms if step.invertible),
        fingerprint=_fingerprint(rows, *judged),
        classes=given.classes,
        levels={**given.levels, **chosen.levels},
    )


def _whole(x: Tensor) -> bool:
    """Whether all values are whole, where the precision leaves room for others."""
    x = x[~x.isnan()]
    return bool((x == x.round()).all() and (x.abs() < 2**20).all())


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


def _refuse_infinite(x: Tensor, name: str) -> None:
    if x.is_floating_point() and len(bad := torch.nonzero(x.flatten(1).isinf().any(-1))):
        raise Error(
            f"{len(bad)} of {len(x)} rows of '{name}' hold infinite values, "
            f"first row {bad[0].item()}",
            "data",
        )


def _refuse_empty(x: Tensor, name: str, columns: tuple[str, ...]) -> None:
    """Refuse entries that are missing in all training rows, of which nothing can be learnt."""
    if not len(empty := torch.nonzero(x.isnan().all(0))):
        return
    place = empty[0].tolist()
    if x.ndim == 2:
        what = f"column '{columns[place[0]] if columns else place[0] + 1}'"
    else:
        what = f"the entry {place}"
    raise Error(f"{what} of '{name}' is missing in every training row: leave it out", "data")


def _fingerprint(*batches: Batch) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for name in ENTRIES:
        for batch in batches:
            if (entry := getattr(batch, name)) is not None:
                digest.update(b"" if name == "x" else name.encode())
                digest.update(entry.contiguous().numpy().tobytes())
    return digest.hexdigest()
