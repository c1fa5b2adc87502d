r"""What `latent_use` finds: how each latent is used, and the verdict on it.

Every figure is a mean over rows, so an array holds what each row adds to it, and the standard
error is that of a mean. An entry of z is

    used    active, and missed by the decoder where it is drawn anew,
    idle    active, while the decoder ignores it,
    dead    neither active nor missed,
    still   missed but not active: q(z_j|x) is not p(z_j), and its mean is the same for all rows.

A latent informs where it takes up nats, tells rows apart and is missed; where none does, that is
posterior collapse. Where it does, the aggregated posterior can still be another distribution than
the prior: then rows drawn from the prior are decoded from places that no row comes from.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyrovae.errors import Error
from pyrovae.evaluate.weights import Array
from pyrovae.part import unknown
from pyrovae.report import Table, entries

LEAST = 0.01
"""The activity of an active entry, and the nats below which a figure counts as none."""
LEVEL = 0.01
"""The p-value below which the aggregated posterior does not match the prior."""
OVERLAP = 10
"""How many rows' q(z|x) have to overlap, on average, for I_q(x; z) to be more than a bound."""
NAMED = 8
"""How many entries the verdict names."""
Flags = NDArray[np.bool_]


def estimate(values: Array) -> tuple[Any, Any]:
    """The mean over the first dimension and its standard error, NaN for a single row."""
    with np.errstate(invalid="ignore"):
        mean = values.mean(0)
        if len(values) == 1:
            return mean, np.full_like(mean, np.nan)
        return mean, values.std(0, ddof=1) / math.sqrt(len(values))


