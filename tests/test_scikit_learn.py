"""scikit-learn's own tests of GaussianMixture, of its installed file, on pyrovae's mixture."""

import numpy as np
import pytest
import sklearn
import sklearn.mixture.tests.test_gaussian_mixture as theirs
from adapter import GaussianMixture, log_gaussian_prob
from sklearn.mixture import _gaussian_mixture

PASSED = (
    "test_bic_1d_1component",
    "test_convergence_detected_with_warm_start",
    "test_fitted_precision_covariance_concistency",
    "test_gaussian_mixture_aic_bic",
    "test_gaussian_mixture_attributes",
    "test_gaussian_mixture_estimate_log_prob_resp",
    "test_gaussian_mixture_fit",
    "test_gaussian_mixture_fit_best_params",
    "test_gaussian_mixture_fit_predict",
    "test_gaussian_mixture_fit_predict_n_init",
    "test_gaussian_mixture_log_probabilities",
    "test_gaussian_mixture_n_parameters",
    "test_gaussian_mixture_precisions_init_diag",
    "test_gaussian_mixture_predict_predict_proba",
    "test_gaussian_mixture_setting_best_params",
    "test_gaussian_mixture_single_component_stable",
    "test_init",
    "test_init_means_not_duplicated",
    "test_max_iter_zero",
    "test_means_for_all_inits",
    "test_monotonic_likelihood",
    "test_multiple_init",
    "test_sample",
    "test_score",
    "test_score_samples",
    "test_warm_start",
)

PRIVATE = "calls scikit-learn's private functions, and nothing that the adapter replaces"
MESSAGES = "asks for the messages with which scikit-learn refuses its arguments"
LEFT_OUT = {
    "test_check_means": MESSAGES,
    "test_check_precisions": MESSAGES,
    "test_check_weights": MESSAGES,
    "test_compute_log_det_cholesky": PRIVATE,
    "test_gaussian_mixture_all_init_does_not_estimate_gaussian_parameters": (
        "counts the calls of a private function"
    ),
    "test_gaussian_mixture_array_api_compliance": "other arrays than NumPy's go in and out",
    "test_gaussian_mixture_fit_convergence_warning": (
        "asks for a warning, where a history says 'finished' instead of 'converged'"
    ),
    "test_gaussian_mixture_precisions_init": "calls private methods of GaussianMixture",
    "test_gaussian_mixture_raises_where_array_api_not_implemented": MESSAGES,
    "test_gaussian_mixture_verbose": "prints",
    "test_gaussian_suffstat_sk_spherical": PRIVATE,
    "test_regularisation": (
        "asks for an error where a covariance collapses, which a floor prevents"
    ),
    "test_suffstat_sk_diag": PRIVATE,
    "test_suffstat_sk_full": PRIVATE,
    "test_suffstat_sk_tied": PRIVATE,
}

TESTS = {name: test for name, test in vars(theirs).items() if name.startswith("test_")}
globals().update({name: TESTS[name] for name in PASSED if name in TESTS})


@pytest.fixture(autouse=True)
def _adapter(monkeypatch):
    monkeypatch.setattr(theirs, "GaussianMixture", GaussianMixture)
    monkeypatch.setattr(_gaussian_mixture, "_estimate_log_gaussian_prob", log_gaussian_prob)


@pytest.fixture(params=[np.float64, np.float32], ids=["float64", "float32"])
def global_dtype(request):
    return request.param


@pytest.fixture
def global_random_seed():
    return 0


def test_every_test_of_scikit_learn_is_passed_or_left_out_for_a_reason():
    unknown = sorted(TESTS.keys() - LEFT_OUT.keys() - set(PASSED))
    assert not unknown, (
        f"scikit-learn {sklearn.__version__} has tests that are neither passed nor left out: "
        f"{', '.join(unknown)}; add each to PASSED, or to LEFT_OUT with the reason"
    )
    assert not LEFT_OUT.keys() & set(PASSED)
