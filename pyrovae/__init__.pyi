from . import families, models, networks, objectives, plots, priors, transforms
from .batch import Batch
from .catalogue import roles
from .data import Data, load
from .errors import Error
from .evaluate import (
    Comparison,
    Imputations,
    LogLikelihood,
    compare,
    impute,
    latents,
    log_likelihood,
    log_weights,
    reconstruct,
    select,
)
from .fitting import FitError, History, fit
from .models import (
    VAE,
    ConditionalVAE,
    HierarchicalVAE,
    Mixture,
    Model,
    Pair,
    SemiSupervisedVAE,
    Stochastic,
    Transformed,
)
from .proposal import Proposal, propose
from .refitting import refit_prior
from .runs import open_run, save

__all__ = [
    "VAE",
    "Batch",
    "Comparison",
    "ConditionalVAE",
    "Data",
    "Error",
    "FitError",
    "HierarchicalVAE",
    "History",
    "Imputations",
    "LogLikelihood",
    "Mixture",
    "Model",
    "Pair",
    "Proposal",
    "SemiSupervisedVAE",
    "Stochastic",
    "Transformed",
    "compare",
    "families",
    "fit",
    "impute",
    "latents",
    "load",
    "log_likelihood",
    "log_weights",
    "models",
    "networks",
    "objectives",
    "open_run",
    "plots",
    "priors",
    "propose",
    "reconstruct",
    "refit_prior",
    "roles",
    "save",
    "select",
    "transforms",
]
