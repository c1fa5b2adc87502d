"""Fitting: one function over the generators of epochs.

`fit` places data and model, starts the model at the data, runs SVI, `em` or `online_em`, watches
the validation rows and returns the history. SVI ends at the weights where the bound on these rows
was highest. EM ends where the likelihood stands still: a mixture's complexity is chosen by its
number of components.

Nothing outlives a fit: Pyro's parameter store and torch's random numbers are afterwards as they
were before.
"""

import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from pyrovae.batch import Batch, Rows, beginning, gathered, in_blocks
from pyrovae.checkpoints import UNFINISHED, Checkpoints
from pyrovae.compile import Recorded, recorded
from pyrovae.data import Data, fingerprint
from pyrovae.graphs import How
from pyrovae.history import FitError, History, Watch
from pyrovae.inference import Course, Epoch, State, em, online_em, weights
from pyrovae.logs import LOGS, Log, Logs
from pyrovae.models import Model
from pyrovae.models.model import require_model
from pyrovae.objectives import ELBO, Objective
from pyrovae.optim import Optim
from pyrovae.optimizers import Adam, Optimizer
from pyrovae.part import encode, keywords, validated
from pyrovae.place import destination, seeded
from pyrovae.precision import HalfPrecision
from pyrovae.progress import Bar, progress_bar
from pyrovae.ranks import World, joined
from pyrovae.refusals import refuse, rows_on
from pyrovae.schedules import Dials, Quantity, Rate

__all__ = ["FitError", "History", "fit"]

ASIDE = {"checkpoint_minutes", "checkpoint_steps", "logs", "progress"}
"""Settings that a fit's outcome does not depend on."""
SAMPLE, PACE = 500, 200
"""Without validation rows the bound of so many training rows is told, every so many steps."""


