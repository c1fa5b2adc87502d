"""Where rows come from: the named sets and the readers of files, each of which gives a `Table`.

A reader is a function of a path, found by the file's suffix; a named set is a function without
arguments. Rows and columns are not interpreted here: what a value means is the likelihood's
business.
"""

import csv
import gzip
import io
import struct
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pyrovae.errors import Error
from pyrovae.part import unknown

_IDX = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}


@dataclass(frozen=True, eq=False)
class Table:
    """Rows with what is known about them.

    Args:
        name: of the set.
        x: the rows, shape `(rows, *event)`, numbers.
        columns: their names, empty where there are none.
        official: how many of the last rows are the official test set, 0 where there is none.
    """

    name: str
    x: NDArray[Any]
    columns: tuple[str, ...] = ()
    official: int = 0

    def choose(self, columns: tuple[str, ...] | None) -> "Table":
        """These columns, as numbers.

        Raises:
            Error: a column that the table does not have, or that holds something other than
                numbers.
        """
        for column in columns or ():
            if column not in self.columns:
                known = (
                    unknown("column", column, self.columns)
                    if self.columns
                    else "the columns have no names"
                )
                raise Error(known, "data.columns")
        taken = (
            range(self.x.shape[1])
            if columns is None
            else [self.columns.index(column) for column in columns]
        )
        if self.x.dtype == object:
            numbers = [self._numbers(index) for index in taken]
            x = np.stack(numbers, axis=1) if numbers else np.empty((len(self.x), 0))
        else:
            x = self.x if columns is None else self.x[:, taken]
        return replace(self, x=x, columns=self.columns if columns is None else columns)

    def _numbers(self, index: int) -> NDArray[Any]:
        column = self.x[:, index]
        try:
            return column.astype(float)
        except (TypeError, ValueError):
            word = next(cell for cell in column if isinstance(_number(str(cell)), str))
            name = self.columns[index] if self.columns else index + 1
            raise Error(
                f"column '{name}' of '{self.name}' holds '{word}', no number: choose columns",
                "data.columns",
            ) from None


def table(data: Any, name: str = "array") -> Table:
    """The table of an array, a tensor or a data frame.

    Raises:
        Error: values that are not numbers.
    """
    columns = tuple(map(str, data.columns)) if hasattr(data, "columns") else ()
    if isinstance(data, Tensor):
        data = (
            data.detach().cpu().float() if data.is_floating_point() and data.itemsize < 4 else data
        )
        data = data.detach().cpu().numpy()
    if isinstance(data, np.ma.MaskedArray):
        data = np.ma.filled(data.astype(float), np.nan)
    try:
        x = np.array(data)
    except ValueError as failure:
        raise Error(f"the rows of '{name}' make no array: {failure}", "data") from None
    if x.dtype.kind not in ("biufO" if columns else "biuf"):
        raise Error(f"the values of '{name}' are not numbers (their type is {x.dtype})", "data")
    if x.ndim < 2:
        raise Error(f"'{name}' should have the shape (rows, *x), got {x.shape}", "data")
    if x.dtype.kind == "f" and x.dtype.itemsize > 8:
        x = x.astype(np.float64)
    x = x.astype(x.dtype.newbyteorder("="))
    return Table(name, x, columns)


def named(name: str, path: str | None = None) -> Table:
    """A named set; `path` is the folder of mnist's files.

    Raises:
        Error: an unknown name, or a set that is not to be had.
    """
    if name not in NAMED:
        raise Error(unknown("data set", name, NAMED), "data.name")
    if name == "mnist":
        return _mnist(path)
    if path:
        raise Error(
            f"'{name}' ships with scikit-learn and needs no path; for a file leave the name out",
            "data.path",
        )
    return NAMED[name]()


def read(path: Path) -> Table:
    """The table in a file, by its suffix.

    Raises:
        Error: no such file, an unknown suffix, or contents that are not what the name says.
    """
    return _guarded(_by_suffix, path)


def _by_suffix(path: Path) -> Table:
    suffix = Path(path.name.removesuffix(".gz")).suffix.lower()
    reader = READERS.get(suffix, _idx if "idx" in path.name else None)
    if reader is None:
        raise Error(
            f"'{path}' is of no known kind. Known: {', '.join(READERS)}, idx.", "data.path"
        )
    return reader(path)


def _guarded(reader: Callable[[Path], Table], path: Path) -> Table:
    """What the reader makes of the file; whatever is wrong with it ends in one sentence."""
    try:
        if not path.is_file():
            raise Error(f"there is no file '{path}'", "data.path")
        return reader(path)
    except Error:
        raise
    except Exception as failure:
        reason = (str(failure).splitlines() or [type(failure).__name__])[0]
        raise Error(f"'{path}' is not what its name says: {reason}", "data.path") from None


