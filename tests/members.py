"""Every member of every role, from the registry, as parameters of tests."""

import pyrovae.objectives  # noqa: F401
from pyrovae import families, models, priors, transforms
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
