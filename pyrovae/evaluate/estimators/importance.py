r"""Importance sampling: log p^_K = log (1/K) \sum_k p(x, z_k) / r(z_k | x) with draws z_k ~ r.

The proposal r is the guide q, or a wider one made of it,

    r(z | x) = (1 - a) q_s(z | x) + a p(z),

with q_s the guide stretched by s around its mean. A share a of the prior bounds the weights by
p(x | z) / a, so that no mode of the posterior is left out for good; stretching lightens the tail
of weights of a guide that is too narrow.

For a standard error e a row needs K = Var(w) / (E(w)^2 e^2) particles. This number comes from
pilot draws, which are then thrown away: a K that looked at the draws it is used with would break
the bound.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import Annotated, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from pyrovae.batch import Batch
from pyrovae.evaluate.coordinates import Coordinates
from pyrovae.evaluate.estimators.estimator import Columns, Estimator
from pyrovae.evaluate.recorded import Recorded
from pyrovae.evaluate.weights import Array, paired_traces, reduce, sums, weigh
from pyrovae.graphs import How
from pyrovae.models import Model
from pyrovae.traces import refuse_global

Index = NDArray[np.int64]
BLOCK = 2048
"""Rows times particles that are drawn at a time: what a network makes of them stays in cache."""
AT_ONCE = 256
"""The most particles of a row that are drawn at a time."""
PILOT = 200
"""Particles of the first pilot; each further one has four times as many."""
MARGIN = 2
"""How many times the particles that a row seems to need it gets, at least."""


class IWAE(Estimator):
    """The importance bound log (w_1 + ... + w_K) / K, with draws of the guide or of a wider one.

    Importance Weighted Autoencoders (Burda, Grosse & Salakhutdinov, 2016,
    https://arxiv.org/abs/1509.00519).

    Args:
        defensive: the share a of draws from the prior.
        stretch: the factor s by which the guide is stretched around its mean, in unconstrained
            coordinates.
        tolerance: the largest standard error of a row, in nats; with it each row gets as many
            particles as it needs.
        budget: the most particles of a row with a tolerance, beside those of pilots.
    """

    defensive: Annotated[float, Field(ge=0, le=1)] = 0.0
    stretch: PositiveFloat = 1.0
    tolerance: PositiveFloat | None = None
    budget: PositiveInt = 100_000

    @classmethod
    def examples(cls) -> Iterable[Self]:
        return cls(), cls(defensive=0.2), cls(stretch=1.5), cls(tolerance=0.05, budget=1000)

    def forward(
        self, model: Model, batch: Batch, particles: int | None, how: How = "auto"
    ) -> Columns:
        for trace in paired_traces(model, batch[:1], nullcontext()):
            refuse_global(trace, 1)
        weights = Recorded(lambda *block: (weigh(model, *block),), model, how)
        needed = self._needed(weights, batch, particles)
        parts = [
            reduce(log_w)
            for k in np.unique(needed)
            for _, log_w in self._blocks(weights, batch, np.flatnonzero(needed == k), int(k))
        ]
        place = np.argsort(np.argsort(needed, kind="stable"))
        columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        columns |= {} if self._guided else {"elbo": np.full(len(batch), np.nan)}
        return {name: column[place] for name, column in columns.items()}

    @property
    def _guided(self) -> bool:
        """Whether the proposal is the guide itself."""
        return self.stretch == 1 and not self.defensive

    def _needed(self, weights: Recorded, batch: Batch, particles: int | None) -> Index:
        """The particles of each row; those of a tolerance from draws that nothing else sees."""
        if self.tolerance is None:
            return np.full(len(batch), particles or 1000)
        wanted, rows, draws = np.full(len(batch), np.inf), np.arange(len(batch)), PILOT
        while len(rows) and draws <= self.budget:
            for place, log_w in self._blocks(weights, batch, rows, draws):
                wanted[place] = draws * np.square(sums(log_w)[2] / self.tolerance)
            rows = rows[wanted[rows] > 4 * draws]
            draws *= 4
        wanted = np.nan_to_num(MARGIN * wanted / PILOT, posinf=np.inf)
        powers = 2 ** np.ceil(np.log2(np.clip(wanted, 1, self.budget)))
        least = min(particles or PILOT, self.budget)
        return np.clip(PILOT * powers, least, self.budget).astype(np.int64)

    def _blocks(
        self, weights: Recorded, batch: Batch, index: Index, particles: int
    ) -> Iterator[tuple[Index, Array]]:
        """Places of a few rows, of those in the index, and log-weights `(particles, rows)`."""
        draws = [len(some) for some in torch.arange(particles).chunk(-(-particles // AT_ONCE))]
        for place in torch.from_numpy(index).split(max(1, BLOCK // draws[0])):
            draw = self._drawing(weights, batch[place])
            yield place.numpy(), torch.cat([draw(k).cpu().double() for k in draws]).numpy()

    def _drawing(self, weights: Recorded, batch: Batch) -> Callable[[int], Tensor]:
        """The function from a number of particles to log-weights, `(particles, rows)`."""
        if self._guided:
            return lambda particles: weights(batch, particles)[0]
        at = Coordinates(weights.model, batch, "a wider proposal")
        return partial(self._widened, at, at.from_guide(AT_ONCE).mean(0))

    def _widened(self, at: Coordinates, mean: Tensor, particles: int) -> Tensor:
        """Log-weights of draws u ~ r, `(particles, rows)`, around the mean `(rows, J)`."""
        u = mean + self.stretch * (at.from_guide(particles) - mean)
        a = u.new_tensor(self.defensive)
        defends = torch.rand_like(u[..., :1]) < a
        u = torch.where(defends, at.from_prior(particles), u)
        log_p, log_p_x = at.log_joint(u)
        log_q = at.log_guide(mean + (u - mean) / self.stretch)
        log_q = log_q - u.shape[-1] * math.log(self.stretch)
        return log_p + log_p_x - torch.logaddexp((-a).log1p() + log_q, a.log() + log_p)