@validated
def fit(
    model: Model,
    train: Any,
    validation: Any = None,
    folder: Path | str | None = None,
    *,
    method: Literal["svi", "em", "online-em"] | None = None,
    epochs: PositiveInt = 100,
    batch_size: PositiveInt | None = None,
    accumulate: PositiveInt = 1,
    optimizer: Optimizer = Adam(),
    learning_rate: Rate = 1e-3,
    rates: dict[str, PositiveFloat] | None = None,
    clip: PositiveFloat | None = None,
    average: Annotated[float, Field(gt=0, lt=1)] | None = None,
    encoder_steps: Quantity = 0,
    patience: PositiveInt | None = None,
    logs: tuple[Log, ...] = (),
    objective: Objective = ELBO(),
    compile: How = "auto",  # noqa: A002
    autocast: bool = False,
    tolerance: NonNegativeFloat = 1e-6,
    restarts: PositiveInt = 5,
    start: bool = True,
    seed: NonNegativeInt = 0,
    device: str | None = None,
    dtype: Literal["float32", "float64"] | None = None,
    checkpoint_minutes: PositiveFloat = 5.0,
    checkpoint_steps: PositiveInt | None = None,
    progress: bool = True,
) -> History:
    """Fit a model to rows, in place.

    Args:
        model: any model; it stays on the device and in the precision of the fit.
        train: rows, shape `(rows, *x)`: a tensor, an array, a data frame, a `Batch`, noisy rows;
            or the `Data` that `load` gives, for its training and validation rows.
        validation: rows to judge by. With them SVI ends at the weights of the epoch with the
            highest validation bound.
        folder: where checkpoints are written while SVI runs. A fit that finds one there, with the
            same model, rows and settings, goes on from it: to the same weights, to the bit, as if
            it had not been stopped. Ctrl-C and SIGTERM write one, and end the fit.
        method: `svi`, `em`, or `online-em`, which is EM on mini-batches; what the model says
            unless given: EM where it can be fitted so, SVI otherwise.
        epochs: passes over the rows, for EM iterations, at most.
        batch_size: rows in a mini-batch; unless given, 128 for SVI and 1024 for online EM, or all
            where there are fewer.
        accumulate: a mini-batch is gone through in so many parts, each with a draw of z and an
            order of its own, so that it need not fit into memory at once.
        optimizer: of SVI: what a step does with the gradient.
        learning_rate: of the optimiser: a number or a schedule.
        rates: by how much the learning rate differs for parameters whose name begins with a name,
            such as `{"encoder": 0.5, "prior": 2.0}`.
        clip: the largest norm that the gradient of all parameters together may have.
        average: the weight of the past in a running mean of the weights over SVI's steps, such as
            0.999. The mean is what validation rows judge, and what the fit ends at.
        encoder_steps: so many steps of the guide's parameters alone before each step of all: a
            number or a schedule, such as 5 for the first epochs and 0 after them.
        patience: SVI stops after this many epochs without a higher validation bound.
        logs: where the figures of each epoch go beside the history, such as `("tensorboard",)`.
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
        checkpoint_minutes: a checkpoint is written after so many.
        checkpoint_steps: and after so many steps, if given.
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
    asked = locals()
    settings = {name: asked[name] for name in keywords(fit).model_fields}
    require_model(model)
    if isinstance(train, Data):
        train, validation = train.rows_of(model, "train", "validation")
    began, method = time.perf_counter(), method or model.method
    folder = None if folder is None else Path(folder)
    with (
        joined(device) as world,
        seeded(world.seed(seed)),
        progress_bar(model.kind, progress and world.first) as bar,
    ):
        place = destination(model, device, dtype or (None if method == "svi" else "float64"))
        rows = rows_on(train, "train", place)
        everything = gathered(rows)
        held_out = None
        if validation is not None:
            held_out = gathered(rows_on(validation, "validation", place))
        refuse(model, everything, held_out, method, settings, world.size)
        checkpoints = _checkpoints(folder, model, everything, settings, world)
        state = checkpoints.latest() if checkpoints else None
        if state and "history" in state.values:
            return _finished(model.to(*place), state)
        told = Logs(logs if world.first else ())
        if told.open:
            whole = {"model": model.spec(), "train": encode(settings)}
            told.begin(folder and folder / LOGS, whole)
        model.to(*place)
        if start and method != "em":
            model.start(beginning(everything))
        world.spread(model)
        bar.begin(epochs * len(rows))
        outcome: dict[str, Any] = {}
        try:
            if method == "em":
                history = _fit_em(model, everything, held_out, bar, told, settings)
            elif method == "online-em":
                size = batch_size or min(1024, len(rows))
                advance = bar.advance
                passes = online_em(model, rows, epochs=epochs, batch_size=size, advance=advance)
                watch = Watch(model, held_out, bar, patience=patience)
                history = watch.follow(passes, told.hear)
            else:
                course = _course(model, len(rows), place[0], settings, world)
                sample = beginning(everything)[:SAMPLE] if held_out is None else None
                del everything
                watch = _watch(course, held_out, sample, bar, patience)
                history = _fit_svi(course, watch, rows, told, checkpoints, state)
            outcome = {"stopped": history.stopped, "best": history.best}
        finally:
            told.end(outcome)
        history = replace(history, seconds=time.perf_counter() - began)
        if checkpoints:
            checkpoints.save(_outcome(model, history))
    return history


def _course(
    model: Model, rows: int, device: torch.device, settings: Mapping[str, Any], world: World
) -> Course:
    """A fit by SVI that is about to begin."""
    dials = Dials(device)
    dials.join(model)
    elbo = settings["objective"].build(model.enumerates, dials)
    epochs, accumulate = settings["epochs"], settings["accumulate"]
    size = settings["batch_size"] or min(128, rows)
    steps = epochs * accumulate * (rows // size)
    elbo = HalfPrecision(elbo) if settings["autocast"] else elbo
    optim = Optim(
        settings["optimizer"],
        dials("learning_rate", settings["learning_rate"]),
        names=model.named_parameters,
        rates=settings["rates"],
        clip=settings["clip"],
        average=settings["average"],
    )
    return Course(
        model,
        recorded(elbo, settings["compile"], steps, others=epochs),
        optim,
        dials,
        epochs=epochs,
        batch_size=size,
        accumulate=accumulate,
        encoder_steps=dials("encoder_steps", settings["encoder_steps"]),
        world=world,
    )


def _watch(
    course: Course, held_out: Rows | None, sample: Rows | None, bar: Bar, patience: int | None
) -> Watch:
    """What judges the epochs of a fit by SVI."""
    steps = -(-bar.total // (course.epochs * course.batch_size))
    return Watch(
        course.model,
        held_out,
        bar,
        patience=patience,
        averaged=course.averaged if course.optim.average else None,
        sample=sample,
        pace=-(-PACE // steps),
        world=course.world,
    )


def _fit_svi(
    course: Course,
    watch: Watch,
    rows: Rows,
    told: Logs,
    checkpoints: Checkpoints | None,
    state: State | None,
) -> History:
    """Go through the epochs, from a state on if there is one, with a checkpoint now and then."""
    if state:
        course.load(state)
        watch.load(state)
        done = course.epoch * len(rows) + min(course.step * course.batch_size, len(rows))
        watch.bar.advance(done)
    for epoch in watch.seen:
        told.hear(epoch)

    def look() -> None:
        if checkpoints and checkpoints.stepped():
            checkpoints.save(course.state() | watch.state())
            checkpoints.obey()

    def heard(epoch: Epoch) -> None:
        course.hear(epoch)
        told.hear(epoch)

    course.after = look
    with checkpoints.listening() if checkpoints else nullcontext():
        history = watch.follow(course.run(rows, watch.bar.advance), heard)
    if isinstance(course.elbo, Recorded):
        history = replace(history, compiled=course.elbo.backend, remark=course.elbo.reason)
    return history


def _checkpoints(
    folder: Path | None, model: Model, rows: Rows, settings: Mapping[str, Any], world: World
) -> Checkpoints | None:
    """The checkpoints of a fit, which know all that it depends on."""
    if folder is None:
        return None
    request = {
        "model": model.spec(),
        "train": {name: encode(value) for name, value in settings.items() if name not in ASIDE},
        "rows": fingerprint(beginning(rows)),
        "processes": world.size,
    }
    minutes, steps = settings["checkpoint_minutes"], settings["checkpoint_steps"]
    return Checkpoints(folder / UNFINISHED, request, minutes, steps, world)


def _outcome(model: Model, history: History) -> State:
    """The checkpoint of a fit that is over."""
    tensors = {f"weights/{name}": tensor for name, tensor in weights(model).items()}
    return State(tensors, {"history": asdict(history)})


def _finished(model: Model, state: State) -> History:
    """The history of a fit that is over; the model takes its weights."""
    model.load_state_dict(state.below("weights"))
    history = state.values["history"]
    return History(**history | {"epochs": tuple(Epoch(**e) for e in history["epochs"])})


def _fit_em(
    model: Model,
    rows: Rows,
    held_out: Rows | None,
    bar: Bar,
    told: Logs,
    settings: Mapping[str, Any],
) -> History:
    """Run the iterations from all starts, and end at the weights of the highest likelihood."""
    runs, epochs = model, settings["epochs"]
    if settings["start"]:
        runs = model.beside(settings["restarts"])
        runs.start(beginning(rows))
        model.choose(runs, 0)
    batches = rows if isinstance(rows, Batch) else in_blocks(rows)
    passes = em(
        model,
        batches,
        epochs=epochs,
        tolerance=settings["tolerance"],
        runs=runs,
        advance=bar.advance,
    )
    history = Watch(model, held_out, bar, selects=False).follow(passes, told.hear)
    return replace(history, stopped="converged") if len(history.epochs) < epochs else history
