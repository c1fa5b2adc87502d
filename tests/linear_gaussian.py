"""Linear-Gaussian models, of which log p(x) and the posterior are known."""

import torch
from torch import distributions as torch_dist

from pyrovae import VAE
from pyrovae.families.continuous import inverse_softplus

AFFINE = {"kind": "mlp", "hidden": ()}
SCALE = 0.7


def linear_vae(guide_scale=1.0, guide_shift=0.0, d=5, lengths=(1.5, 0.6)):
    """A linear-Gaussian VAE whose loadings are orthogonal, so that a diagonal guide can be exact.

    With W'W diagonal the posterior is N(V W'(x - b) / s^2, V), V = (I + W'W / s^2)^-1. The guide
    is that, its standard deviations multiplied by `guide_scale` and its means moved by
    `guide_shift` of them. The columns of W have the given lengths.
    """
    j = len(lengths)
    vae = VAE(
        x=(d,),
        z=(j,),
        likelihood={"kind": "fixed-normal", "scale": SCALE},
        posterior={"kind": "normal", "floor": 1e-9},
        encoder=AFFINE,
        decoder=AFFINE,
    ).double()
    w = torch.linalg.qr(torch.randn(d, j, dtype=torch.float64)).Q * torch.tensor(lengths)
    b = torch.randn(d, dtype=torch.float64)
    variance = 1 / (1 + w.square().sum(0) / SCALE**2)
    slope = variance[:, None] * w.T / SCALE**2
    sd = variance.sqrt()
    with torch.no_grad():
        decoder, encoder = vae.decoder.output, vae.encoder.output
        decoder.weight.copy_(w)
        decoder.bias.copy_(b)
        encoder.weight.copy_(torch.cat([slope, torch.zeros_like(slope)]))
        encoder.bias.copy_(
            torch.cat([-slope @ b + guide_shift * sd, inverse_softplus(guide_scale * sd - 1e-9)])
        )
    exact = torch_dist.MultivariateNormal(b, w @ w.T + SCALE**2 * torch.eye(d))
    return vae, exact


def true_posterior(vae, x):
    """The mean `(rows, j)` and the standard deviations `(j,)` of p(z | x)."""
    w, b = vae.decoder.output.weight.detach(), vae.decoder.output.bias.detach()
    variance = 1 / (1 + w.square().sum(0) / SCALE**2)
    return (x - b) @ w / SCALE**2 * variance, variance.sqrt()
