r"""Annealed importance sampling: chains that collect a weight on their way to the posterior.

Between a density p_0 that can be drawn from and the joint density lie f_b = p_0^(1-b) p(x, z)^b.
A chain starts at u ~ p_0 and is moved by kernels that leave f_1/T, f_2/T, ... as they are, while
it collects the weight

    w = \prod_t f_t(u_t-1) / f_t-1(u_t-1),      E[w] = p(x),

so that log (1/K) \sum_k w_k over K chains is, in expectation, a lower bound on log p(x), closer
the more temperatures there are (Annealed Importance Sampling, Neal, 2001,
https://arxiv.org/abs/physics/9803008). The moves are Hamiltonian.

A pilot run, whose chains are then thrown away, finds for each row the length of the steps, the
spread of u at each temperature, and where temperatures have to be dense: the noise of log w is
least when they are equally far apart in \int sd_b[log p(x, u) - log p_0(u)] db.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from pydantic import PositiveInt
from torch import Tensor

from pyrovae.batch import Batch
from pyrovae.evaluate.coordinates import Coordinates
from pyrovae.evaluate.estimators.estimator import Columns, Estimator
from pyrovae.evaluate.hamiltonian import QUARTER, TARGET, Path, from_guide, from_prior, move
from pyrovae.evaluate.weights import BLOCK, reduce
from pyrovae.graphs import How
from pyrovae.models import Model

FEWER = 5
"""How many times fewer temperatures the pilot run has."""
CHAINS = 16
"""Chains of the pilot run."""


@dataclass(frozen=True, eq=False)
class Schedule:
    """How a row is annealed.

    Args:
        b: the temperatures, from 0 to 1, `(temperatures + 1, rows)`.
        step: the length of a step at each, `(temperatures + 1, rows)`.
        scale: the spread of u at each, `(temperatures + 1, rows, J)`.
    """

    b: Tensor
    step: Tensor
    scale: Tensor

    def flip(self) -> "Schedule":
        """The schedule backwards."""
        return Schedule(*(t.flip(0) for t in vars(self).values()))


class AIS(Estimator):
    """Annealed importance sampling with Hamiltonian moves, each particle a chain of its own.

    Annealed Importance Sampling (Neal, 2001, https://arxiv.org/abs/physics/9803008).

    Args:
        temperatures: moves of a chain, T.
        leapfrogs: steps of a move.
        start: what chains start from, `prior` or `guide`. A guide that leaves out a mode of the
            posterior leaves it out here as well.
    """

    temperatures: PositiveInt = 1000
    leapfrogs: PositiveInt = 2
    start: Literal["prior", "guide"] = "prior"

    def forward(
        self, model: Model, batch: Batch, particles: int | None, how: How = "auto"
    ) -> Columns:
        chains = particles or 16
        parts = []
        for rows in batch.split(max(1, BLOCK // chains)):
            at = Coordinates(model, rows, "annealing")
            path, u = self.path(at, how), self.draw(at, chains)
            log_w = anneal(path, u, self.schedule(at, path), self.leapfrogs)
            found = reduce(log_w.cpu().numpy())
            parts.append(found | {"elbo": np.full(len(rows), np.nan)})
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def path(self, at: Coordinates, how: How = "auto") -> Path:
        """The path of densities from the start to the joint density."""
        return from_prior(at, how) if self.start == "prior" else from_guide(at, how)

    def draw(self, at: Coordinates, chains: int) -> Tensor:
        """Draws from the start, `(chains, rows, J)`."""
        return at.from_prior(chains) if self.start == "prior" else at.from_guide(chains)

    def schedule(self, at: Coordinates, path: Path) -> Schedule:
        """The schedule that a pilot run along the path finds."""
        return adapted(path, self.draw(at, CHAINS), self.temperatures, self.leapfrogs)


def adapted(path: Path, u: Tensor, temperatures: int, leapfrogs: int) -> Schedule:
    """The schedule that chains of a pilot run find on their way from u, `(chains, rows, J)`."""
    b = torch.linspace(-4, 4, max(temperatures // FEWER, 20) + 1).to(u).sigmoid()
    b = (b - b[0]) / (b[-1] - b[0])
    rows, point, scale = u.shape[1], path(u), u.std(0)
    longest = QUARTER / leapfrogs
    step = u.new_full((rows,), longest / 2)
    found = []
    for here in b:
        found.append((step, scale, point.change.std(0)))
        point, chance = move(path, point, here.expand(rows), step, scale, leapfrogs)
        step = (step * (0.5 * (chance.mean(0) - TARGET)).exp()).clamp(max=longest)
        scale = (0.8 * scale.square() + 0.2 * point.u.var(0)).sqrt()
    steps, scales, noise = (torch.stack(column) for column in zip(*found, strict=True))
    spaced = _spaced(b, noise, temperatures)
    nearest = torch.searchsorted(b, spaced).clamp(max=len(b) - 1)
    wide = nearest[..., None].expand(*nearest.shape, u.shape[-1])
    return Schedule(spaced, steps.gather(0, nearest), scales.gather(0, wide))


def _spaced(b: Tensor, noise: Tensor, temperatures: int) -> Tensor:
    """Temperatures at equal distances in the integral of the noise, `(temperatures + 1, rows)`.

    Args:
        b: of the pilot run, `(n,)`.
        noise: the standard deviation of the change over chains at each, `(n, rows)`.
        temperatures: how many.
    """
    noise = noise.nan_to_num(0, 0, 0) + 0.1 * noise.nan_to_num(0, 0, 0).mean(0) + 1e-9
    pieces = 0.5 * (noise[1:] + noise[:-1]) * b.diff()[:, None]
    length = torch.cat([torch.zeros_like(pieces[:1]), pieces.cumsum(0)])
    length = length / length[-1]
    wanted = torch.linspace(0, 1, temperatures + 1).to(b)
    targets = wanted.expand(noise.shape[1], -1).contiguous()
    after = torch.searchsorted(length.mT.contiguous(), targets).mT
    after = after.clamp(1, len(b) - 1)
    low, high = length.gather(0, after - 1), length.gather(0, after)
    share = (wanted[:, None] - low) / (high - low)
    return (b[after - 1] + share * (b[after] - b[after - 1])).contiguous()


def anneal(path: Path, u: Tensor, schedule: Schedule, leapfrogs: int) -> Tensor:
    """The log-weights of chains from u, `(chains, rows)`, in float64.

    Args:
        path: of the densities.
        u: where chains start, `(chains, rows, J)`: draws from p_0, or from the posterior.
        schedule: forwards, or for draws from the posterior backwards.
        leapfrogs: steps of a move.
    """
    point, log_w = path(u), torch.zeros(u.shape[:2], dtype=torch.float64, device=u.device)
    last = len(schedule.b) - 1
    for t in range(last):
        change = (schedule.b[t + 1] - schedule.b[t]).abs()
        log_w += torch.where(change > 0, change * point.change, 0.0)
        if t + 1 < last:
            tuned = schedule.b[t + 1], schedule.step[t + 1], schedule.scale[t + 1]
            point, _ = move(path, point, *tuned, leapfrogs)
    return log_w
