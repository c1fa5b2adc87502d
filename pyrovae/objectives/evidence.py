r"""The evidence lower bound, and log p(x) itself.

    ELBO = E_q[log p(x, z) - log q(z | x)],   estimated by the mean over particles z_l ~ q(z | x)

Its gradient goes through z_l = g(eps_l, x) where q is reparameterised, and through the score of q
where it is not. Where KL(q || p) is known in closed form, using it in place of its estimate,
`MeanFieldELBO`, is the same bound with another variance. `terms` has what its KL can be weighed
with. A latent of few states can be summed over, in the bound or, if there is no other, in p(x).
"""

from typing import Any

import pyro.infer
from pydantic import PositiveInt
from pyro.poutine.util import site_is_subsample

from pyrovae.errors import Error
from pyrovae.objectives.objective import Objective, refuse_without_gradient
from pyrovae.objectives.terms import weighed
from pyrovae.schedules import Dials, Quantity


class ELBO(Objective):
    """The evidence lower bound, every term estimated from the particles: `pyro.infer.Trace_ELBO`.

    Discrete latents of few states are summed over, by `pyro.infer.TraceEnum_ELBO`. Auto-Encoding
    Variational Bayes (Kingma & Welling, 2014, https://arxiv.org/abs/1312.6114).

    Args:
        particles: draws of z for each row.
        beta: the weight of KL(q || p).
        free_bits: in nats; the KL of each latent site, mean over the rows of a batch, counts as
            at least this.
        total_correlation: an extra weight on the total correlation of each site's dimensions, for
            a guide that is a product over them; its estimate is lower than that of
            minibatch-weighted sampling by (D - 1) log(N / B), for D dimensions and batches of B
            of N rows.
    """

    particles: PositiveInt = 1
    beta: Quantity = 1.0
    free_bits: Quantity = 0.0
    total_correlation: Quantity = 0.0

    def build(self, enumerates: bool = False, dials: Dials | None = None) -> pyro.infer.ELBO:
        kind = pyro.infer.TraceEnum_ELBO if enumerates else pyro.infer.Trace_ELBO
        plain = kind(
            num_particles=self.particles,
            vectorize_particles=self.particles > 1,
            max_plate_nesting=1,
        )
        return weighed(self, plain, enumerates, closed=False, dials=dials)


class MeanFieldELBO(Objective):
    """The evidence lower bound with KL(q || p) in closed form: `pyro.infer.TraceMeanField_ELBO`.

    A pair of distributions whose KL is not registered falls back to the particles.

    Args:
        particles: draws of z for each row.
        beta: the weight of KL(q || p).
        free_bits: in nats; the KL of each latent site, mean over the rows of a batch, counts as
            at least this.
        total_correlation: an extra weight on the total correlation of each site's dimensions, for
            a guide that is a product over them; its estimate is lower than that of
            minibatch-weighted sampling by (D - 1) log(N / B), for D dimensions and batches of B
            of N rows.
    """

    particles: PositiveInt = 1
    beta: Quantity = 1.0
    free_bits: Quantity = 0.0
    total_correlation: Quantity = 0.0

    def build(self, enumerates: bool = False, dials: Dials | None = None) -> pyro.infer.ELBO:
        self.refuse_states(enumerates)
        plain = _Reparameterised(
            num_particles=self.particles,
            vectorize_particles=self.particles > 1,
            max_plate_nesting=1,
        )
        return weighed(self, plain, enumerates, closed=True, dials=dials)


class MarginalLikelihood(Objective):
    """log p(x) itself, all latents summed out of the model; the guide takes no part.

    For latents of few states. As the gradient of `ELBO` with the exact posterior as guide, by
    Fisher's identity, so a mixture can be fitted by either.
    """

    def build(self, enumerates: bool = False, dials: Dials | None = None) -> pyro.infer.ELBO:
        if not enumerates:
            raise Error(
                "marginal-likelihood sums over discrete latents, and the model has none of few "
                "states: use elbo",
                "objective",
            )
        return _Marginal(max_plate_nesting=1)


class _Marginal(pyro.infer.TraceEnum_ELBO):
    """Pyro's estimator with the model enumerated and nothing left to guide."""

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Any:
        summed = pyro.infer.config_enumerate(model, default="parallel")
        return super().differentiable_loss(summed, _unguided, *args, **kwargs)

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        traces = super()._get_trace(model, guide, args, kwargs)
        for name, site in traces[0].nodes.items():
            latent = site["type"] == "sample" and not site["is_observed"]
            if latent and not site_is_subsample(site) and "_enumerate_dim" not in site["infer"]:
                raise Error(
                    f"marginal-likelihood cannot sum over '{name}', which is continuous: use elbo"
                )
        return traces


def _unguided(*_: Any) -> None:
    """A guide of nothing."""


class _Reparameterised(pyro.infer.TraceMeanField_ELBO):
    """Pyro's estimator, which has no gradient for draws that are not reparameterised."""

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        traces = super()._get_trace(model, guide, args, kwargs)
        refuse_without_gradient("mean-field-elbo", traces[1])
        return traces
