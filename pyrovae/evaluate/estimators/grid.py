r"""Quadrature: log p(x) = log \sum_g p(x, u_g) h over the points u_g of a grid with cells h.

For a smooth density that is 0 at the ends of the grid the error falls faster than any power of h.

The grid of a row has to cover what matters and not much else. A mode between two points of a
coarse grid shows in the slopes that lead to it: between them a concave log p(x, u) stays below the
lines through the next points on either side, log f_i + (log f_i - log f_i-1) where it rises.
"""

import itertools
import math
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from pyrovae.batch import Batch
from pyrovae.errors import Error
from pyrovae.evaluate.coordinates import Coordinates
from pyrovae.evaluate.estimators.estimator import Columns, Estimator
from pyrovae.evaluate.weights import BLOCK, reduce
from pyrovae.graphs import How
from pyrovae.models import Model

DRAWS = 256
"""Draws of the guide, and of the prior, that the first box holds."""
COARSE = 50
"""Points in each direction of the grids that fit a box."""
FITS = 20
"""How often a box is fitted, at most."""
DEPTH = 20
"""How far log p(x, u) has fallen at the walls of a box from its largest value, in nats."""
NOWHERE = -1e30
"""In place of log 0, so that differences are finite."""


class Grid(Estimator):
    """The sum of p(x, z) over a grid in unconstrained coordinates, for one or two entries of z.

    The grid of a row covers the box in which p(x, z) is within e^-20 of its largest value. The
    error stated is the largest change where every third point in each direction is taken alone; a
    mode far narrower than the steps, of which neither guide nor prior has a draw, is missed.

    Args:
        points: of the grid in each direction.
    """

    points: Annotated[int, Field(ge=10)] = 200
    figure = "quadrature"

    def forward(
        self, model: Model, batch: Batch, particles: int | None, how: How = "auto"
    ) -> Columns:
        if particles is not None:
            raise Error("grid draws nothing: leave particles out, and set its points", "particles")
        entries = sum(Coordinates(model, batch[:1], "a grid").sizes)
        if entries > 2:
            raise Error(f"grid takes one or two entries of z, not {entries}: use ais", "method")
        total = self.points**entries
        sums = [
            self._sum(Coordinates(model, rows)) for rows in batch.split(max(1, BLOCK // total))
        ]
        value, error = (torch.cat(column).numpy() for column in zip(*sums, strict=True))
        columns = reduce(value[None])
        unknown = {name: np.nan * columns[name] for name in ("ess", "khat", "elbo", "curve")}
        used = {"particles": total * columns["particles"]}
        return columns | unknown | used | {"mcse": error, "jackknife": value}

    def _sum(self, at: Coordinates) -> tuple[Tensor, Tensor]:
        """The logarithm of the sum of each row, and its error, `(rows,)` in float64."""
        low, high, top = _box(at)
        log_f = _log_f(at, _lattice(low, high, self.points))
        found = (log_f.amax(0) > top - 1).cpu()
        log_f = log_f.cpu().double()
        cell = ((high - low) / (self.points - 1)).cpu().double().log().sum(-1)
        total, entries = log_f.logsumexp(0), low.shape[-1]
        grid = log_f.unflatten(0, [self.points] * entries)
        thirds = [
            grid[tuple(slice(start, None, 3) for start in starts)].flatten(0, -2).logsumexp(0)
            for starts in itertools.product(range(3), repeat=entries)
        ]
        error = (torch.stack(thirds) + entries * math.log(3) - total).abs().amax(0)
        return total + cell, torch.where(found, error, torch.inf)


def _box(at: Coordinates) -> tuple[Tensor, Tensor, Tensor]:
    """The corners `(rows, J)` of a box around p(x, u), and its logarithm's largest value.

    That is `(rows,)`, and infinite where no box holds it.
    """
    drawn = torch.cat([at.from_guide(DRAWS), at.from_prior(DRAWS)])
    known = _log_f(at, drawn).nan_to_num(nan=NOWHERE, neginf=NOWHERE)
    low, high = drawn.amin(0), drawn.amax(0)
    for _ in range(FITS):
        u = _lattice(low, high, COARSE)
        log_f = _log_f(at, u).nan_to_num(nan=NOWHERE, neginf=NOWHERE)
        top = torch.maximum(log_f.amax(0), known.amax(0))
        reach = _reach(log_f.unflatten(0, [COARSE] * low.shape[-1])).flatten(0, -2)
        reach = torch.cat([reach, known])
        first, last = _ends(torch.cat([u, drawn]), reach >= top - DEPTH)
        wide = high - low
        left = torch.where(first > low, first - wide / COARSE, low - wide / 2)
        right = torch.where(last < high, last + wide / COARSE, high + wide / 2)
        holds = (first > low) & (last < high)
        if (holds & (right - left > 0.7 * wide)).all():
            break
        low, high = left, right
    return low, high, torch.where(holds.all(-1), top, torch.inf)


def _ends(u: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """The least and largest coordinates `(rows, J)` of points chosen by `(points, rows)`."""
    chosen = chosen[..., None]
    least = torch.where(chosen, u, torch.inf).amin(0)
    return least, torch.where(chosen, u, -torch.inf).amax(0)


def _reach(log_f: Tensor) -> Tensor:
    """How high log f may come beside each point of a grid `(points, ..., rows)`."""
    reach = log_f
    for dim in range(log_f.dim() - 1):
        f = log_f.transpose(0, dim)
        unknown, change = torch.full_like(f[:1], torch.inf), f.diff(dim=0)
        from_left = f[:-1] + torch.cat([unknown, change[:-1].relu()])
        from_right = f[1:] + torch.cat([(-change[1:]).relu(), unknown])
        cells = torch.minimum(from_left, from_right)
        beside = torch.maximum(torch.cat([-unknown, cells]), torch.cat([cells, -unknown]))
        reach = reach + (beside - f).relu().transpose(0, dim)
    return reach


def _lattice(low: Tensor, high: Tensor, points: int) -> Tensor:
    """The points of a grid between two corners `(rows, J)`, `(points, rows, J)`."""
    t = torch.linspace(0, 1, points, dtype=low.dtype, device=low.device)
    entries = low.shape[-1]
    return low.lerp(high, torch.cartesian_prod(*[t] * entries).reshape(-1, 1, entries))


def _log_f(at: Coordinates, u: Tensor) -> Tensor:
    """Log p(x, u), `(particles, rows)`."""
    return torch.cat([at.log_f(some) for some in u.split(max(1, BLOCK // u.shape[1]))])
