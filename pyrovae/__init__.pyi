from . import families, models, networks, objectives, plots, priors, transforms
from .batch import Batch
from .catalogue import roles
from .data import Data, load
from .errors import Error
from .evaluate import (
    Comparison,
    LogLikelihood,
    compare,
    latents,
    log_likelihood,
    log_weights,
    reconstruct,
    select,
)
from .fitting import FitError, History, fit
from .models import VAE, Mixture, Model, Pair, Transformed
from .runs import open_run, save

__all__ = [
    "VAE",
    "Batch",
    "Comparison",
    "Data",
    "Error",
    "FitError",
    "History",
    "LogLikelihood",
    "Mixture",
    "Model",
    "Pair",
    "Transformed",
    "compare",
    "families",
    "fit",
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
    "reconstruct",
    "roles",
    "save",
    "select",
    "transforms",
]
