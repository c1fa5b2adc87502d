"""A run folder: all of a fit, as text and tensors. Loading one executes nothing.

    spec.toml             what was asked for, choices decided: [data], [train], [evaluate], [model]
    weights.safetensors   the parameters and buffers
    history.csv           one line per epoch
    results.json          figures, choices, package versions, seed, the fingerprint of the data

A folder is written beside its place and moved there when it is whole, so that there is never half
a run. What is kept while a fit goes on, its checkpoints and what it was asked for, lies in the
folder `unfinished` within, and goes when the run is whole.
"""

import csv
import io
import json
import shutil
import tempfile
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import tomli_w
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from pyrovae.batch import Batch
from pyrovae.checkpoints import UNFINISHED, another_spec, differences
from pyrovae.errors import Error
from pyrovae.files import json_text, write
from pyrovae.history import History
from pyrovae.logs import LOGS
from pyrovae.models import Model
from pyrovae.place import seeded
from pyrovae.versions import versions

FILES = ("spec.toml", "weights.safetensors", "history.csv", "results.json")


@dataclass(frozen=True, eq=False)
class Run:
    """A fit that was saved.

    Args:
        folder: where.
        spec: the tables of spec.toml.
        model: with its weights.
        results: what results.json says.
    """

    folder: Path
    spec: dict[str, Any]
    model: Model
    results: dict[str, Any]

    def record(self, **figures: Any) -> None:
        """Add figures to results.json."""
        self.results.update(figures)
        write(self.folder / "results.json", json_text(self.results))


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run."""
    return all((folder / name).is_file() for name in FILES)


def is_unfinished(folder: Path) -> bool:
    """Whether a folder holds a fit that goes on, or was stopped."""
    return _exists(folder / UNFINISHED / "spec.json")


def begin(folder: Path, asked: Mapping[str, Any]) -> None:
    """Note what a fit was asked for, or go on with what is there.

    Args:
        folder: of the run.
        asked: `request`, what the fit depends on, and whatever else is to be known.

    Raises:
        Error: what is there is a fit of something else; the folder cannot be written.
    """
    refuse_other(folder, asked["request"])
    place = folder / UNFINISHED
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as failure:
        raise Error(f"'{folder}' cannot be written: {failure.strerror}") from None
    write(place / "spec.json", json_text(asked))


def refuse_other(folder: Path, request: Mapping[str, Any]) -> None:
    """Refuse to go on with a fit of something else."""
    if is_unfinished(folder):
        wanted = json.loads(json_text(request))
        if changed := differences(begun(folder)["request"], wanted):
            raise Error(another_spec(folder, changed))


def begun(folder: Path) -> dict[str, Any]:
    """What an unfinished fit was asked for.

    Raises:
        Error: there is none.
    """
    return _read(folder / UNFINISHED / "spec.json", json.loads)


def start_over(folder: Path) -> None:
    """Remove what is kept of a fit that is not finished, and all logs."""
    shutil.rmtree(folder / LOGS, ignore_errors=True)
    discard_unfinished(folder)


def discard_unfinished(folder: Path) -> None:
    """Remove what is kept of a fit that is not finished."""
    shutil.rmtree(folder / UNFINISHED, ignore_errors=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def refuse_existing(folder: Path, force: bool) -> None:
    """Refuse a place for a run folder.

    Raises:
        Error: there is a run and nobody said that it may be replaced; or something else that may
            not be replaced at all; or no folder can be made there.
    """
    if is_unfinished(folder) and not force:
        raise Error(
            f"'{folder}' holds a fit that is not finished: go on with --resume {folder}, or begin "
            "again with --force"
        )
    if _exists(folder) and not force:
        raise Error(
            f"'{folder}' exists: name another folder with --out, or replace it with --force"
        )
    if _exists(folder) and not (is_run(folder) or is_unfinished(folder)):
        raise Error(f"'{folder}' is no run, and --force replaces runs only")
    refuse_uncreatable(folder)


def refuse_uncreatable(folder: Path) -> None:
    """Refuse a place where no folder can be made, because something above it is a file."""
    nearest = next(place for place in (folder, *folder.absolute().parents) if _exists(place))
    if not nearest.is_dir():
        raise Error(f"'{folder}' cannot be written: '{nearest}' is a file")


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as failure:
        raise Error(f"'{path}' cannot be looked at: {failure.strerror}") from None


def save(
    model: Model,
    folder: Path | str,
    history: History | None = None,
    spec: Mapping[str, Any] | None = None,
    results: Mapping[str, Any] | None = None,
    force: bool = False,
) -> Run:
    """Write a run folder, which `open_run` reads.

    Weights are not always anonymous: with the prior `exemplar` they hold the training rows.

    Args:
        model: fitted.
        folder: its place.
        history: of the fit.
        spec: the tables [data], [train] and [evaluate]; [model] is written from the model.
        results: figures; versions are added.
        force: replace a run that is there.

    Raises:
        Error: the folder exists, or cannot be written; a function that a spec cannot name.
    """
    folder = Path(folder)
    refuse_existing(folder, force or is_unfinished(folder))
    whole = {**(results or {}), "versions": versions()}
    tree = {**(spec or {}), "model": model.spec()}
    try:
        within = is_unfinished(folder) and not is_run(folder)
        beside = folder.with_name(f".{folder.name}.draft")
        draft = folder / UNFINISHED / "draft" if within else beside
        if draft.exists():
            shutil.rmtree(draft)
        draft.mkdir(parents=True)
        try:
            (draft / "spec.toml").write_text(tomli_w.dumps(tree), "utf-8")
            tensors = {
                name: tensor.detach().cpu().contiguous().clone()
                for name, tensor in model.state_dict().items()
            }
            save_file(tensors, draft / "weights.safetensors")
            (draft / "history.csv").write_text(_csv(history), "utf-8")
            (draft / "results.json").write_text(json_text(whole), "utf-8")
            for path in draft.iterdir():
                path.chmod(0o644)
            if within:
                _finish(draft, folder)
            else:
                if (folder / LOGS).is_dir():
                    (folder / LOGS).rename(draft / LOGS)
                _replace(draft, folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    except OSError as failure:
        raise Error(f"'{folder}' cannot be written: {failure.strerror}") from None
    return Run(folder, tree, model, whole)


def restore(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write a run folder from the files of one, by their places in it, replacing a run there.

    Raises:
        Error: something that is no run is there, or the folder cannot be written.
    """
    refuse_existing(folder, force=True)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as beside:
            draft = Path(beside, folder.name)
            for place, content in files.items():
                file = draft / place
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)
            _replace(draft, folder)
    except OSError as failure:
        raise Error(f"'{folder}' cannot be written: {failure.strerror}") from None


