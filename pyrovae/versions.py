"""The packages that figures depend on, whose versions are saved beside figures."""

from functools import cache
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("pyrovae", "torch", "pyro-ppl", "numpy", "scikit-learn", "arviz-stats")


def versions() -> dict[str, str]:
    """The versions of those that are installed."""
    found = {package: _version(package) for package in PACKAGES}
    return {package: number for package, number in found.items() if number}


@cache
def _version(package: str) -> str:
    """The version of a package, empty where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
