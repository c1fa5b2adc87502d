from . import families, models, networks, objectives, plots, priors, transforms
from .batch import Batch
from .data import Data, load
from .errors import Error
from .evaluate import Comparison, LogLikelihood, compare, log_likelihood, log_weights
from .fitting import History, fit
from .models import VAE, Mixture, Model, Pair, Transformed
from .part import roles
from .runs import open_run

__all__ = [
    "VAE",
    "Batch",
    "Comparison",
    "Data",
    "Error",
    "History",
    "LogLikelihood",
    "Mixture",
    "Model",
    "Pair",
    "Transformed",
    "compare",
    "families",
    "fit",
    "load",
    "log_likelihood",
    "log_weights",
    "models",
    "networks",
    "objectives",
    "open_run",
    "plots",
    "priors",
    "roles",
    "transforms",
]
