"""Estimators of log p(x), by name."""

from pyrovae.evaluate.estimators.annealing import AIS
from pyrovae.evaluate.estimators.estimator import Columns, Estimator, Exact
from pyrovae.evaluate.estimators.grid import Grid
from pyrovae.evaluate.estimators.importance import IWAE

__all__ = ["AIS", "IWAE", "Columns", "Estimator", "Exact", "Grid"]
