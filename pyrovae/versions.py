"""The packages that figures depend on, whose versions are saved beside figures."""

from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("pyrovae", "torch", "pyro-ppl", "numpy", "scikit-learn", "arviz-stats")


def versions() -> dict[str, str]:
    """The versions of those that are installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
