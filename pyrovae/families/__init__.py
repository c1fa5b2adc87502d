"""Families: p(x | h) and q(z | h), distributions whose parameters a network computes."""

from pyrovae.families.categorical import Categorical, OrderedLogistic
from pyrovae.families.circular import VonMises
from pyrovae.families.columns import Columns
from pyrovae.families.continuous import (
    FixedNormal,
    Laplace,
    Normal,
    SharedNormal,
    SphericalNormal,
    StudentT,
)
from pyrovae.families.counts import (
    NegativeBinomial,
    Poisson,
    ZeroInflatedNegativeBinomial,
    ZeroInflatedPoisson,
)
from pyrovae.families.discrete import Bernoulli, BetaBinomial, Binomial
from pyrovae.families.family import Family
from pyrovae.families.flows import Flow
from pyrovae.families.guides import MixtureOfNormals, OneHot, PowerSpherical, RelaxedBernoulli
from pyrovae.families.images import DiscretizedLogistic, DiscretizedLogisticMixture
from pyrovae.families.joint_normals import LowRankNormal, MultivariateNormal, TiedNormal
from pyrovae.families.positive import Gamma, LogNormal
from pyrovae.families.totals import DirichletMultinomial, Multinomial
from pyrovae.families.unit import Beta, ContinuousBernoulli, LogitNormal

__all__ = [
    "Bernoulli",
    "Beta",
    "BetaBinomial",
    "Binomial",
    "Categorical",
    "Columns",
    "ContinuousBernoulli",
    "DirichletMultinomial",
    "DiscretizedLogistic",
    "DiscretizedLogisticMixture",
    "Family",
    "FixedNormal",
    "Flow",
    "Gamma",
    "Laplace",
    "LogNormal",
    "LogitNormal",
    "LowRankNormal",
    "MixtureOfNormals",
    "Multinomial",
    "MultivariateNormal",
    "NegativeBinomial",
    "Normal",
    "OneHot",
    "OrderedLogistic",
    "Poisson",
    "PowerSpherical",
    "RelaxedBernoulli",
    "SharedNormal",
    "SphericalNormal",
    "StudentT",
    "TiedNormal",
    "VonMises",
    "ZeroInflatedNegativeBinomial",
    "ZeroInflatedPoisson",
]
