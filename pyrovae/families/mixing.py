r"""Latents with a gamma distribution: the precision of a t, the rate of a negative binomial.

Both are plain families in which one number varies from entry to entry, w ~ Gamma(k, k), of mean 1,

    Student's t          x = mu + sigma y / w^1/2,    y ~ N(0, 1),    k = nu / 2
    negative binomial    x ~ Poisson(mu w),                           k = theta .

EM takes w for one more latent, so an M-step is that of the plain family, in which each row has a
weight, and beside it that of a gamma distribution, from the sums of E[w] and of E[log w],

    log k - digamma(k) = E[w] - 1 - E[log w] .

*Parameter expansion* makes it faster: w ~ alpha Gamma(k, k) gives x no distribution that it could
not have before, as sigma^2 or mu take up what alpha does, and still the M-step for alpha, the mean
of E[w], raises the likelihood. Where sigma or mu would fall below its floor by it, alpha stays 1.
Parameter Expansion to Accelerate EM: The PX-EM Algorithm (Liu, Rubin & Wu, 1998,
https://doi.org/10.1093/biomet/85.4.755).
"""

import torch
from torch import Tensor


def gap(w: Tensor, log_w: Tensor, alpha: Tensor) -> Tensor:
    """What log k - digamma(k) has to be, by the means of w and of log w.

    Where alpha is the mean of w, it is log E[w] - E[log w].
    """
    return w / alpha - 1 - (log_w - alpha.log())


def shared(gaps: Tensor, n: Tensor, event_dim: int) -> Tensor:
    """The gap of a k that components have in common, `(*components, *event)` to `(..., *event)`.

    Args:
        gaps: that of each component.
        n: the rows that it is a mean over, of a shape that broadcasts with it.
        event_dim: how many of the last dimensions are the event's.
    """
    components = -1 - event_dim
    return (n * gaps).sum(components) / n.sum(components)


def concentration(gap: Tensor) -> Tensor:
    """The k with log k - digamma(k) = gap, by Newton's method in 1 / k.

    Estimating a Gamma distribution (Minka, 2002).
    """
    s = gap.double().clamp(min=1e-12)
    k = (3 - s + ((s - 3).square() + 24 * s).sqrt()) / (12 * s)
    for _ in range(3):
        slope = k - k.square() * torch.polygamma(1, k)
        k = 1 / (1 / k + (k.log() - k.digamma() - s) / slope)
    return k.to(gap)
