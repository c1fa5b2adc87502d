"""Evaluation: how good is the model, and how good is the number that says so."""

from pyrovae.evaluate.comparison import Comparison, compare, select
from pyrovae.evaluate.imputation import Imputations, impute
from pyrovae.evaluate.likelihood import (
    LogLikelihood,
    bound,
    latents,
    log_likelihood,
    log_weights,
    reconstruct,
)

__all__ = [
    "Comparison",
    "Imputations",
    "LogLikelihood",
    "bound",
    "compare",
    "impute",
    "latents",
    "log_likelihood",
    "log_weights",
    "reconstruct",
    "select",
]
