from . import arviz, families, models, networks, objectives, plots, priors, transforms
from .batch import Batch
from .catalogue import roles
from .clustering import Clusters, cluster_latents
from .data import Data, load
from .errors import Error
from .evaluate import (
    Comparison,
    Imputations,
    LogLikelihood,
    MixtureBound,
    Seeds,
    compare,
    impute,
    latents,
    log_likelihood,
    log_weights,
    mixture_bound,
    reconstruct,
    select,
)
from .fitting import FitError, History, fit
from .models import (
    VAE,
    ConditionalVAE,
    FactorAnalysis,
    HierarchicalVAE,
    Mixture,
    Model,
    Pair,
    ProbabilisticPCA,
    SemiSupervisedVAE,
    Stochastic,
    Transformed,
)
from .proposal import Proposal, propose
from .refitting import refit_prior
from .report import write_report
from .runs import open_run, save

__all__ = [
    "VAE",
    "Batch",
    "Clusters",
    "Comparison",
    "ConditionalVAE",
    "Data",
    "Error",
    "FactorAnalysis",
    "FitError",
    "HierarchicalVAE",
    "History",
    "Imputations",
    "LogLikelihood",
    "Mixture",
    "MixtureBound",
    "Model",
    "Pair",
    "ProbabilisticPCA",
    "Proposal",
    "Seeds",
    "SemiSupervisedVAE",
    "Stochastic",
    "Transformed",
    "arviz",
    "cluster_latents",
    "compare",
    "families",
    "fit",
    "impute",
    "latents",
    "load",
    "log_likelihood",
    "log_weights",
    "mixture_bound",
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
    "write_report",
]
