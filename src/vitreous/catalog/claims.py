"""Claims of papers, checked against measurements whose uncertainty is known.

An effect is measured once per seed, as a difference between two systems that were trained on the same data (paired).
A claim *holds* where the whole 95 % interval of the mean effect meets what is required, *does not hold* where none of
it does, and is *not decided* where the interval contains the required value.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import mean, stdev
from typing import Any, Literal

Verdict = Literal["holds", "does not hold", "not decided"]


@dataclass(frozen=True)
class Claim:
    """What was claimed, and what was measured.

    Attributes:
        text: what the effect is, e.g. ``accuracy, CvT vs ViT``.
        effect: its mean over the seeds.
        low: lower end of the 95 % interval; None where there are too few seeds to know it.
        high: upper end, likewise. Both equal ``effect`` where the effect is exact, such as a count.
        required: the value that the effect must reach or may not exceed; None where nothing is claimed.
        at_least: whether ``required`` is the least value that is allowed, or else the greatest.
        unit: of all values.
        digits: behind the decimal point.
        signed: whether the effect is a difference, whose sign is always written.
        count: how many effects it is the mean of; None where it is exact.
        samples: what they are: seeds, or rounds of timing.
    """

    text: str
    effect: float
    low: float | None
    high: float | None
    required: float | None = None
    at_least: bool = True
    unit: str = "points"
    digits: int = 1
    signed: bool = True
    count: int | None = None
    samples: str = "seeds"

    @property
    def verdict(self) -> Verdict | None:
        """Whether the claim holds; None where nothing is claimed."""
        if self.required is None:
            return None
        if self.low is None or self.high is None:
            return "not decided"
        sign = 1 if self.at_least else -1
        worst, best = sorted((sign * self.low, sign * self.high))
        required = sign * self.required
        if worst >= required:
            return "holds"
        return "does not hold" if best < required else "not decided"

    @property
    def sentence(self) -> str:
        """The claim in words, with its interval, what is required, and the verdict."""
        unit = f" {self.unit}" if self.unit else ""
        about = []
        if self.low is None or self.high is None:
            about.append(f"1 {self.samples[:-1]}")
        elif self.count is not None:
            low, high = self._shown(self.low), self._shown(self.high)
            about.append(f"95 % CI {low} to {high}, {self.count} {self.samples}")
        if self.required is not None:
            bound = "at least" if self.at_least else "at most"
            about.append(f"required: {bound} {self._shown(self.required)}")
        words = f"{self.text}: {self._shown(self.effect)}{unit}"
        words += f" ({'; '.join(about)})" if about else ""
        return f"{words}: {self.verdict}." if self.verdict else f"{words}."

    def record(self) -> dict[str, Any]:
        """Return the claim as results keep it."""
        return {**asdict(self), "verdict": self.verdict}

    def _shown(self, value: float) -> str:
        value = round(value, self.digits) + 0.0  # no minus before a zero
        return f"{value:{'+' if self.signed else ''}.{self.digits}f}"


def claim(
    text: str,
    effects: Sequence[float],
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    unit: str = "points",
    digits: int = 1,
    signed: bool = True,
    samples: str = "seeds",
) -> Claim:
    """Return a claim about an effect that was measured once per seed.

    Args:
        text: what the effect is.
        effects: one per seed, independent of each other.
        at_least: what is required of the mean effect, or
        at_most: what it may not exceed; with neither, the effect is only reported.
        unit: of the effects and of what is required.
        digits: behind the decimal point.
        signed: whether the effect is a difference.
        samples: what the effects are measured on, where it is not seeds.

    Raises:
        ValueError: there is no effect, or both bounds are given.
    """
    if not effects or (at_least is not None and at_most is not None):
        raise ValueError(f"{text}: {len(effects)} effects, at_least {at_least}, at_most {at_most}")
    low, high = interval(effects)
    return Claim(
        text,
        mean(effects),
        low,
        high,
        at_most if at_least is None else at_least,
        at_most is None,
        unit,
        digits,
        signed,
        len(effects),
        samples,
    )


def exact(
    text: str,
    value: float,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    unit: str = "",
    digits: int = 1,
    signed: bool = False,
) -> Claim:
    """Return a claim about a value that does not depend on a seed, such as a count; see :func:`claim`."""
    found = claim(
        text,
        [value],
        at_least=at_least,
        at_most=at_most,
        unit=unit,
        digits=digits,
        signed=signed,
    )
    return replace(found, low=value, high=value, count=None)


def interval(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Return the 95 % interval of the mean by Student's t; None and None for a single value."""
    if len(values) < 2:
        return None, None
    from scipy.stats import t

    half = float(t.ppf(0.975, len(values) - 1)) * stdev(values) / len(values) ** 0.5
    return mean(values) - half, mean(values) + half


def paired(
    records: Iterable[Mapping[str, Any]],
    ours: str,
    theirs: str,
    score: str = "accuracy",
    *,
    factor: float = 100.0,
    **where: Any,
) -> list[float]:
    """Return the difference between two systems' scores on each seed.

    Args:
        records: one per system and seed, as a study keeps them.
        ours: the system whose score is taken.
        theirs: the system whose score is taken away.
        score: name of the score.
        factor: of the differences; 100 turns fractions into points.
        where: what else a record must have, such as ``labels=5``.

    Raises:
        ValueError: the systems were not measured once on each of the same seeds.
    """
    records = list(records)
    found = (scores(records, name, score, **where) for name in (ours, theirs))
    return differences(*found, factor=factor)


def differences(
    ours: Mapping[int, float], theirs: Mapping[int, float], *, factor: float = 100.0
) -> list[float]:
    """Return the differences between scores, given by their seed, in the order of the seeds.

    Raises:
        ValueError: there are none, or not of the same seeds.
    """
    if not ours or ours.keys() != theirs.keys():
        raise ValueError(f"Scores of seeds {sorted(ours)} and {sorted(theirs)} are not paired.")
    return [factor * (ours[seed] - theirs[seed]) for seed in sorted(ours)]


def scores(
    records: Iterable[Mapping[str, Any]], system: str, score: str = "accuracy", **where: Any
) -> dict[int, float]:
    """Return a system's score on each seed.

    Raises:
        ValueError: it has several on one seed.
    """
    wanted = {"system": system, **where}
    found: dict[int, float] = {}
    for record in records:
        if all(record.get(key) == value for key, value in wanted.items()):
            if record["seed"] in found:
                raise ValueError(f"{wanted} was measured more than once on seed {record['seed']}.")
            found[record["seed"]] = record[score]
    return found


def conclusion(claims: Iterable[Claim], *remarks: str) -> str:
    """Return all claims in words, and behind them what else is to be said."""
    return " ".join([*(claim.sentence for claim in claims), *remarks])
