"""Families: p(x | h) and q(z | h), distributions whose parameters a network computes."""

from pyrovae.families.continuous import FixedNormal, MultivariateNormal, Normal, SharedNormal
from pyrovae.families.discrete import Bernoulli, Poisson
from pyrovae.families.family import Family

__all__ = [
    "Bernoulli",
    "Family",
    "FixedNormal",
    "MultivariateNormal",
    "Normal",
    "Poisson",
    "SharedNormal",
]
