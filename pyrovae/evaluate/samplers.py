r"""Draws of p(z | x), by name.

`hmc` runs Hamiltonian chains on all rows at once, half of them from the guide and half from the
prior: chains that all start at the guide stay where it is, and do not show a mode that it leaves
out. In its warm-up the length of a step is found by dual averaging (The No-U-Turn Sampler:
Adaptively Setting Path Lengths in Hamiltonian Monte Carlo, Hoffman & Gelman, 2014,
https://arxiv.org/abs/1111.4246), and the spread of u from the chains so far, both for each row.
`nuts` is Pyro's sampler, a row and a chain at a time: slow, a reference. `guide` are draws of
q(z | x), no more than what is to be judged, and `resampled` are such draws taken again with
probabilities proportional to p(x, z) / q(z | x).
"""

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import pyro
import torch
from pydantic import PositiveInt
from torch import Tensor

from pyrovae.batch import Batch
from pyrovae.errors import Error
from pyrovae.evaluate.coordinates import Coordinates
from pyrovae.evaluate.hamiltonian import QUARTER, TARGET, from_prior, move
from pyrovae.evaluate.weights import BLOCK, Array, paired_traces, reduce
from pyrovae.models import Model
from pyrovae.part import Part
from pyrovae.traces import log_density, sites

Draws = dict[str, Tensor]
"""Draws of latents by site, `(chains, draws, rows, *event)`."""
HALVES = "chains // 2 at the guide, the others at the prior"


class Sampler(Part):
    """The role of a way to draw from p(z | x). `Guide` is the shortest member."""

    origin: ClassVar[str] = ""
    """Where chains start, of a member whose chains move: of others R-hat says nothing."""

    def setup(self) -> None:
        """Nothing to make: a sampler has no tensors."""

    @abstractmethod
    def forward(
        self, model: Model, batch: Batch, chains: int, draws: int
    ) -> tuple[Draws, dict[str, Array]]:
        """Draws of the latents of each row, and what is known of them, `(rows,)` by name.

        Args:
            model: in evaluation mode, without gradient.
            batch: rows, as many as go through the model at a time.
            chains: how many.
            draws: of each chain.
        """


class Guide(Sampler):
    """Draws of the guide q(z | x), whatever the posterior is."""

    def forward(
        self, model: Model, batch: Batch, chains: int, draws: int
    ) -> tuple[Draws, dict[str, Array]]:
        z, _ = weighted(model, batch, chains * draws)
        return {name: value.unflatten(0, (chains, draws)) for name, value in z.items()}, {}


class Resampled(Sampler):
    """Draws of the guide taken again by their importance weights, with replacement.

    Args:
        particles: draws of the guide for each row.
    """

    particles: PositiveInt = 5000

    def forward(
        self, model: Model, batch: Batch, chains: int, draws: int
    ) -> tuple[Draws, dict[str, Array]]:
        z, log_w = weighted(model, batch, self.particles)
        if lost := int(log_w.isneginf().all(0).sum()):
            raise Error(
                f"all weights of {lost} rows are 0: draws of the guide cannot stand for their "
                "posterior; use hmc",
                "method",
            )
        chosen = torch.multinomial(log_w.mT.softmax(-1), chains * draws, replacement=True).mT
        rows = torch.arange(len(batch), device=chosen.device)
        taken = {name: value[chosen, rows] for name, value in z.items()}
        said = reduce(log_w.double().cpu().numpy())
        return (
            {name: value.unflatten(0, (chains, draws)) for name, value in taken.items()},
            {"ess": said["ess"], "khat": said["khat"]},
        )


class HMC(Sampler):
    """Hamiltonian Monte Carlo on all rows at once, with steps adapted to each.

    MCMC Using Hamiltonian Dynamics (Neal, 2011, https://arxiv.org/abs/1206.1901).

    Args:
        warmup: moves of a chain that adapt and are thrown away.
        leapfrogs: steps of a move.
    """

    warmup: PositiveInt = 500
    leapfrogs: PositiveInt = 5
    origin = HALVES

    def forward(
        self, model: Model, batch: Batch, chains: int, draws: int
    ) -> tuple[Draws, dict[str, Array]]:
        at = Coordinates(model, batch, "Hamiltonian Monte Carlo")
        path, b = from_prior(at), torch.ones(len(batch)).to(batch.x)
        point = path(starts(at, chains))
        longest = QUARTER / self.leapfrogs
        pace, spread = Pace(b * longest / 2, longest), Spread(point.u)
        scale = at.from_prior(32).std(0)
        for index in range(self.warmup):
            point, chance = move(path, point, b, pace.step, scale, self.leapfrogs)
            pace.learn(chance.mean(0))
            spread.add(point.u)
            if index + 1 in _updates(self.warmup):
                scale, spread = spread.sd, Spread(point.u)
                pace = Pace(pace.settled, longest)
        found, accepted = [], torch.zeros_like(b)
        for _ in range(draws):
            point, chance = move(path, point, b, pace.settled, scale, self.leapfrogs)
            found.append(point.u)
            accepted += chance.mean(0) / draws
        u = torch.stack(found, 1)
        z = at.z(u.flatten(0, 1))
        return (
            {name: value.unflatten(0, u.shape[:2]) for name, value in z.items()},
            {"accepted": accepted.double().cpu().numpy()},
        )