def _finish(draft: Path, folder: Path) -> None:
    """Move the files of a run to where its fit went on, the last one last; a run has them all."""
    for name in FILES:
        (draft / name).replace(folder / name)
    for logs in sorted(folder.glob(f"{UNFINISHED}/*/{LOGS}")):
        (folder / LOGS).mkdir(exist_ok=True)
        logs.rename(folder / LOGS / logs.parent.name)
    discard_unfinished(folder)


def _replace(draft: Path, folder: Path) -> None:
    """Move a finished folder to its place; what was there goes when the new one stands."""
    if not folder.exists():
        draft.rename(folder)
        return
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as beside:
        old = folder.rename(Path(beside) / folder.name)
        try:
            draft.rename(folder)
        except OSError:
            old.rename(folder)
            raise


def open_run(folder: Path | str) -> Run:
    """Read a run folder. Parts of one's own, named in its `import`, have to be imported before.

    Raises:
        Error: no run, or one whose files are damaged or do not fit together.
    """
    folder = Path(folder)
    spec = _read(folder / "spec.toml", tomllib.loads)
    if not is_run(folder) and (inside := sorted(map(str, filter(is_run, folder.iterdir())))):
        names = ", ".join(inside[:5] + ["..."] * (len(inside) > 5))
        raise Error(f"'{folder}' is a comparison: name one of its runs, {names}")
    results = _read(folder / "results.json", json.loads)
    try:
        with seeded(0):
            model = Model.from_spec(spec.get("model"), "model")
    except Error as error:
        modules = ", ".join(spec.get("import", []))
        hint = f"; the run uses parts from {modules}: pass --import for each" if modules else ""
        raise Error(f"{error}{hint}", str(folder / "spec.toml")) from None
    try:
        model.load_state_dict(_tensors(folder / "weights.safetensors", model))
    except RuntimeError as failure:
        reason = str(failure).splitlines()[-1].strip()
        raise Error(
            f"the weights in '{folder}' do not belong to the model of its spec: {reason}"
        ) from None
    return Run(folder, spec, model, results)


