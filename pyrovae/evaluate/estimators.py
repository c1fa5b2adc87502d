r"""Estimators of log p(x), by name.

`iwae` averages importance weights w = p(x, z) / r(z | x) of draws z ~ r. The proposal r is the
guide, or a wider one made of it,

    r(z | x) = (1 - a) q_s(z | x) + a p(z),

with q_s the guide stretched by s around its mean. A share a of the prior bounds the weights by
p(x | z) / a, so that no mode of the posterior is left out for good; stretching lightens the tail
of weights of a guide that is too narrow.

How many particles a row needs for a Monte-Carlo error e is Var(w) / (E(w)^2 e^2). It is chosen on
pilot draws, which are then thrown away: a K that looked at the draws it is used with would break
the bound.

`ais` moves from the prior to the posterior through many temperatures, `grid` sums p(x, z) over the
points of a grid, for few entries of z. Stated figures are per row.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from pyrovae.batch import Batch
from pyrovae.errors import Error
from pyrovae.evaluate.coordinates import Coordinates
from pyrovae.evaluate.weights import (
    BLOCK,
    CURVE,
    Array,
    log_weights,
    paired_traces,
    reduce,
    refuse_global,
)
from pyrovae.models import Model
from pyrovae.part import Part

Columns = dict[str, Array]
AT_ONCE = 256
"""Particles of a row that are drawn at a time."""
PILOT = 200
"""Particles of the first pilot; each further one has four times as many."""
FITS = 12
"""How often the box of a grid is fitted, at most."""


class Estimator(Part):
    """The role of a way to find log p(x). `Exact` is the shortest member."""

    tolerance: float | None = None

    def setup(self) -> None:
        """Nothing to make: an estimator has no tensors."""

    @abstractmethod
    def forward(self, model: Model, batch: Batch, particles: int | None) -> Columns:
        """The arrays of `LogLikelihood` for the rows of a batch.

        Args:
            model: in evaluation mode, without gradient.
            batch: rows that it can have generated.
            particles: draws for each row; the member's own number unless given.
        """


class Exact(Estimator):
    """log p(x) itself, of mixtures, linear models and latents of few states."""

    def forward(self, model: Model, batch: Batch, particles: int | None) -> Columns:
        if not model.exact:
            raise Error(f"log p(x) of the model '{model.kind}' is an integral: use iwae", "method")
        value = model.log_prob(batch).double().cpu().numpy()
        if len(bad := np.flatnonzero(np.isnan(value))):
            raise Error(f"log p(x) of row {bad[0]} is not a number")
        return (
            reduce(value[None])
            | {"mcse": np.zeros_like(value), "jackknife": value}
            | {"khat": np.full_like(value, -np.inf)}
        )


class IWAE(Estimator):
    """The importance bound log (1/K) sum_k w_k, with draws of the guide or of one made wider.

    Importance Weighted Autoencoders (Burda, Grosse & Salakhutdinov, 2016,
    https://arxiv.org/abs/1509.00519).

    Args:
        defensive: the share a of draws from the prior.
        stretch: the factor s by which the guide is stretched around its mean, in unconstrained
            coordinates.
        tolerance: the largest Monte-Carlo standard error of a row, in nats; with it each row gets
            as many particles as it needs.
        budget: the most particles of a row, with a tolerance.
    """

    defensive: Annotated[float, Field(ge=0, le=1)] = 0.0
    stretch: PositiveFloat = 1.0
    tolerance: PositiveFloat | None = None
    budget: PositiveInt = 100_000

    def forward(self, model: Model, batch: Batch, particles: int | None) -> Columns:
        for trace in paired_traces(model, batch[:1], nullcontext()):
            refuse_global(trace, 1)
        least = particles or (1000 if self.tolerance is None else PILOT)
        needed = np.full(len(batch), least)
        if self.tolerance is not None:
            needed = np.maximum(
                self._needed(model, batch, self.tolerance), min(least, self.budget)
            )
        columns: Columns = {}
        for k in np.unique(needed):
            rows = np.flatnonzero(needed == k)
            for first, log_w in self._blocks(model, batch[torch.from_numpy(rows)], int(k), rows):
                for name, found in reduce(log_w).items():
                    column = columns.setdefault(name, np.empty((len(batch), *found.shape[1:])))
                    column[first] = found
        return columns

    def _needed(self, model: Model, batch: Batch, tolerance: float) -> NDArray[np.int64]:
        """The particles that each row needs, from pilot draws that nothing else sees."""
        needed = np.zeros(len(batch))
        rows, draws = np.arange(len(batch)), min(PILOT, self.budget)
        while len(rows):
            for some, log_w in self._blocks(model, batch[torch.from_numpy(rows)], draws, rows):
                mcse = reduce(log_w)["mcse"]
                needed[some] = np.where(
                    np.isnan(mcse), np.inf, draws * np.square(mcse / tolerance)
                )
            rows = rows[needed[rows] > 4 * draws]
            if 4 * draws > self.budget:
                break
            draws = 4 * draws
        steps = np.ceil(np.log2(np.clip(1.25 * needed / PILOT, 1, self.budget)))
        return np.minimum(PILOT * 2**steps, self.budget).astype(np.int64)

    def _blocks(
        self, model: Model, batch: Batch, particles: int, index: NDArray[np.int64]
    ) -> Iterator[tuple[NDArray[np.int64], Array]]:
        """Log-weights `(particles, some rows)` and the places of these rows in `index`."""
        at_once = min(particles, AT_ONCE)
        draws = [at_once] * (particles // at_once) + [particles % at_once] * (
            particles % at_once > 0
        )
        size = max(1, BLOCK // at_once)
        for place, rows in zip(_split(index, size), batch.split(size), strict=True):
            draw = self._proposal(model, rows)
            log_w = torch.cat([draw(k).double().cpu() for k in draws])
            if len(bad := torch.nonzero(log_w.isnan().any(0) | (log_w == torch.inf).any(0))):
                raise Error(
                    f"the log-weight of {len(bad)} rows is not finite, such as row "
                    f"{place[int(bad[0])]}"
                )
            yield place, log_w.numpy()

    def _proposal(self, model: Model, batch: Batch) -> Callable[[int], Tensor]:
        """The function from a number of particles to log-weights, `(particles, rows)`."""
        if not self.defensive and self.stretch == 1:
            return lambda particles: log_weights(model, batch, particles)
        at = Coordinates(model, batch, "a proposal other than the guide")
        mean = at.from_guide(AT_ONCE).mean(0)

        def draw(particles: int) -> Tensor:
            u = mean + self.stretch * (at.from_guide(particles) - mean)
            if self.defensive:
                defends = torch.rand(u.shape[:-1]).to(u) < self.defensive
                u = torch.where(defends[..., None], at.from_prior(particles), u)
            log_p, log_p_x = at.log_joint(u)
            log_q = at.log_guide(mean + (u - mean) / self.stretch)
            log_q = log_q - u.shape[-1] * math.log(self.stretch)
            if self.defensive:
                a = torch.tensor(self.defensive).to(u)
                log_q = torch.logaddexp(torch.log1p(-a) + log_q, a.log() + log_p)
            return log_p + log_p_x - log_q

        return draw


class Grid(Estimator):
    """The sum of p(x, z) over a grid in unconstrained coordinates, for one or two entries of z.

    A box that holds draws of guide and prior is fitted to where p(x, z) is within e^-40 of its
    largest value, row by row. The error stated is the change from a grid of half the points.

    Args:
        points: of the grid in each direction.
    """

    points: Annotated[int, Field(ge=10)] = 200

    def forward(self, model: Model, batch: Batch, particles: int | None) -> Columns:
        if particles is not None:
            raise Error("grid draws nothing: give it points instead of particles", "particles")
        entries = sum(Coordinates(model, batch[:1], "a grid").sizes)
        if entries > 2:
            raise Error(f"grid takes one or two entries of z, not {entries}: use ais", "method")
        steps = torch.cartesian_prod(*[torch.arange(self.points)] * entries)
        steps = steps.reshape(-1, 1, entries)
        sums = [
            self._sum(Coordinates(model, rows), steps.to(rows.x.device))
            for rows in batch.split(max(1, BLOCK // len(steps)))
        ]
        value, error = (
            torch.cat(column).double().cpu().numpy() for column in zip(*sums, strict=True)
        )
        unknown = np.full_like(value, np.nan)
        return {
            "value": value,
            "mcse": error,
            "ess": unknown,
            "khat": unknown,
            "elbo": unknown,
            "jackknife": value,
            "curve": np.full((len(value), len(CURVE)), np.nan),
            "particles": np.full(len(value), len(steps)),
        }

    def _sum(self, at: Coordinates, steps: Tensor) -> tuple[Tensor, Tensor]:
        """The logarithm of the sum for each row, and its error, `(rows,)`."""
        u = torch.cat([at.from_guide(AT_ONCE), at.from_prior(AT_ONCE)])
        low, high = u.amin(0), u.amax(0)
        for _ in range(FITS):
            cell = (high - low) / (self.points - 1)
            u = low + steps * cell
            log_f = torch.cat([_log_f(at, some) for some in u.split(BLOCK)]).double()
            there = (log_f > log_f.amax(0) - 40)[..., None]
            ends = (
                torch.where(there, u, torch.inf).amin(0),
                torch.where(there, u, -torch.inf).amax(0),
            )
            wide = (high - low) / 2
            left = torch.where(ends[0] > low, 2 * cell, wide)
            right = torch.where(ends[1] < high, 2 * cell, wide)
            fitted = bool((torch.maximum(left, right) < wide).all()) and bool(
                (ends[1] - ends[0] > 0.7 * (high - low)).all()
            )
            if fitted:
                break
            low, high = ends[0] - left, ends[1] + right
        volume = cell.double().log().sum(-1)
        half = log_f[(steps % 2 == 0).all(-1)[:, 0]]
        value = log_f.logsumexp(0) + volume
        coarse = half.logsumexp(0) + volume + steps.shape[-1] * math.log(2)
        return value, (value - coarse).abs()


def _log_f(at: Coordinates, u: Tensor) -> Tensor:
    """Log p(x, u), `(particles, rows)`."""
    log_p, log_p_x = at.log_joint(u)
    return log_p + log_p_x


def _split(index: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
    return (index[first : first + size] for first in range(0, len(index), size))
