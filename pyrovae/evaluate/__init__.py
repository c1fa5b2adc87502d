"""Evaluation: how good is the model, and how good is the number that says so.

By question, in the order in which they build on one another:

    weights, coordinates, hamiltonian      what the others are made of
    likelihood, estimators/, bounds        how large log p(x) is
    comparison, paired, nonparametric      which model has more of it, and how much there can be
    samplers, mcmc                         draws of p(z | x)
    gaps, freed, grade                     whether the guide is good
    latent_use, use                        whether the latent is used
    uniformity, calibration, predictive    whether ranks among draws are uniform
    samples, twosample, copies             whether draws look like rows
    imputation                             what missing entries are
"""

from pyrovae.evaluate.bounds import Sandwich, sandwich
from pyrovae.evaluate.calibration import Calibration, calibrate
from pyrovae.evaluate.comparison import Seeds, compare, select
from pyrovae.evaluate.copies import Memorisation, memorisation
from pyrovae.evaluate.gaps import grade_guide
from pyrovae.evaluate.grade import GuideGrade
from pyrovae.evaluate.imputation import Imputations, impute
from pyrovae.evaluate.latent_use import latent_use
from pyrovae.evaluate.likelihood import LogLikelihood, log_likelihood
from pyrovae.evaluate.mcmc import Posterior, posterior
from pyrovae.evaluate.nonparametric import MixtureBound, mixture_bound
from pyrovae.evaluate.paired import Comparison, Disagreements, Entry
from pyrovae.evaluate.predictive import PredictiveCheck, predictive_check
from pyrovae.evaluate.samples import SampleGrade, grade_samples
from pyrovae.evaluate.twosample import TwoSample, c2st, mmd
from pyrovae.evaluate.use import LatentUse, SiteUse
from pyrovae.evaluate.weights import bound, latents, log_weights, reconstruct

__all__ = [
    "Calibration",
    "Comparison",
    "Disagreements",
    "Entry",
    "GuideGrade",
    "Imputations",
    "LatentUse",
    "LogLikelihood",
    "Memorisation",
    "MixtureBound",
    "Posterior",
    "PredictiveCheck",
    "SampleGrade",
    "Sandwich",
    "Seeds",
    "SiteUse",
    "TwoSample",
    "bound",
    "c2st",
    "calibrate",
    "compare",
    "grade_guide",
    "grade_samples",
    "impute",
    "latent_use",
    "latents",
    "log_likelihood",
    "log_weights",
    "memorisation",
    "mixture_bound",
    "mmd",
    "posterior",
    "predictive_check",
    "reconstruct",
    "sandwich",
    "select",
]
