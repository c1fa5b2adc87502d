"""Priors: p(z), what the latent is before any data are seen."""

from pyrovae.priors.conditional import Conditional
from pyrovae.priors.exemplars import Exemplar
from pyrovae.priors.flows import Flow
from pyrovae.priors.mixtures import GaussianMixture, Vamp
from pyrovae.priors.plain import HorseshoeLike, Laplace, LearnedNormal, StandardNormal, StudentT
from pyrovae.priors.prior import Guide, Prior
from pyrovae.priors.spaces import Categorical, RelaxedBernoulli, UniformSphere

__all__ = [
    "Categorical",
    "Conditional",
    "Exemplar",
    "Flow",
    "GaussianMixture",
    "Guide",
    "HorseshoeLike",
    "Laplace",
    "LearnedNormal",
    "Prior",
    "RelaxedBernoulli",
    "StandardNormal",
    "StudentT",
    "UniformSphere",
    "Vamp",
]
