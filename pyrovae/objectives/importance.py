r"""Importance-weighted bounds: several draws of a row's latents, and the mean of their weights.

    log w_k = log p(x, z_k) - log q(z_k | x),   z_k ~ q(z | x),   E[w_k] = p(x)

    L_K = E log (1/K) \sum_k w_k,       ELBO = L_1 <= L_2 <= ... <= log p(x) .

More particles make the bound tighter, and the gradient of the encoder worse: its mean falls like
1/K, its standard deviation like 1/sqrt(K), so the signal drowns. `MultiplyIWAE` takes the mean of
several bounds of fewer particles instead; `path` has other remedies.

With powers of the weights one moves along a family of bounds,

    L_alpha = 1/(1 - alpha) E log (1/K) \sum_k w_k^(1 - alpha),

from log p(x) at alpha = 0, as K grows, down to the ELBO as alpha -> 1 and below it for alpha > 1;
negative alpha go above log p(x). At alpha -> -infinity the largest weight is all that is left.

The gradient here goes through draws and densities alike: that of the value.
"""

import math
from collections.abc import Callable
from typing import Any

import pyro.infer
from pydantic import PositiveInt
from torch import Tensor

from pyrovae.errors import Error
from pyrovae.objectives.objective import Objective, PerRow
from pyrovae.schedules import Dials


class IWAE(Objective):
    r"""The importance-weighted bound, L_K = E log (1/K) \sum_k w_k.

    Importance Weighted Autoencoders (Burda, Grosse & Salakhutdinov, 2016,
    https://arxiv.org/abs/1509.00519).

    Args:
        particles: draws of z for each row, K.
    """

    particles: PositiveInt = 5

    def build(self, enumerates: bool = False, dials: Dials | None = None) -> pyro.infer.ELBO:
        self.refuse_states(enumerates)
        return Weighted(self.kind, self.particles, log_mean)


class MultiplyIWAE(Objective):
    """The mean of M importance-weighted bounds of K particles each: MIWAE.

    Tighter Variational Bounds are Not Necessarily Better (Rainforth et al., 2018,
    https://arxiv.org/abs/1802.04537).

    Args:
        groups: how many bounds, M.
        particles: draws of z for each row in each of them, K.
    """

    groups: PositiveInt = 5
    particles: PositiveInt = 5

    def build(self, enumerates: bool = False, dials: Dials | None = None) -> pyro.infer.ELBO:
        self.refuse_states(enumerates)
        return Weighted(
            self.kind,
            self.groups * self.particles,
            lambda log_w: log_mean(log_w.unflatten(0, (self.groups, -1)), 1).mean(0),
        )


class Renyi(Objective):
    r"""The variational Rényi bound, L_α = 1/(1 - α) E log (1/K) \sum_k w_k^(1 - α).

    Rényi Divergence Variational Inference (Li & Turner, 2016, https://arxiv.org/abs/1602.02311).

    Args:
        alpha: 0 for `IWAE`; at 1, where it would be `ELBO`, the formula has no value. Below 0
            it is no lower bound.
        particles: draws of z for each row, K.
    """

    alpha: float = 0.5
    particles: PositiveInt = 5

    def __post_init__(self) -> None:
        if self.alpha == 1:
            raise Error("the limit at 1 is the evidence lower bound: use elbo", "alpha")

    def build(self, enumerates: bool = False, dials: Dials | None = None) -> pyro.infer.ELBO:
        self.refuse_states(enumerates)
        power = 1 - self.alpha
        return Weighted(self.kind, self.particles, lambda log_w: log_mean(power * log_w) / power)


class RenyiMax(Objective):
    """The largest log-weight, E max_k log w_k: VR-max, the Rényi bound as α -> -infinity.

    It is no lower bound, and its gradient is that of one particle in each row. Rényi
    Divergence Variational Inference (Li & Turner, 2016, https://arxiv.org/abs/1602.02311).

    Args:
        particles: draws of z for each row, K.
    """

    particles: PositiveInt = 5

    def build(self, enumerates: bool = False, dials: Dials | None = None) -> pyro.infer.ELBO:
        self.refuse_states(enumerates)
        return Weighted(self.kind, self.particles, lambda log_w: log_w.amax(0))


class Weighted(PerRow):
    """A bound that is a function of log-weights, with the gradient of its value.

    Args:
        kind: of the objective, for messages.
        particles: draws for each row.
        reduce: log-weights `(particles, rows)` to bounds `(rows,)`.
    """

    def __init__(self, kind: str, particles: int, reduce: Callable[[Tensor], Tensor]) -> None:
        super().__init__(kind, particles)
        self.reduce = reduce

    def bound(self, model: Any, guide: Any, args: tuple[Any, ...], kwargs: Any) -> Tensor:
        log_p, log_q = self.log_densities(model, guide, args, kwargs)
        return self.reduce(log_p - log_q).sum()


def log_mean(log_w: Tensor, dim: int = 0) -> Tensor:
    """The logarithm of the mean of weights."""
    return log_w.logsumexp(dim) - math.log(log_w.shape[dim])
