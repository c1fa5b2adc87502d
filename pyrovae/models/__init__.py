"""Models: Pyro's `model(batch)` and `guide(batch)`, put together from parts."""

from pyrovae.models.conditional import ConditionalVAE
from pyrovae.models.hierarchical import HierarchicalVAE, Layer, Stochastic
from pyrovae.models.linear import FactorAnalysis, ProbabilisticPCA
from pyrovae.models.mixture import Mixture
from pyrovae.models.model import Model, Tag
from pyrovae.models.pair import Pair
from pyrovae.models.semisupervised import SemiSupervisedVAE
from pyrovae.models.transformed import Transformed
from pyrovae.models.vae import VAE

__all__ = [
    "VAE",
    "ConditionalVAE",
    "FactorAnalysis",
    "HierarchicalVAE",
    "Layer",
    "Mixture",
    "Model",
    "Pair",
    "ProbabilisticPCA",
    "SemiSupervisedVAE",
    "Stochastic",
    "Tag",
    "Transformed",
]