class NUTS(Sampler):
    """Pyro's No-U-Turn sampler, a row and a chain at a time: a reference for few rows.

    The No-U-Turn Sampler: Adaptively Setting Path Lengths in Hamiltonian Monte Carlo (Hoffman &
    Gelman, 2014, https://arxiv.org/abs/1111.4246).

    Args:
        warmup: moves of a chain that adapt and are thrown away.
    """

    warmup: PositiveInt = 300
    origin = HALVES

    def forward(
        self, model: Model, batch: Batch, chains: int, draws: int
    ) -> tuple[Draws, dict[str, Array]]:
        rows = [self._of(model, row, chains, draws) for row in batch.split(1)]
        return {name: torch.cat([row[name] for row in rows], 2) for name in rows[0]}, {}

    def _of(self, model: Model, row: Batch, chains: int, draws: int) -> Draws:
        at = Coordinates(model, row, "Hamiltonian Monte Carlo")

        def potential(parameters: dict[str, Tensor]) -> Tensor:
            return -at.log_f(parameters["u"][None, None]).sum()

        found = []
        for u in starts(at, chains)[:, 0]:
            with torch.enable_grad():
                mcmc = pyro.infer.MCMC(
                    pyro.infer.NUTS(potential_fn=potential),
                    num_samples=draws,
                    warmup_steps=self.warmup,
                    initial_params={"u": u},
                    disable_progbar=True,
                )
                mcmc.run()
            found.append(mcmc.get_samples()["u"])
        z = at.z(torch.stack(found).flatten(0, 1)[:, None])
        return {name: value.unflatten(0, (chains, draws)) for name, value in z.items()}


def starts(at: Coordinates, chains: int) -> Tensor:
    """Where chains start, `(chains, rows, J)`: half at the guide and half at the prior."""
    guided = [at.from_guide(chains // 2)] if chains > 1 else []
    return torch.cat([*guided, at.from_prior(chains - chains // 2)])


@dataclass
class Pace:
    """The length of a step of each row by dual averaging, which settles on an average.

    Args:
        begin: where to begin, `(rows,)`.
        longest: the longest step.
    """

    begin: Tensor
    longest: float

    def __post_init__(self) -> None:
        self.step = self.begin
        self.settled = self.begin
        self.count, self.error = 0, torch.zeros_like(self.begin)

    def learn(self, accepted: Tensor) -> None:
        """Adapt to the share of moves that were accepted, `(rows,)`."""
        self.count += 1
        share = 1 / (self.count + 10)
        self.error = (1 - share) * self.error + share * (TARGET - accepted)
        log_step = (10 * self.begin).log() - self.count**0.5 / 0.05 * self.error
        log_step = log_step.clamp(max=math.log(self.longest))
        weight = self.count**-0.75
        self.step = log_step.exp()
        self.settled = (weight * log_step + (1 - weight) * self.settled.log()).exp()


class Spread:
    """The standard deviation of u within chains, averaged over them, from sums.

    Args:
        u: coordinates that are near, `(chains, rows, J)`.
    """

    def __init__(self, u: Tensor) -> None:
        self.near, self.count = u, 0
        self.total, self.square = torch.zeros_like(u), torch.zeros_like(u)

    def add(self, u: Tensor) -> None:
        """Chains after a move, `(chains, rows, J)`."""
        self.count += 1
        self.total += u - self.near
        self.square += (u - self.near).square()

    @property
    def sd(self) -> Tensor:
        """The standard deviation, `(rows, J)`."""
        variance = self.square / self.count - (self.total / self.count).square()
        return variance.mean(0).clamp(min=1e-12).sqrt()


def _updates(warmup: int) -> tuple[int, ...]:
    """After which moves of the warm-up the spread is taken anew."""
    return tuple(int(share * warmup) for share in (0.1, 0.25, 0.5, 0.8))


def weighted(model: Model, batch: Batch, particles: int) -> tuple[Draws, Tensor]:
    """Draws of the guide, `(particles, rows, *event)`, with log-weights `(particles, rows)`."""
    blocks = batch.split(max(1, BLOCK // particles))
    parts, log_w = zip(*(_weighted(model, rows, particles) for rows in blocks), strict=True)
    z = {name: torch.cat([part[name] for part in parts], 1) for name in parts[0]}
    return z, torch.cat(log_w, 1)


def _weighted(model: Model, batch: Batch, particles: int) -> tuple[Draws, Tensor]:
    plate = pyro.plate("particles", particles, dim=-2)
    guide, joint = paired_traces(model, batch, plate)
    log_p, log_q = (log_density(trace, particles, len(batch))[0] for trace in (joint, guide))
    drawn = ((name, site) for name, site in sites(guide) if name in joint.nodes)
    z = {
        name: site["value"].expand(particles, len(batch), *site["fn"].event_shape)
        for name, site in drawn
    }
    return z, log_p - log_q
