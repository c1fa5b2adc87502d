r"""Another prior for a model that is trained already.

The prior stands in one term of the bound,

    mean_i ELBO_i = mean_i E_q[log p(x_i | z) - log q(z | x_i)] + E_{q(z)}[log p(z)],

with q(z) = mean_i q(z | x_i). Where the networks stay as they are, the best prior is the one of
maximum likelihood for draws of q(z), a density to be fitted in few dimensions. A model that was
trained with a simple prior often gains nats from a second one, and samples that lie where the
decoder has been trained.

From Variational to Deterministic Autoencoders (Ghosh, Sajjadi, Vergari, Black & Schölkopf, 2020,
https://arxiv.org/abs/1903.12436).
"""

from collections.abc import Callable, Iterator
from functools import reduce
from operator import getitem
from typing import Any

import torch
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyrovae.batch import Batch, Rows, beginning, gathered
from pyrovae.data import Data
from pyrovae.errors import Error
from pyrovae.fitting import refuse, rows_on
from pyrovae.history import Watch
from pyrovae.inference import Epoch
from pyrovae.models import Model
from pyrovae.models.model import require_model
from pyrovae.part import validated
from pyrovae.place import destination, in_mode, seeded, unchecked
from pyrovae.priors import Prior
from pyrovae.progress import progress_bar


@validated
def refit_prior(
    model: Model,
    prior: Prior | str | dict[str, Any],
    train: Any,
    validation: Any = None,
    *,
    epochs: PositiveInt = 100,
    batch_size: PositiveInt | None = None,
    learning_rate: PositiveFloat = 5e-3,
    patience: PositiveInt | None = None,
    seed: NonNegativeInt = 0,
    progress: bool = True,
) -> Model:
    """A new model with another prior, fitted to what the guide of the old one says of the rows.

    All networks keep their weights; the old model is as it was, to the bit.

    Args:
        model: a fitted model with a prior.
        prior: the new one: a part, a kind or a table.
        train: rows, as `fit` takes them.
        validation: rows to judge by. With them the prior ends at the epoch with the highest
            validation bound.
        epochs: passes over the rows, at most.
        batch_size: rows in a mini-batch; 128 unless given, or all where there are fewer.
        learning_rate: of Adam.
        patience: stop after this many epochs without a higher validation bound.
        seed: of everything random.
        progress: show a progress bar, in a terminal only.

    Raises:
        Error: a model without a prior; a prior that is not over what the guide is over; what
            `fit` refuses.
        FitError: the loss became NaN or infinite.
    """
    require_model(model)
    if isinstance(train, Data):
        train, validation = train.rows_of(model, "train", "validation")
    place = destination(model)
    with seeded(seed), progress_bar("prior", progress) as bar:
        rows = rows_on(train, "train", place)
        everything, held_out = gathered(rows), None
        if validation is not None:
            held_out = gathered(rows_on(validation, "validation", place))
        refuse(
            model, everything, held_out, "svi", {"batch_size": batch_size, "patience": patience}
        )
        new = _exchanged(model, prior, beginning(everything))
        bar.begin(epochs * len(rows))
        size = batch_size or min(128, len(rows))
        passes = _passes(new, rows, epochs, size, learning_rate, bar.advance)
        Watch(new, held_out, bar, patience=patience).follow(passes)
    return new


def _prior_of(model: Model) -> tuple[str, Prior]:
    """The prior of a model and its dotted name, such as `base.prior`."""
    for name, module in model.named_modules():
        if isinstance(module, Prior):
            return name, module
    raise Error(f"the model '{model.kind}' has no prior to exchange", "model")


def _exchanged(model: Model, prior: Any, rows: Batch) -> Model:
    """A copy of a model with another prior, which has started at the rows."""
    name, _ = _prior_of(model)
    *path, field = name.split(".")
    table = model.spec()
    reduce(getitem, path, table)[field] = prior
    new = Model.from_spec(table).to(*destination(model))
    kept = {k: v for k, v in model.state_dict().items() if not k.startswith(f"{name}.")}
    new.load_state_dict(kept, strict=False)  # before the start too: an encoder sees embeddings
    new.start(rows)
    new.load_state_dict(kept, strict=False)
    return new


def _passes(
    model: Model,
    rows: Rows,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    advance: Callable[[int], None],
) -> Iterator[Epoch]:
    """Maximise E_q[log p(z)] in the prior's own parameters, if it has any."""
    _, prior = _prior_of(model)
    parameters = list(prior.parameters())
    if not parameters:
        return
    optimizer = torch.optim.Adam(parameters, learning_rate)
    for epoch in range(epochs):
        total = 0.0
        with model.scope(), in_mode(model, False), in_mode(prior, True), unchecked():
            for index in torch.randperm(len(rows)).split(batch_size):
                loss = -_log_prior(model, rows[index].replace(index=index)) / len(index)
                gradients = torch.autograd.grad(loss, parameters, materialize_grads=True)
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter.grad = gradient
                optimizer.step()
                optimizer.zero_grad()
                total += loss.item() * len(index)
                advance(len(index))
        if not torch.tensor(total).isfinite():
            raise Error(f"the fit of the prior failed in epoch {epoch}: lower the learning rate")
        yield Epoch(epoch, total / len(rows))


def _log_prior(model: Model, batch: Batch) -> Tensor:
    """The log density of the model's latents, summed over rows, at draws of the guide."""
    with torch.no_grad():
        guide = poutine.trace(model.guide).get_trace(batch)
    joint = poutine.trace(poutine.replay(model.model, trace=guide)).get_trace(batch)
    latents = (
        site
        for site in joint.nodes.values()
        if site["type"] == "sample" and not site["is_observed"] and not site_is_subsample(site)
    )
    return torch.stack([site["fn"].log_prob(site["value"]).sum() for site in latents]).sum()
