"""Every member of every role, from the registry, and data from a model's own support."""

import torch

import pyrovae.objectives  # noqa: F401
from pyrovae import Batch, families, models, priors, transforms
from pyrovae.catalogue import roles
from pyrovae.networks import Network

PARTS = [
    part
    for role in roles().values()
    for member in role.members.values()
    for part in member.examples()
]


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


def rows(model, count=6):
    """Rows that the model could have generated."""
    model.start(Batch(torch.zeros(count, *model.event, dtype=torch.get_default_dtype())))
    return model.sample(count)


PRIORS, FAMILIES = parts(priors.Prior), parts(families.Family)
NETWORKS, MODELS, TRANSFORMS = parts(Network), parts(models.Model), parts(transforms.Transform)