def _sklearn(name: str) -> Callable[[], Table]:
    def make() -> Table:
        from sklearn import datasets

        bunch = getattr(datasets, f"load_{name.replace('-', '_')}")()
        images = name == "digits"
        x = bunch.images[:, None] if images else bunch.data
        return Table(name, x, () if images else tuple(map(str, bunch.feature_names)))

    return make


def _mnist(path: str | None) -> Table:
    if path is None:
        return _openml()
    folder = Path(path)
    if not folder.is_dir():
        raise Error(f"there is no folder '{path}' with mnist's idx files", "data.path")
    files = [_find(folder, f"{part}-images") for part in ("train", "t10k")]
    train, test = (_guarded(_idx, file).x for file in files)
    if train.shape[1:] != test.shape[1:]:
        raise Error(
            f"'{files[0]}' holds images of {train.shape[1:]}, '{files[1]}' of {test.shape[1:]}",
            "data.path",
        )
    return Table("mnist", np.concatenate([train, test])[:, None], official=len(test))


def _find(folder: Path, stem: str) -> Path:
    files = sorted(folder.glob(f"{stem}*"))
    if not files:
        raise Error(
            f"the folder '{folder}' has no file '{stem}-idx3-ubyte', gzipped or not", "data.path"
        )
    return files[0]


def _openml() -> Table:
    from sklearn.datasets import fetch_openml

    try:
        with warnings.catch_warnings(action="ignore"):
            x = fetch_openml("mnist_784", version=1, as_frame=False, parser="liac-arff").data
    except Exception as failure:
        raise Error(
            f"mnist could not be fetched from OpenML ({failure}): "
            "give the folder of its idx files as data.path",
            "data",
        ) from None
    return Table("mnist", x.reshape(-1, 1, 28, 28), official=10_000)


def _npy(path: Path) -> Table:
    return table(np.load(io.BytesIO(_bytes(path)), allow_pickle=False), path.name)


def _npz(path: Path) -> Table:
    archive = np.load(io.BytesIO(_bytes(path)), allow_pickle=False)
    if not isinstance(archive, np.lib.npyio.NpzFile) or not archive.files:
        raise ValueError("it holds no arrays")
    return table(archive["x" if "x" in archive else archive.files[0]], path.name)


def _csv(path: Path) -> Table:
    reader = csv.reader(io.StringIO(_bytes(path).decode("utf-8-sig"), newline=None))
    lines = [(reader.line_num, row) for row in reader if row]
    if not lines:
        raise Error(f"'{path}' is empty", "data.path")
    first = lines[0][1]
    counted = first == [str(index) for index in range(len(first))]
    header = counted or not all(_is_number(cell) for cell in first)
    columns = tuple(cell.strip() for cell in first) if header else ()
    body = lines[header:]
    for number, row in body:
        if len(row) != len(first):
            raise Error(
                f"line {number} of '{path}' has {len(row)} cells, the first has {len(first)}",
                "data.path",
            )
    x = np.array([[_number(cell) for cell in row] for _, row in body], dtype=object)
    return Table(path.name, x.reshape(len(body), len(first)), columns)


def _is_number(cell: str) -> bool:
    return isinstance(_number(cell), float)


def _number(cell: str) -> float | str:
    if cell.strip().lower() in ("", "na", "null", "none"):
        return float("nan")
    try:
        return float(cell)
    except ValueError:
        return cell


def _parquet(path: Path) -> Table:
    try:
        import pandas
    except ImportError:
        raise Error(
            "reading parquet needs pandas and pyarrow: pip install 'pyrovae[pandas]'", "data.path"
        ) from None
    frame = pandas.read_parquet(io.BytesIO(_bytes(path)))
    return Table(path.name, frame.to_numpy(dtype=object), tuple(map(str, frame.columns)))


def _idx(path: Path) -> Table:
    """The idx format of MNIST: two zero bytes, a type, the number of sizes, sizes, values."""
    raw = _bytes(path)
    zero, kind, dimensions = struct.unpack(">HBB", raw[:4])
    if zero or kind not in _IDX or dimensions < 1:
        raise Error(f"'{path}' does not begin as an idx file does", "data.path")
    shape = struct.unpack(f">{dimensions}I", raw[4 : 4 + 4 * dimensions])
    values = np.frombuffer(raw, _IDX[kind], offset=4 + 4 * dimensions)
    if values.size != np.prod(shape):
        raise Error(f"'{path}' says {shape} and holds {values.size} values", "data.path")
    return table(values.reshape(shape), path.name)


def _bytes(path: Path) -> bytes:
    raw = path.read_bytes()
    return gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw


READERS: dict[str, Callable[[Path], Table]] = {
    ".csv": _csv,
    ".npy": _npy,
    ".npz": _npz,
    ".parquet": _parquet,
}
NAMED: dict[str, Callable[[], Table]] = {
    **{name: _sklearn(name) for name in ("breast-cancer", "digits", "iris", "wine")},
    "mnist": lambda: _mnist(None),
}
