"""Distributions that torch and Pyro do not have, each one in its own right.

A family turns a network's output into a distribution; where there is none to turn it into, it is
here, with `log_prob`, `sample` and a support, and can be used without the rest of the package.
"""

from pyrovae.distributions.concentrated import Beta, Gamma, VonMises
from pyrovae.distributions.flow import NormalizingFlow, build_flow
from pyrovae.distributions.joint import Joint, columnwise
from pyrovae.distributions.levels import Levels
from pyrovae.distributions.logistic import DiscretizedLogistic
from pyrovae.distributions.multinomial import DirichletMultinomial, Multinomial
from pyrovae.distributions.normal_mixture import NormalMixture
from pyrovae.distributions.normals import Full, JointNormal, LowRank, PresentNormal
from pyrovae.distributions.onehot import STATES, OneHot, all_states
from pyrovae.distributions.overdispersed import BetaBinomial, NegativeBinomial
from pyrovae.distributions.present import Present
from pyrovae.distributions.relaxed import RelaxedBernoulli
from pyrovae.distributions.sparse import HorseshoeLike
from pyrovae.distributions.sphere import PowerSpherical, UniformSphere
from pyrovae.distributions.supports import angle, base, one_hot, open_unit_interval, sphere
from pyrovae.distributions.tilted import TiltedUniform

__all__ = [
    "STATES",
    "Beta",
    "BetaBinomial",
    "DirichletMultinomial",
    "DiscretizedLogistic",
    "Full",
    "Gamma",
    "HorseshoeLike",
    "Joint",
    "JointNormal",
    "Levels",
    "LowRank",
    "Multinomial",
    "NegativeBinomial",
    "NormalMixture",
    "NormalizingFlow",
    "OneHot",
    "PowerSpherical",
    "Present",
    "PresentNormal",
    "RelaxedBernoulli",
    "TiltedUniform",
    "UniformSphere",
    "VonMises",
    "all_states",
    "angle",
    "base",
    "build_flow",
    "columnwise",
    "one_hot",
    "open_unit_interval",
    "sphere",
]
