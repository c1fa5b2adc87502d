"""Fitting: one function over the generators of epochs.

`fit` places data and model, starts the model at the data, runs `svi`, `em` or `online_em`, watches
the validation rows and returns the history. The bound on rows that were not trained on estimates
how good the model is for new ones; it rises, and falls again once the model learns its training
rows by heart, so SVI ends at the weights where it was highest. EM ends where the likelihood stands
still: a mixture's complexity is chosen by its number of components.

Nothing outlives a fit: Pyro's parameter store and torch's random numbers are afterwards as they
were before.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from pyrovae.batch import Batch, Rows, beginning, gathered, in_blocks
from pyrovae.compile import Recorded, recorded
from pyrovae.data import Data
from pyrovae.errors import Error
from pyrovae.evaluate.weights import bound
from pyrovae.graphs import How
from pyrovae.inference import Epoch, em, online_em, svi, weights
from pyrovae.models import Model
from pyrovae.models.model import require_model
from pyrovae.objectives import ELBO, Objective
from pyrovae.part import validated
from pyrovae.place import Place, destination, seeded
from pyrovae.precision import HalfPrecision
from pyrovae.progress import Bar, progress_bar
from pyrovae.stored import kept

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class History:
    """What happened in a fit.

    Args:
        epochs: in order; of several restarts, with the best one's figures at each.
        best: the index of the epoch whose weights the model has.
        stopped: why the fit ended: `finished`, `converged`, `early stopping` or `failed`.
        seconds: of the whole fit, restarts included.
        compiled: what ran the steps of SVI: `inductor`, `replay` for recorded ones, or `no`.
        remark: why they did not run faster, where something stood in the way.
    """

    epochs: tuple[Epoch, ...]
    best: int
    stopped: str
    seconds: float
    compiled: Literal["no", "replay", "inductor"] = "no"
    remark: str = ""

    def __str__(self) -> str:
        if not self.epochs:
            return "failed in the first epoch"
        kept = self.epochs[self.best]
        judged = (
            "" if math.isnan(kept.validation) else f", {kept.validation:.2f} on validation rows"
        )
        return (
            f"{self.stopped} after {len(self.epochs)} epochs in {self.seconds:.1f} s, "
            f"bound {-kept.loss:.2f} nats on training rows{judged} (epoch {self.best + 1})"
        )

    def plot(self) -> "Axes":
        """The bound on training and validation rows against the epoch."""
        from pyrovae.plots import history

        return history(self)


class FitError(Error):
    """A fit that failed; the model has the last good weights.

    Args:
        history: up to the failure.
    """

    def __init__(self, message: str, history: History) -> None:
        super().__init__(message)
        self.history = history


@validated
def fit(
    model: Model,
    train: Any,
    validation: Any = None,
    *,
    method: Literal["svi", "em", "online-em"] | None = None,
    epochs: PositiveInt = 100,
    batch_size: PositiveInt | None = None,
    learning_rate: PositiveFloat = 1e-3,
    patience: PositiveInt | None = None,
    objective: Objective = ELBO(),
    compile: How = "auto",  # noqa: A002
    autocast: bool = False,
    tolerance: NonNegativeFloat = 1e-6,
    restarts: PositiveInt = 5,
    start: bool = True,
    seed: NonNegativeInt = 0,
    device: str | None = None,
    dtype: Literal["float32", "float64"] | None = None,
    progress: bool = True,
) -> History:
    """Fit a model to rows, in place.

    Args:
        model: any model; it stays on the device and in the precision of the fit.
        train: rows, shape `(rows, *x)`: a tensor, an array, a data frame, a `Batch`, noisy rows;
            or the `Data` that `load` gives, for its training and validation rows.
        validation: rows to judge by. With them SVI ends at the weights of the epoch with the
            highest validation bound.
        method: `svi`, `em`, or `online-em`, which is EM on mini-batches; what the model says
            unless given: EM where it can be fitted so, SVI otherwise.
        epochs: passes over the rows, for EM iterations, at most.
        batch_size: rows in a mini-batch; unless given, 128 for SVI and 1024 for online EM, or all
            where there are fewer.
        learning_rate: of SVI's optimiser, Adam.
        patience: SVI stops after this many epochs without a higher validation bound.
        objective: the bound that SVI maximises.
        compile: whether SVI's steps are recorded and compiled. With `auto` they are recorded
            where a thousand are planned, and compiled from nine thousand on, or more of a small
            network; nothing but speed depends on that, apart from rounding once they are compiled.
            What cannot be recorded runs as plain Pyro.
        autocast: whether networks multiply in bfloat16 during SVI, which is faster where the
            processor has units for it; weights, densities and all evaluation keep their precision.
        tolerance: EM stops when an iteration gains less, in nats per row.
        restarts: EM starts this often, side by side, and the highest likelihood stays; online EM
            starts once.
        start: whether the model begins at the data, which sets an EM fit's components and a
            VampPrior's inputs; networks always go on from their present weights.
        seed: of everything random in the fit; the model's weights at construction are yours to
            seed.
        device: such as `cpu` or `cuda`; the model's own unless given.
        dtype: `float32` or `float64`; unless given, the model's own for SVI and float64 for EM.
        progress: show a progress bar, in a terminal only.

    Raises:
        Error: data that the model cannot have generated; fewer rows than a batch; settings out of
            range.
        FitError: the loss became NaN or infinite.

    Example:
        >>> from pyrovae import Mixture
        >>> import torch
        >>> rows = torch.tensor([[0.0], [0.1], [5.0], [5.2]])
        >>> fit(Mixture(x=(1,), components=2), rows).stopped
        'converged'
    """
    require_model(model)
    if isinstance(train, Data):
        train, validation = train.rows_of(model, "train", "validation")
    began, method = time.perf_counter(), method or model.method
    place = destination(model, device, dtype or (None if method == "svi" else "float64"))
    with seeded(seed), progress_bar(model.kind, progress) as bar:
        rows = rows_on(train, "train", place)
        everything = gathered(rows)
        held_out = None
        if validation is not None:
            held_out = gathered(rows_on(validation, "validation", place))
        refuse(model, everything, held_out, method, batch_size, patience)
        elbo = objective.build(model.enumerates)
        elbo = HalfPrecision(elbo) if autocast else elbo
        model.to(*place)
        if method == "em":
            history = _fit_em(model, everything, held_out, bar, epochs, tolerance, restarts, start)
        else:
            if start:
                model.start(beginning(everything))
            del everything
            bar.begin(epochs * len(rows))
            if method == "svi":
                batch_size = batch_size or min(128, len(rows))
                elbo = recorded(elbo, compile, epochs * (len(rows) // batch_size), others=epochs)
                passes = svi(
                    model,
                    rows,
                    objective=elbo,
                    epochs=epochs,
                    batch_size=batch_size,
                    learning_rate=learning_rate,
                    advance=bar.advance,
                )
            else:
                passes = online_em(
                    model,
                    rows,
                    epochs=epochs,
                    batch_size=batch_size or min(1024, len(rows)),
                    advance=bar.advance,
                )
            history = run_epochs(model, passes, held_out, bar, patience)
    if isinstance(elbo, Recorded):
        history = replace(history, compiled=elbo.backend, remark=elbo.reason)
    return replace(history, seconds=time.perf_counter() - began)


def run_epochs(
    model: Model, passes: Iterator[Epoch], held_out: Rows | None, bar: Bar, patience: int | None
) -> History:
    """Run the epochs, and end at the weights that were best on validation rows, if there are."""
    seen: list[Epoch] = []
    best, kept, stopped = 0, None, "finished"
    try:
        for epoch in _judged(passes, model, held_out, bar, seen):
            best = max(range(len(seen)), key=lambda index: _rank(seen[index]))
            if best == epoch.index and held_out is not None:
                kept = weights(model)
            elif patience and epoch.index - best >= patience:
                stopped = "early stopping"
                break
    except FitError as error:
        raise FitError(str(error), History(tuple(seen), best, "failed", 0.0)) from None
    finally:
        if kept:
            model.load_state_dict(kept)
    return History(tuple(seen), best, stopped, 0.0)


def _rank(epoch: Epoch) -> tuple[float, int]:
    """What makes one epoch better than another: a higher validation bound, else being later."""
    value = epoch.validation
    return (-math.inf, epoch.index) if math.isnan(value) else (value, -epoch.index)


def _fit_em(
    model: Model,
    rows: Rows,
    held_out: Rows | None,
    bar: Bar,
    epochs: int,
    tolerance: float,
    restarts: int,
    start: bool,
) -> History:
    """Run the iterations from all starts, and end at the weights of the highest likelihood."""
    runs = model
    if start:
        runs = model.beside(restarts)
        runs.start(beginning(rows))
        model.choose(runs, 0)
    bar.begin(epochs * len(rows))
    batches = rows if isinstance(rows, Batch) else in_blocks(rows)
    passes = em(model, batches, epochs=epochs, tolerance=tolerance, runs=runs, advance=bar.advance)
    seen = list(_judged(passes, model, held_out, bar, []))
    stopped = "converged" if len(seen) < epochs else "finished"
    return History(tuple(seen), seen[-1].index, stopped, 0.0)


def _judged(
    passes: Iterator[Epoch], model: Model, held_out: Rows | None, bar: Bar, seen: list[Epoch]
) -> Iterator[Epoch]:
    """The epochs with the bound on validation rows, kept in `seen`."""
    try:
        for epoch in passes:
            value = math.nan if held_out is None else bound(model, held_out)
            seen.append(replace(epoch, validation=value))
            bar.show(epoch.loss)
            yield seen[-1]
    except Error as error:
        history = History(tuple(seen), max(len(seen) - 1, 0), "failed", 0.0)
        raise FitError(str(error), history) from None


def rows_on(data: Any, name: str, place: Place) -> Rows:
    """The rows at a place, with the name of the rows in the error."""
    try:
        return kept(data, place[0]).to(*place)
    except Error as error:
        raise error.under(name) from None


def refuse(
    model: Model,
    train: Rows,
    validation: Rows | None,
    method: str,
    batch_size: int | None,
    patience: int | None,
) -> None:
    """Refuse what `fit` cannot do, before anything is done.

    Raises:
        Error: rows that the model cannot have generated, too few of them, a method that the model
            has not, early stopping without validation rows.
    """
    model.refuse_training(method)
    for name, rows in (("train", train), ("validation", validation)):
        if rows is not None:
            check_rows(model, rows, name)
    if method != "svi":
        model.expect(train[:1].to(*destination(model)))
    if method != "em" and batch_size and len(train) < batch_size:
        raise Error(
            f"{len(train)} training rows are fewer than a batch of {batch_size}: lower batch_size",
            "train",
        )
    if len(train) < model.least_rows:
        raise Error(
            f"{model.least_rows} components need at least as many rows, got {len(train)}",
            "train",
        )
    if patience and validation is None:
        raise Error(
            "early stopping judges by validation rows: pass validation, or leave patience out",
            "patience",
        )


def check_rows(model: Model, rows: Rows, name: str) -> None:
    """`model.check`, with the name of the rows in the error, and where the block begins."""
    first = 0
    for batch in in_blocks(rows):
        try:
            model.check(batch)
        except Error as error:
            block = "" if len(batch) == len(rows) else f"[{first}:{first + len(batch)}]"
            raise error.under(f"{name}{block}") from None
        first += len(batch)
