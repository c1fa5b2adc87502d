"""scikit-learn's GaussianMixture with pyrovae's mixture inside: a covariance type is a family.

scikit-learn adds `reg_covar` to every variance, and a floor raises those that are below it: on
data that fill their space neither changes what EM finds.
"""

import numpy as np
import torch
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.cluster import KMeans
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch.nn.functional import one_hot

from pyrovae import Batch, Mixture
from pyrovae.inference import em
from pyrovae.models.model import Statistics
from pyrovae.place import seeded

FAMILIES = {
    "full": "multivariate-normal",
    "tied": "tied-normal",
    "diag": "normal",
    "spherical": "spherical-normal",
}
STARTS = {"random": "random-responsibilities"}


class GaussianMixture(DensityMixin, BaseEstimator):
    def __init__(
        self,
        n_components=1,
        *,
        covariance_type="full",
        tol=1e-3,
        reg_covar=1e-6,
        max_iter=100,
        n_init=1,
        init_params="kmeans",
        weights_init=None,
        means_init=None,
        precisions_init=None,
        random_state=None,
        warm_start=False,
        verbose=0,
        verbose_interval=10,
    ):
        self.n_components = n_components
        self.covariance_type = covariance_type
        self.tol = tol
        self.reg_covar = reg_covar
        self.max_iter = max_iter
        self.n_init = n_init
        self.init_params = init_params
        self.weights_init = weights_init
        self.means_init = means_init
        self.precisions_init = precisions_init
        self.random_state = random_state
        self.warm_start = warm_start
        self.verbose = verbose
        self.verbose_interval = verbose_interval

    def fit(self, x, y=None):
        batch = Batch(torch.as_tensor(validate_data(self, x, dtype=[np.float64, np.float32])))
        again = self.warm_start and hasattr(self, "model_")
        bounds = [self.lower_bound_ if again else -np.inf]
        runs = self.model_ if again else self._started(batch)
        for epoch in em(self.model_, batch, epochs=self.max_iter, tolerance=self.tol, runs=runs):
            bounds.append(round(-epoch.loss, 12))  # a sum in another order ends in other digits
        self.n_iter_ = len(bounds) - 1
        self.lower_bound_, self.lower_bounds_ = bounds[-1], bounds[1:]
        self.converged_ = self.n_iter_ > 0 and abs(bounds[-1] - bounds[-2]) < self.tol
        return self

    def _started(self, batch):
        """As many mixtures side by side as there are starts."""
        self.model_ = Mixture(
            x=batch.x.shape[1:],
            components=self.n_components,
            family={
                "kind": FAMILIES[self.covariance_type],
                "floor": max(self.reg_covar, 1e-12) ** 0.5,
            },
            initial=STARTS.get(self.init_params, "kmeans-plus-plus"),
        ).to(batch.x.dtype)
        runs = self.model_.beside(self.n_init)
        random = check_random_state(self.random_state)
        with seeded(random.randint(2**31)):
            runs.start(batch)
        if self.init_params == "kmeans":
            found = [
                KMeans(self.n_components, n_init=1, random_state=random).fit(batch.x.numpy())
                for _ in range(self.n_init)
            ]
            runs.begin(batch, lambda rows: _nearest(found, rows).view(-1, *runs.logits.shape))
        self._overrule(runs, len(batch))
        self.model_.choose(runs, 0)
        return runs

    @torch.no_grad()
    def _overrule(self, runs, rows):
        """Weights, means and precisions where they are given, by an M-step of their moments."""
        weights, mean, covariance = parameters(runs)
        if self.weights_init is not None:
            weights = torch.as_tensor(self.weights_init).to(mean).expand_as(weights)
        if self.means_init is not None:
            mean = torch.as_tensor(self.means_init).to(mean).expand_as(mean)
        if self.precisions_init is not None:
            precision = torch.as_tensor(self.precisions_init).to(mean)
            covariance = _matrices(precision, self.covariance_type, mean.shape).inverse()
        steps = mean.shape[-1] ** 0.5 * torch.linalg.cholesky(covariance).mT
        points = mean[..., None, :] + torch.cat([steps, -steps], -2)
        t = runs.family.statistics(points.flatten(0, -2)).unflatten(0, points.shape[:-1]).mean(-2)
        n = rows * weights
        runs.maximize(Statistics(n, n[..., None] * t, n.new_zeros(n.shape[:-1])))

    def _fitted(self):
        check_is_fitted(self, "model_")
        return self.model_

    @property
    def weights_(self):
        return parameters(self._fitted())[0].numpy()

    @property
    def means_(self):
        return parameters(self._fitted())[1].numpy()

    @property
    def covariances_(self):
        return self._own(parameters(self._fitted())[2])

    @property
    def precisions_(self):
        return self._own(parameters(self._fitted())[2].inverse())

    @property
    def precisions_cholesky_(self):
        return self._own(torch.linalg.cholesky(parameters(self._fitted())[2]).inverse().mT)

    def _own(self, matrices):
        """What scikit-learn has of a matrix for each component."""
        if self.covariance_type == "full":
            return matrices.numpy()
        if self.covariance_type == "tied":
            return matrices[0].numpy()
        diagonal = matrices.diagonal(dim1=-2, dim2=-1).numpy()
        return diagonal if self.covariance_type == "diag" else diagonal[:, 0]

    def predict(self, x):
        return self._fitted().predict(x)

    def fit_predict(self, x, y=None):
        return self.fit(x).predict(x)

    def predict_proba(self, x):
        return self._fitted().predict_proba(x)

    def score_samples(self, x):
        return self._fitted().score_samples(x).astype(x.dtype)

    def score(self, x, y=None):
        return self.score_samples(x).mean()

    def bic(self, x):
        return self._fitted().bic(x)

    def aic(self, x):
        return self._fitted().aic(x)

    def _n_parameters(self):
        return self._fitted().freedom

    def sample(self, n_samples=1):
        model = self._fitted()
        if n_samples < 1:
            raise ValueError("Invalid value for 'n_samples'")
        seed = check_random_state(self.random_state).randint(2**31)
        x, k = model.sample_with_labels(n_samples, seed)
        return x.numpy(), k.numpy()


def log_gaussian_prob(x, means, precisions_chol, covariance_type):
    """The log densities of the rows, `(rows, components)`, as the E-step has them."""
    matrices = covariance_type in ("full", "tied")
    precisions = precisions_chol @ precisions_chol.mT if matrices else precisions_chol**2
    g = GaussianMixture(
        len(means),
        covariance_type=covariance_type,
        reg_covar=0,
        max_iter=0,
        means_init=means,
        precisions_init=precisions,
    ).fit(x)
    family = g.model_.family
    with torch.no_grad():
        return family.densities(g.model_.h)(family.prepare(Batch(torch.as_tensor(x)))).numpy()


@torch.no_grad()
def parameters(model):
    """The weights, the means and the covariances as matrices."""
    p, weights = model.family(model.h), model.logits.softmax(-1)
    full = hasattr(p, "covariance_matrix")
    return weights, p.mean.detach(), p.covariance_matrix if full else p.variance.diag_embed()


def _matrices(precision, covariance_type, shape):
    """Precisions as scikit-learn has them, as matrices for means of this shape."""
    if covariance_type == "spherical":
        precision = precision[:, None].expand(shape)
    if covariance_type in ("spherical", "diag"):
        precision = precision.diag_embed()
    return precision.expand(*shape, shape[-1])


def _nearest(found, rows):
    labels = np.stack([k_means.predict(rows.numpy()) for k_means in found], 1)
    return one_hot(torch.as_tensor(labels).long(), found[0].n_clusters).to(rows)
