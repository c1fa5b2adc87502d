"""Inference: two ways to fit, as generators of epochs, over rows in memory or in a file.

`svi` maximises a bound by stochastic gradient steps on mini-batches. `em` alternates the E-step
and the M-step over all rows, and never lowers the likelihood; `online_em` takes both for each
mini-batch.
"""

from collections.abc import Callable, Iterator

import pyro.infer

from pyrovae.batch import Rows
from pyrovae.inference.course import SVI, Course, State
from pyrovae.inference.em import em, online_em
from pyrovae.inference.epoch import Epoch, unheard, weights
from pyrovae.models import Model
from pyrovae.objectives import ELBO, Objective
from pyrovae.optim import Optim
from pyrovae.optimizers import Adam, Optimizer
from pyrovae.schedules import Dials, Schedule

__all__ = ["SVI", "Course", "Epoch", "State", "em", "online_em", "svi", "weights"]


def svi(
    model: Model,
    rows: Rows,
    *,
    objective: Objective | pyro.infer.ELBO = ELBO(),
    epochs: int = 100,
    batch_size: int = 128,
    optimizer: Optimizer = Adam(),
    learning_rate: float | Schedule = 1e-3,
    advance: Callable[[int], None] = unheard,
) -> Iterator[Epoch]:
    """Fit by gradient steps on mini-batches, in a new random order each epoch.

    Args:
        model: it has seen the data (`model.start`).
        rows: on the model's device and in its precision.
        objective: the bound, or one of Pyro's estimators, such as `Recorded(Trace_ELBO())`.
        epochs: passes over the rows.
        batch_size: rows in a mini-batch; the last one of an epoch can be smaller.
        optimizer: what a step does with a gradient.
        learning_rate: of the optimiser.
        advance: told the number of rows after every step.

    Raises:
        Error: the loss or a parameter became NaN or infinite; the model then has the weights from
            the epoch's start.
    """
    dials = Dials(next(model.parameters()).device)
    if isinstance(objective, Objective):
        objective = objective.build(model.enumerates, dials)
    rate = dials("learning_rate", learning_rate)
    optim = Optim(optimizer, rate, names=model.named_parameters)
    course = Course(model, objective, optim, dials, epochs=epochs, batch_size=batch_size)
    yield from course.run(rows, advance)
