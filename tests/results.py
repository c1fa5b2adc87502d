"""Results as estimators give them, made of given numbers."""

import numpy as np

from pyrovae.evaluate import LogLikelihood


def given(value, khat=-np.inf, exact=True, particles=1, mcse=0.0, ess=1.0):
    """A result that says `value` of the rows."""
    value = np.asarray(value, dtype=float)
    none = np.zeros_like(value)
    return LogLikelihood(
        value=value,
        mcse=none + mcse,
        ess=none + ess,
        khat=none + khat,
        elbo=value - 1,
        jackknife=value,
        curve=np.tile(value[:, None], 5),
        particles=none.astype(int) + particles,
        method="exact" if exact else "iwae",
        dimensions=2,
    )