def write_samples(run: Run, rows: int | Batch, seed: int, path: Path, force: bool = False) -> Path:
    """Draw rows from the model of a run into a file: npy, csv (one line a row) or png (images).

    Args:
        run: the run.
        rows: how many, or a batch, as for `Model.sample`.
        seed: of the draws.
        path: of the file.
        force: replace a file that is there.

    Raises:
        Error: another suffix, a file that exists, or a png of rows that are no images.
    """
    if path.suffix not in WRITERS:
        raise Error(f"samples are written as {', '.join(sorted(WRITERS))}, got '{path.name}'")
    if _exists(path) and not (force and path.is_file()):
        raise Error(f"'{path}' exists: name another file with --out, or replace it with --force")
    x = run.model.sample(rows, seed)
    content = io.BytesIO()
    WRITERS[path.suffix](x, content)
    write(path, content.getvalue())
    return path


def _csv_rows(x: torch.Tensor, file: IO[bytes]) -> None:
    np.savetxt(file, x.flatten(1).cpu().numpy(), delimiter=",", fmt="%.9g")


def _npy(x: torch.Tensor, file: IO[bytes]) -> None:
    np.save(file, x.cpu().numpy())


def _png(x: torch.Tensor, file: IO[bytes]) -> None:
    from matplotlib.figure import Figure

    from pyrovae.plots import images

    if x.ndim != 4 or x.shape[1] not in (1, 3):
        raise Error(
            f"a png needs rows that are images, these are {tuple(x.shape[1:])}: write npy or csv"
        )
    figure = Figure(layout="constrained")
    images(x, figure.subplots())
    figure.savefig(file, format="png")


WRITERS: dict[str, Callable[[torch.Tensor, IO[bytes]], None]] = {
    ".csv": _csv_rows,
    ".npy": _npy,
    ".png": _png,
}


def _tensors(path: Path, model: Model) -> dict[str, torch.Tensor]:
    """The saved tensors; the model takes their precision."""
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as failure:
        raise Error(f"'{path}' cannot be read: {failure}") from None
    model.to(next((t.dtype for t in tensors.values() if t.is_floating_point()), torch.float32))
    return tensors


def _read(path: Path, parse: Callable[[str], Any]) -> dict[str, Any]:
    try:
        tree = parse(path.read_text("utf-8"))
    except OSError as failure:
        raise Error(
            f"'{path.parent}' is no run: {path.name} cannot be read ({failure.strerror})"
        ) from None
    except ValueError as failure:
        raise Error(f"'{path}' is damaged: {failure}") from None
    if not isinstance(tree, dict):
        raise Error(f"'{path}' is damaged: it holds no table")
    return tree


def _csv(history: History | None) -> str:
    """One line an epoch, with a column for each figure that any of them has."""
    text, epochs = io.StringIO(), history.epochs if history else ()
    names = list(dict.fromkeys(name for epoch in epochs for name in epoch.figures))
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("epoch", "loss", "validation", "seconds", *names))
    for epoch in epochs:
        figures = (epoch.figures.get(name, "") for name in names)
        writer.writerow((epoch.index, epoch.loss, epoch.validation, epoch.seconds, *figures))
    return text.getvalue()
