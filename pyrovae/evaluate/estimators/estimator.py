r"""The role of an estimator of log p(x) = log \int p(x, z) dz.

Averages of importance weights, `iwae` and `ais`, are in expectation lower bounds of log p(x); a
`grid` sums p(x, z) where z has one or two entries; `exact` asks a model that knows the integral.
"""

from abc import abstractmethod
from typing import ClassVar

import numpy as np

from pyrovae.batch import Batch
from pyrovae.errors import Error
from pyrovae.evaluate.weights import Array, reduce
from pyrovae.graphs import How
from pyrovae.models import Model
from pyrovae.part import Part

Columns = dict[str, Array]


class Estimator(Part):
    """The role of a way to find log p(x). `Exact` is the shortest member."""

    figure: ClassVar[str] = "lower bound"
    """What the values are: a `lower bound` in expectation, `quadrature`, or `exact`."""
    tolerance: float | None = None
    """The standard error in nats that every row is to reach, of a member that aims at one."""

    def setup(self) -> None:
        """Nothing to make: an estimator has no tensors."""

    @abstractmethod
    def forward(
        self, model: Model, batch: Batch, particles: int | None, how: How = "auto"
    ) -> Columns:
        """The arrays of `LogLikelihood` for the rows of a batch, in nats.

        Values that are NaN or infinity are refused afterwards, by their rows.

        Args:
            model: in evaluation mode, without gradient.
            batch: rows that it can have generated.
            particles: draws for each row; the member's own number unless given.
            how: whether what is done again and again is compiled, as for `log_likelihood`.
        """


class Exact(Estimator):
    """log p(x) itself, of mixtures, linear models and latents of few states."""

    figure = "exact"

    def forward(
        self, model: Model, batch: Batch, particles: int | None, how: How = "auto"
    ) -> Columns:
        if not model.exact:
            raise Error(f"log p(x) of the model '{model.kind}' is an integral: use iwae", "method")
        value = model.log_prob(batch).cpu().double().numpy()
        return reduce(value[None]) | {
            "mcse": np.zeros_like(value),
            "khat": np.full_like(value, -np.inf),
            "jackknife": value,
        }
