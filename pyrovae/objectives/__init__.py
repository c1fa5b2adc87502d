"""Objectives: what SVI maximises, as declared parts that build Pyro's estimators."""

from pyrovae.objectives.evidence import ELBO, MarginalLikelihood, MeanFieldELBO
from pyrovae.objectives.importance import IWAE, MultiplyIWAE, Renyi, RenyiMax
from pyrovae.objectives.objective import Objective
from pyrovae.objectives.path import STL, DReG, PartialIWAE
from pyrovae.objectives.wake import WakeSleep

__all__ = [
    "ELBO",
    "IWAE",
    "STL",
    "DReG",
    "MarginalLikelihood",
    "MeanFieldELBO",
    "MultiplyIWAE",
    "Objective",
    "PartialIWAE",
    "Renyi",
    "RenyiMax",
    "WakeSleep",
]
