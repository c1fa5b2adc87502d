"""Every member of every role, from the registry, as parameters of tests."""

import torch

import pyrovae.objectives  # noqa: F401
from pyrovae import families, models, priors, transforms
from pyrovae.distributions import all_states, one_hot, sphere
from pyrovae.networks import Network


def parts(role):
    """Parameters for pytest: fresh examples of each member of a role."""
    return [
        (f"{kind}-{index}", member, index)
        for kind, member in sorted(role.members.items())
        for index, _ in enumerate(member.examples())
    ]


def ids(parameters):
    return [name for name, *_ in parameters]


def make(parameter):
    """A new, unassembled part (or a model)."""
    _, member, index = parameter
    return list(member.examples())[index]


PRIORS, FAMILIES = parts(priors.Prior), parts(families.Family)
NETWORKS, MODELS, TRANSFORMS = parts(Network), parts(models.Model), parts(transforms.Transform)


VECTORS = ("flow", "low-rank-normal", "multivariate-normal", "power-spherical", "tied-normal")
EVENTS = dict.fromkeys(VECTORS, ((3,),)) | {"one-hot": ((2, 3), (4,))}
"""The event shapes of families that do not take any."""


def events(family):
    """The event shapes that a family is tested with."""
    if family.kind == "columns":
        return ((len(family.columns),),)
    return EVENTS.get(family.kind, ((3,), (2, 2)))


def everywhere(prior):
    """Values that cover the support of a prior over z = (2,), and the weight of each.

    On the plane z = sinh(t)^3 in each direction: dense at 0, where a density can have a pole, and
    reaching 10^8, for heavy tails; evenly for flows, whose maps bend at knots and end at 5.
    """
    if prior.support is one_hot:
        return all_states((2,)).double(), torch.ones(2).double()
    if prior.support is sphere:
        angle = 2 * torch.pi * torch.arange(100).double() / 100
        return torch.stack([angle.cos(), angle.sin()], -1), torch.full_like(angle, torch.pi / 50)
    t = torch.linspace(-6.8, 6.8, 480, dtype=torch.float64)
    z, weight = t.sinh() ** 3, 3 * t.sinh() ** 2 * t.cosh() * (t[1] - t[0])
    if prior.kind == "flow":
        z = torch.linspace(-7, 7, 241, dtype=torch.float64)
        weight = torch.full_like(z, z[1] - z[0])
    return torch.cartesian_prod(z, z), torch.cartesian_prod(weight, weight).prod(-1)