@dataclass(frozen=True, eq=False)
class SiteUse:
    """How one latent is used. Arrays are NaN where there is no such figure: `notes` say why.

    Its entries are those of `z.flatten()`; `some` are the rows that stand for q(z).

    Args:
        name: of the site.
        event: the event shape of z.
        kl: KL(q(z|x) || p(z)) of each row, in nats, shape `(rows,)`.
        kl_of: that of each entry, shape `(rows, entries)`.
        information: what each row adds to I_q(x; z), shape `(some,)`.
        marginal: what each row adds to KL(q(z) || p(z)), shape `(some,)`.
        activity: what each row adds to the activity of each entry, shape `(rows, entries)`.
        noise: the standard deviation that Monte-Carlo error gives an activity, `(entries,)`.
        sensitivity: log p(x|z) - log p(x|z') with all of z' a new draw, shape `(some,)`.
        sensitivity_of: that with one entry of z' a new draw, shape `(some, entries)`.
        p_value: of a two-sample test of draws of q(z) and p(z).
        notes: why figures are left out, a sentence each.
    """

    name: str
    event: tuple[int, ...]
    kl: Array
    kl_of: Array
    information: Array
    marginal: Array
    activity: Array
    noise: Array
    sensitivity: Array
    sensitivity_of: Array
    p_value: float
    notes: tuple[str, ...]

    @property
    def entries(self) -> list[str]:
        """The names of the entries, such as `z[0]`."""
        return entries(self.name, self.event)

    @cached_property
    def active(self) -> Flags:
        """Which entries have an activity above 0.01, and above four times its noise."""
        return np.asarray(estimate(self.activity)[0] > np.maximum(LEAST, 4 * self.noise))

    @cached_property
    def missed(self) -> Flags:
        """Which entries the decoder misses, by 0.01 nats and four standard errors."""
        mean, se = estimate(self.sensitivity_of)
        return np.asarray(mean > np.fmax(LEAST, 4 * se))

    @cached_property
    def idle(self) -> Flags:
        """Which entries are active, while the decoder ignores them."""
        mean, se = estimate(self.sensitivity_of)
        return np.asarray(self.active & (np.abs(mean) + 2 * se < LEAST))

    @property
    def used(self) -> Flags:
        """Which entries are active and not idle; without activities, those missed if z informs."""
        if _absent(self.activity):
            return self.missed & self.informs
        return self.active & ~self.idle

    @property
    def dead(self) -> Flags:
        """Which entries are neither active nor missed."""
        return ~self.active & ~self.missed

    @property
    def whole(self) -> bool:
        """Whether z can only be judged as one, such as a class."""
        return _absent(self.activity) and _absent(self.sensitivity_of)

    @property
    def informs(self) -> bool:
        """Whether z as a whole takes up nats, tells rows apart and is missed by the decoder.

        Of a latent without a KL of its own: whether an entry is used, or else z is missed.
        """
        if _absent(self.kl):
            missed = bool(self.sensitivity.mean() > LEAST)
            return missed if _absent(self.activity) else bool(self.used.any())
        figures = self.kl, self.information, self.sensitivity
        return not any(values.mean() < LEAST for values in figures)

    @property
    def matches(self) -> bool:
        """Whether the aggregated posterior passes for the prior, or was not tested."""
        return not self.p_value < LEVEL

    def clauses(self) -> Iterator[str]:
        """The verdict on this latent, in parts of a sentence."""
        entries, used = len(self.entries), int(self.used.sum())
        if self.whole or entries == 1:
            yield f"{self.name} is {'' if self.informs or used else 'not '}used"
        else:
            count = {0: "none", entries: "all"}.get(used, str(used))
            yield f"{count} of the {entries} entries of {self.name} {_are(used)} used"
            if used and self.dead.any():
                yield f"{self._named(self.dead)} dead"
            if self.informs and not used:
                yield f"together they tell {self.information.mean():.2f} nats of x"
        if self.idle.any():
            yield f"{self._named(self.idle)} idle, moving with x while the decoder ignores it"
        if not self.matches:
            mean, se = estimate(self.marginal)
            known = not (math.isnan(mean) or saturated(self.information))
            far = f", KL(q(z) || p(z)) = {mean:.2f} ± {se:.2f} nats" if known else ""
            yield (
                f"the aggregated posterior of {self.name} does not match the prior "
                f"(p = {self.p_value:.3f}{far}): do not trust rows sampled from the prior"
            )

    def _named(self, which: Flags) -> str:
        names = [name for name, one in zip(self.entries, which, strict=True) if one]
        more = [f"{len(names) - NAMED} more"] if len(names) > NAMED else []
        return f"{', '.join(names[:NAMED] + more)} {_are(len(names))}"

    def summary(self) -> dict[str, Any]:
        """The figures, as they are written to results.json."""
        return {
            "active": int(self.active.sum()),
            "used": int(self.used.sum()),
            "informs": self.informs,
            "entries": len(self.entries),
            "p_value": self.p_value,
            **_figures(self, ("kl", "information", "marginal", "sensitivity")),
            **_figures(self, ("activity", "kl_of", "sensitivity_of")),
        }


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def _figures(use: Any, names: tuple[str, ...]) -> dict[str, Any]:
    """Means and standard errors, as numbers and lists."""
    found: dict[str, Any] = {}
    for name in names:
        mean, se = estimate(getattr(use, name))
        found |= {name: mean.tolist(), f"{name}_se": se.tolist()}
    return found


