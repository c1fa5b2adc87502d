r"""Gradients through the draws: which way the encoder learns from weights.

The parameters phi of the guide act on a log-weight twice, through the draw z = g(eps, phi) and
through the density log q_phi(z | x) that the draw is put into; the parameters theta of the model
through log p_theta(x, z). Estimators of the gradient differ in how they weigh the three,

    \sum_k  a_k d log p_theta(x, z_k) / d theta
          + b_k (d log w_k / d z_k) (d z_k / d phi)
          - c_k d log q_phi(z_k | x) / d phi .

With the normalised weights u_k = w_k / \sum_j w_j, the gradient of the value of `IWAE` has
a = b = c = u. The third term, the score, is mere noise at K = 1: its mean is 0, so `STL` drops it.
In general its mean is not 0, but reparameterising it once more turns it into one along the draws,

    E[u_k d log q / d phi] = E[(u_k - u_k^2) (d log w_k / d z_k) (d z_k / d phi)],

which leaves b = u^2 and c = 0: `DReG`. Where the guide is the posterior, log w does not depend on
z, and both have the gradient 0 exactly, not on average.

To keep the three apart the guide's draws are cut: at each latent the value v, with its graph to
phi, is replaced by a leaf v'. Where latents depend on one another, the second term goes through
them in reverse order, with g_n = d(f + \sum_{m > n} g_m v_m) / d v'_n for f = \sum_k b_k log w_k:
then \sum_n stop(g_n) v_n has the gradient that is wanted, and the guide runs once.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import pyro.infer
import torch
from pydantic import PositiveInt
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyrovae.objectives.importance import log_mean
from pyrovae.objectives.objective import Objective, PerRow
from pyrovae.objectives.terms import tempered
from pyrovae.schedules import Dials, Quantity


class STL(Objective):
    """The evidence lower bound with the path derivative alone: sticking the landing.

    The closer the guide is to the posterior, the less noise its gradient has. Sticking the
    Landing: Simple, Lower-Variance Gradient Estimators for Variational Inference (Roeder, Wu &
    Duvenaud, 2017, https://arxiv.org/abs/1703.09194).

    Args:
        particles: draws of z for each row.
        beta: the weight of KL(q || p), as for `ELBO`.
    """

    particles: PositiveInt = 1
    beta: Quantity = 1.0

    def build(self, enumerates: bool = False, dials: Dials | None = None) -> pyro.infer.ELBO:
        self.refuse_states(enumerates)
        return tempered(Paths(self.kind, self.particles, _landing), self.beta, dials)


class DReG(Objective):
    """The bound of `IWAE` with the doubly reparameterised gradient for the encoder, b_k = u_k^2.

    Its signal does not drown as particles are added. Doubly Reparameterized Gradient Estimators
    for Monte Carlo Objectives (Tucker et al., 2019, https://arxiv.org/abs/1810.04152).

    Args:
        particles: draws of z for each row, K.
    """

    particles: PositiveInt = 5

    def build(self, enumerates: bool = False, dials: Dials | None = None) -> pyro.infer.ELBO:
        self.refuse_states(enumerates)
        return Paths(self.kind, self.particles, _doubly)


class PartialIWAE(Objective):
    """The bound of `IWAE` with all particles for the decoder, `MultiplyIWAE` for the encoder.

    Tighter Variational Bounds are Not Necessarily Better (Rainforth et al., 2018,
    https://arxiv.org/abs/1802.04537).

    Args:
        groups: how many bounds the encoder's objective is the mean of, M.
        particles: draws of z for each row in each of them, K; the decoder's bound has all M K.
    """

    groups: PositiveInt = 5
    particles: PositiveInt = 5

    def build(self, enumerates: bool = False, dials: Dials | None = None) -> pyro.infer.ELBO:
        self.refuse_states(enumerates)

        def partly(log_w: Tensor) -> Weights:
            within = log_w.unflatten(0, (self.groups, -1)).softmax(1).flatten(0, 1) / self.groups
            return Weights(log_mean(log_w), log_w.softmax(0), within, within)

        return Paths(self.kind, self.groups * self.particles, partly)


class Weights(NamedTuple):
    """A bound, `(rows,)`, and what each draw counts for in its gradient, `(particles, rows)`.

    Args:
        bound: the estimate itself.
        model: a, of d log p / d theta.
        path: b, of the derivative along the draw; `None` for none.
        score: c, of -d log q / d phi; `None` for none.
    """

    bound: Tensor
    model: Tensor
    path: Tensor | None = None
    score: Tensor | None = None


def _landing(log_w: Tensor) -> Weights:
    even = torch.full_like(log_w, 1 / len(log_w))
    return Weights(log_w.mean(0), even, even)


def _doubly(log_w: Tensor) -> Weights:
    normalised = log_w.softmax(0)
    return Weights(log_mean(log_w), normalised, normalised.square())


class Paths(PerRow):
    """A bound whose gradient is put together from the three ways that parameters act.

    Args:
        kind: of the objective, for messages.
        particles: draws for each row.
        weigh: log-weights `(particles, rows)`, without gradient, to the weights of the ways.
    """

    def __init__(self, kind: str, particles: int, weigh: Callable[[Tensor], Weights]) -> None:
        super().__init__(kind, particles)
        self.weigh = weigh

    def bound(self, model: Any, guide: Any, args: tuple[Any, ...], kwargs: Any) -> Tensor:
        cut = Cut()
        log_p, log_q = self.log_densities(model, guide, args, kwargs, cut)
        log_w = log_p - log_q
        value, of_model, of_path, of_score = self.weigh(log_w.detach())
        if not torch.is_grad_enabled():
            return value.sum()
        surrogate = (of_model * log_p).sum()
        if of_path is not None:
            surrogate = surrogate + cut.along_draws((of_path * log_w).sum())
        if of_score is not None:
            surrogate = surrogate - (of_score * log_q).sum()
        return value.sum() + (surrogate - surrogate.detach())


class Cut(Messenger):
    """Cuts the graph at each draw of a guide, and remembers both ends."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn: list[Tensor] = []
        self.leaves: list[Tensor] = []

    def along_draws(self, f: Tensor) -> Tensor:
        """What has the gradient of f in the guide's parameters, through the draws alone."""
        total = f.new_zeros(())
        if not self.leaves:
            return total
        slopes = torch.autograd.grad(
            f, self.leaves, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        for drawn, leaf, slope in reversed([*zip(self.drawn, self.leaves, slopes, strict=True)]):
            if total.requires_grad:
                (more,) = torch.autograd.grad(
                    total, leaf, retain_graph=True, allow_unused=True, materialize_grads=True
                )
                slope = slope + more
            total = total + (slope * drawn).sum()
        return total

    def _pyro_post_sample(self, message: Any) -> None:
        if message["is_observed"] or site_is_subsample(message) or not message["fn"].has_rsample:
            return
        drawn = message["value"]
        leaf = drawn.detach().requires_grad_()
        message["value"] = leaf
        self.drawn.append(drawn)
        self.leaves.append(leaf)
