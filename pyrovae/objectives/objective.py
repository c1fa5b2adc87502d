r"""The role of an objective: a bound on log p(x) that is made as large as possible.

    log p(x) >= L(x),      loss = -\sum_{rows} L(x)

Pyro calls what estimates a bound and its gradient from one run of model and guide an `ELBO`,
whichever bound it is. An objective is the declared part; `build` gives the estimator.

What a bound says of a row depends on that row alone, so an estimator here has particles of its own
for every row: log-weights log w = log p(x, z) - log q(z | x) of the shape `(particles, rows)`. A
latent that all rows share has no place in them. With one, the bound with several particles would
be on the joint density of all rows, with a weight for the whole batch: another number, that
depends on how many rows there are.

The value of what `differentiable_loss` returns is the estimate of the loss. Its gradient is that
of the estimator, which need not be the gradient of the value: S - stop(S) is 0 and has the
gradient of S.
"""

from abc import abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import pyro
import pyro.infer
import torch
from pyro import poutine
from torch import Tensor

from pyrovae import traces
from pyrovae.errors import Error
from pyrovae.part import Part
from pyrovae.schedules import Dials


class Objective(Part):
    """The role of a bound on log p(x), summed over rows. `IWAE` is the shortest member."""

    def setup(self) -> None:
        """Nothing to make: an objective has no tensors."""

    @abstractmethod
    def build(self, enumerates: bool = False, dials: Dials | None = None) -> pyro.infer.ELBO:
        """The estimator, a `pyro.infer.ELBO`.

        Args:
            enumerates: whether the model's latents are to be summed over, not drawn.
            dials: what holds the scheduled numbers of a fit; without it they stay where they
                begin.
        """

    def refuse_states(self, enumerates: bool) -> None:
        """Refuse a model whose discrete latents are summed over."""
        if enumerates:
            raise Error(f"{self.kind} cannot sum over discrete latents: use elbo", "objective")


class PerRow(pyro.infer.ELBO):
    """An estimator of a bound for each row, from several draws of its latents.

    Args:
        kind: of the objective, for messages.
        particles: draws for each row.
    """

    pathwise: ClassVar[bool] = True
    """Whether the gradient goes through the draws, which then have to be reparameterised."""

    def __init__(self, kind: str, particles: int) -> None:
        super().__init__(num_particles=particles, vectorize_particles=True, max_plate_nesting=1)
        self.kind = kind

    @abstractmethod
    def bound(self, model: Any, guide: Any, args: tuple[Any, ...], kwargs: Any) -> Tensor:
        """The estimate of the bound, summed over rows, with the estimator's gradient."""

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """The loss, to be differentiated."""
        return -self.bound(model, guide, args, kwargs)

    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """The loss."""
        with torch.no_grad():
            return self.differentiable_loss(model, guide, *args, **kwargs).item()

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """The loss, with its gradients on the parameters."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward()
        return loss.item()

    def run(
        self,
        model: Any,
        guide: Any,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        drawing: AbstractContextManager[Any] | None = None,
    ) -> tuple[poutine.Trace, poutine.Trace]:
        """The traces of guide and model, refused where a row has no bound of its own."""
        plate, rows = pyro.plate("particles", self.num_particles, dim=-2), len(args[0])
        drawn = traces.of_guide(guide, args, kwargs, plate, drawing)
        self._refuse_shared(drawn, rows)
        if self.pathwise:
            refuse_without_gradient(self.kind, drawn)
        joint = traces.of_model(model, drawn, args, kwargs, plate)
        self._refuse_shared(joint, rows)
        return drawn, joint

    def log_densities(
        self,
        model: Any,
        guide: Any,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        drawing: AbstractContextManager[Any] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Log p(x, z) and log q(z | x), each of the shape `(particles, rows)`."""
        drawn, joint = self.run(model, guide, args, kwargs, drawing)
        size = self.num_particles, len(args[0])
        log_p = traces.log_density(joint, *size, scaled=True)[0]
        return log_p, traces.log_density(drawn, *size, scaled=True)[0].to(log_p)

    def _refuse_shared(self, trace: poutine.Trace, rows: int) -> None:
        if name := traces.outside(trace, rows):
            raise Error(
                f"{self.kind} is a bound for each row, and the site '{name}' is not in a plate of "
                "the rows at dimension -1: its density belongs to all rows at once, and weights "
                "with it would bound their joint density; use elbo",
                "objective",
            )
        for name, site in traces.sites(trace):
            for frame in site["cond_indep_stack"]:
                if frame.full_size not in (None, frame.size):
                    raise Error(
                        f"{self.kind} needs densities of rows as they are, and the plate of "
                        f"'{name}' scales them from {frame.size} to {frame.full_size} rows: give "
                        "the plate the size of the rows that it is given",
                        "objective",
                    )

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        drawn, joint = self.run(model, guide, args, kwargs)
        return joint, drawn


def refuse_without_gradient(kind: str, drawn: poutine.Trace) -> None:
    """Refuse a guide with parameters of draws that are not reparameterised."""
    for name, site in traces.sites(drawn):
        if site["is_observed"] or site["fn"].has_rsample:
            continue
        if site["fn"].log_prob(site["value"]).requires_grad:
            raise Error(
                f"{kind} has no gradient through '{name}', whose draws are not reparameterised: "
                "use elbo or wake-sleep",
                "objective",
            )
