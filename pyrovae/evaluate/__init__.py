"""Evaluation: how good is the model, and how good is the number that says so."""

from pyrovae.evaluate.comparison import Seeds, compare, select
from pyrovae.evaluate.imputation import Imputations, impute
from pyrovae.evaluate.likelihood import LogLikelihood, log_likelihood
from pyrovae.evaluate.nonparametric import MixtureBound, mixture_bound
from pyrovae.evaluate.paired import Comparison, Disagreements, Entry
from pyrovae.evaluate.weights import bound, latents, log_weights, reconstruct

__all__ = [
    "Comparison",
    "Disagreements",
    "Entry",
    "Imputations",
    "LogLikelihood",
    "MixtureBound",
    "Seeds",
    "bound",
    "compare",
    "impute",
    "latents",
    "log_likelihood",
    "log_weights",
    "mixture_bound",
    "reconstruct",
    "select",
]