@dataclass(frozen=True, eq=False)
class LatentUse:
    """How the latents of a model are used. Arrays are as in `SiteUse`, of all latents together.

    Args:
        sites: how each latent is used, in the order of the guide.
        kl: KL(q(z|x) || p(z)) of each row, in nats, shape `(rows,)`.
        information: what each row adds to I_q(x; z), shape `(some,)`.
        marginal: what each row adds to KL(q(z) || p(z)), shape `(some,)`.
        particles: the draws for each row.
    """

    sites: tuple[SiteUse, ...]
    kl: Array
    information: Array
    marginal: Array
    particles: int

    def __getitem__(self, name: str) -> SiteUse:
        found = {site.name: site for site in self.sites}
        if name not in found:
            raise Error(unknown("latent", name, found))
        return found[name]

    @property
    def saturated(self) -> bool:
        """Whether I_q(x; z) is so near the log N it cannot exceed that it is but a lower bound."""
        return saturated(self.information)

    @property
    def verdict(self) -> str:
        """What is right or wrong with the latents, in one sentence."""
        if len(self.kl) == 1:
            return "One row cannot tell whether the latents are used: pass more."
        clauses = [clause for site in self.sites for clause in site.clauses()]
        matches = all(site.matches for site in self.sites)
        if not any(site.informs for site in self.sites):
            settled = matches and not any(site.idle.any() for site in self.sites)
            collapse = " (posterior collapse)" if settled else ""
            clauses.insert(0, f"the latent is not used at all{collapse}")
        elif matches:
            draws = len(self.information)
            clauses.append(f"the aggregated posterior passes for the prior in {draws} draws")
        text = "; ".join(clauses)
        return f"{text[0].upper()}{text[1:]}."

    def table(self) -> Table:
        """One line a latent, rounded, with notes."""
        rows = [
            (
                site.name,
                ("yes" if site.informs else "no")
                if site.whole
                else f"{site.used.sum()} of {len(site.entries)}",
                "-" if _absent(site.activity) else str(site.active.sum()),
                *map(_rounded, (site.sensitivity, site.kl, site.information, site.marginal)),
                "-" if math.isnan(site.p_value) else f"{site.p_value:.3f}",
            )
            for site in self.sites
        ]
        if len(rows) > 1:
            sums = map(_rounded, (self.kl, self.information, self.marginal))
            rows.append(("all", *["-"] * 3, *sums, "-"))
        heads = ("used", "active", "sensitivity", "KL", "I(x; z)", "marginal KL", "p-value")
        return Table(("latent", *heads), rows, tuple(self.notes()))

    def entries(self) -> Table:
        """One line an entry of each latent, rounded."""
        rows = []
        for site in self.sites:
            for j, name in enumerate(site.entries):
                words = {"used": site.used, "idle": site.idle, "dead": site.dead}
                word = next((word for word, flags in words.items() if flags[j]), "still")
                figures = site.activity, site.sensitivity_of, site.kl_of
                cells = (_rounded(values[:, j]) for values in figures)
                rows.append((name, "-" if site.whole else word, *cells))
        return Table(("entry", "", "activity", "sensitivity", "KL"), rows)

    def notes(self) -> Iterator[str]:
        """What has to be known to read the table, a sentence each."""
        rows, some = len(self.kl), len(self.information)
        yield (
            f"Nats ± standard errors over rows; KL and active over {rows} rows with "
            f"{self.particles} draws each, all else over {some} of them with one."
        )
        if self.saturated:
            yield (
                f"I(x; z) is near log {some} = {math.log(some):.2f}, the most that so many rows "
                "can show: it is a lower bound, and the marginal KL an upper one."
            )
        yield from (note for site in self.sites for note in site.notes)

    def summary(self) -> dict[str, Any]:
        """The figures, as they are written to results.json."""
        return {
            "verdict": self.verdict,
            **_figures(self, ("kl", "information", "marginal")),
            "saturated": self.saturated,
            "rows": len(self.kl),
            "particles": self.particles,
            "sites": {site.name: site.summary() for site in self.sites},
        }

    def __str__(self) -> str:
        return f"{self.table()}\n\n{self.verdict}"


def saturated(information: Array) -> bool:
    """Whether a mean of information over N rows is near log N, the most that it can be."""
    return bool(information.mean() > math.log(max(len(information) / OVERLAP, 1)))


def _absent(values: Array) -> bool:
    return bool(np.isnan(values).all())


def _rounded(values: Array) -> str:
    mean, se = estimate(values)
    return "-" if math.isnan(mean) else f"{mean:.2f} ± {se:.2f}"
