r"""The KL of the evidence lower bound, weighed: beta, free bits and total correlation.

    ELBO = E_q[log p(x|z)] - \sum_s KL_s,        KL_s = E_q[log q(z_s|..) - log p(z_s|..)]

for the latent sites s. Three changes of it, which are bounds no more once they are on:

* `beta` times each KL_s: 1 is the bound, a rise from 0 a warm-up, above 1 a tighter bottleneck.
  It is a handler around model and guide that scales the latent sites of both, so any of Pyro's
  estimators takes it, and models know nothing of it.
* `free_bits`, max(free_bits, mean over rows of KL_s) in place of the mean, in nats for each site:
  a site that uses less has no reason to use less still (Improved Variational Inference with
  Inverse Autoregressive Flow, Kingma et al., 2016, https://arxiv.org/abs/1606.04934).
* `total_correlation`, an extra weight on TC = KL(q(z) || \prod_j q(z_j)), the dependence between
  the dimensions of a site in the aggregated posterior q(z) = mean over rows of q(z | x)
  (Isolating Sources of Disentanglement in Variational Autoencoders, Chen et al., 2018,
  https://arxiv.org/abs/1802.04942). Of a batch of B rows with draws z_i,

    TC = (1/B) \sum_i [log (1/B) \sum_j q(z_i | x_j) - \sum_d log (1/B) \sum_j q(z_id | x_j)],

  which is minibatch-weighted sampling with B in place of the number N of all rows: with N the
  value is higher by (D - 1) log(N / B), and the gradient the same.
"""

import math
from typing import Any

import pyro.infer
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Independent, kl_divergence

from pyrovae import traces
from pyrovae.errors import Error
from pyrovae.objectives.objective import PerRow
from pyrovae.schedules import Dials, Quantity

Number = float | Tensor


def weighed(
    objective: Any, plain: pyro.infer.ELBO, enumerates: bool, closed: bool, dials: Dials | None
) -> pyro.infer.ELBO:
    """An estimator of the evidence lower bound with its KL as the fields of an objective say.

    Args:
        objective: with the fields `particles`, `beta`, `free_bits` and `total_correlation`.
        plain: what estimates the bound itself, taken unless more than `beta` is on.
        enumerates: whether latents are to be summed over, not drawn.
        closed: whether the KL is taken in closed form where that is known.
        dials: what holds the scheduled numbers.
    """
    if objective.free_bits == 0 and objective.total_correlation == 0:
        return tempered(plain, objective.beta, dials)
    if enumerates:
        raise Error(
            "free_bits and total_correlation need draws, and the model sums over its discrete "
            "latents: leave both 0",
            "objective",
        )
    dials = dials or Dials()
    free_bits = dials("free_bits", objective.free_bits)
    correlation = dials("total_correlation", objective.total_correlation)
    terms = Terms(objective.kind, objective.particles, free_bits, correlation, closed)
    return tempered(terms, objective.beta, dials)


def tempered(elbo: pyro.infer.ELBO, beta: Quantity, dials: Dials | None) -> pyro.infer.ELBO:
    """The estimator with `beta` on the latent sites; itself where that is the number 1."""
    if beta == 1:
        return elbo
    return Tempered(elbo, (dials or Dials())("beta", beta))


class Tempered(pyro.infer.ELBO):
    """An estimator around programs whose latent sites are weighed.

    Args:
        elbo: any of Pyro's.
        beta: the weight, or the tensor that holds it.
    """

    def __init__(self, elbo: pyro.infer.ELBO, beta: Number) -> None:
        super().__init__(elbo.num_particles)
        self.elbo, self.weigh = elbo, Weigh(beta)

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """The loss, to be differentiated."""
        return self.elbo.differentiable_loss(self.weigh(model), self.weigh(guide), *args, **kwargs)

    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """The loss."""
        return self.elbo.loss(self.weigh(model), self.weigh(guide), *args, **kwargs)

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """The loss, with its gradients on the parameters."""
        return self.elbo.loss_and_grads(self.weigh(model), self.weigh(guide), *args, **kwargs)

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        return self.elbo._get_trace(self.weigh(model), self.weigh(guide), args, kwargs)


class Weigh(Messenger):
    """Scales the log densities of latent sites. Unlike `poutine.scale` it takes 0.

    Args:
        beta: the weight, or the tensor that holds it.
    """

    def __init__(self, beta: Number) -> None:
        super().__init__()
        self.beta = beta

    def _pyro_sample(self, message: Any) -> None:
        if not message["is_observed"]:
            message["scale"] = message["scale"] * self.beta


class Terms(PerRow):
    """The evidence lower bound put together from its terms, those of the KL weighed.

    Args:
        kind: of the objective, for messages.
        particles: draws for each row.
        free_bits: in nats for each site.
        correlation: the extra weight of the total correlation.
        closed: whether the KL is taken in closed form where that is known.
    """

    def __init__(
        self, kind: str, particles: int, free_bits: Number, correlation: Number, closed: bool
    ) -> None:
        super().__init__(kind, particles)
        self.free_bits, self.correlation, self.closed = free_bits, correlation, closed

    def bound(self, model: Any, guide: Any, args: tuple[Any, ...], kwargs: Any) -> Tensor:
        drawn, joint = self.run(model, guide, args, kwargs)
        size, latent = (self.num_particles, len(args[0])), traces.latents(joint)

        def elsewhere(trace: poutine.Trace) -> Tensor:
            of = lambda site: site["name"] not in latent  # noqa: E731
            return traces.log_density(trace, *size, of, scaled=True).mean(1).sum()

        total = elsewhere(joint) - elsewhere(drawn)
        for name in sorted(latent):
            q, p = drawn.nodes[name], joint.nodes[name]
            kl = self._kl(q, p).expand(size).mean()
            if not _off(self.free_bits):
                kl = kl.maximum(torch.as_tensor(self.free_bits, dtype=kl.dtype, device=kl.device))
            total = total - scale_and_mask(kl.expand(size[1:]), q["scale"]).sum()
            if not _off(self.correlation):
                extra = _total_correlation(q, self.kind).expand(size).mean(0)
                total = total - (self.correlation * extra).sum()
        return total

    def _kl(self, q: Any, p: Any) -> Tensor:
        """KL(q || p) of a site, in closed form or of its draws."""
        if self.closed:
            try:
                return scale_and_mask(kl_divergence(q["fn"], p["fn"]), mask=q["mask"])
            except NotImplementedError:
                pass
        log_q = scale_and_mask(q["fn"].log_prob(q["value"]), mask=q["mask"])
        return log_q - scale_and_mask(p["fn"].log_prob(p["value"]), mask=p["mask"])


def _total_correlation(site: Any, kind: str) -> Tensor:
    """The terms of the total correlation of a site of the guide, `(..., rows)`."""
    q, z = site["fn"], site["value"]
    if not isinstance(q, Independent) or q.base_dist.event_shape:
        raise Error(
            f"{kind} with total_correlation needs a guide that is a product over dimensions, and "
            f"that of '{site['name']}' is not: use the posterior normal, or leave it 0",
            "objective",
        )
    row = -1 - len(q.event_shape)
    pairs = q.base_dist.log_prob(z.movedim(row, 0).unsqueeze(row))
    joint = pairs.flatten(row + 1).sum(-1).logsumexp(-1)
    apart = pairs.logsumexp(row).flatten(row + 1).sum(-1)
    dims, rows = q.event_shape.numel(), z.shape[row]
    return (joint - apart + (dims - 1) * math.log(rows)).movedim(0, -1)


def _off(number: Number) -> bool:
    return not isinstance(number, Tensor) and number == 0
