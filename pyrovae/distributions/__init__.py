"""Distributions that torch and Pyro do not have, each one in its own right.

A family turns a network's output into a distribution; where there is none to turn it into, it is
here, with `log_prob`, `sample` and a support, and can be used without the rest of the package.
"""

from pyrovae.distributions.onehot import STATES, OneHot, all_states
from pyrovae.distributions.present import Present
from pyrovae.distributions.supports import base, one_hot, sphere

__all__ = ["STATES", "OneHot", "Present", "all_states", "base", "one_hot", "sphere"]
