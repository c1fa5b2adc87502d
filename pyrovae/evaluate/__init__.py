"""Evaluation: how good is the model, and how good is the number that says so."""

from pyrovae.evaluate.comparison import Seeds, compare, select
from pyrovae.evaluate.imputation import Imputations, impute
from pyrovae.evaluate.likelihood import (
    LogLikelihood,
    bound,
    latents,
    log_likelihood,
    log_weights,
    reconstruct,
)
from pyrovae.evaluate.nonparametric import MixtureBound, mixture_bound
from pyrovae.evaluate.paired import Comparison, Disagreements, Entry

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
