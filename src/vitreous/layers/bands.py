"""A first layer that was made for one set of bands, made to fit another.

A weight of the new bands is a mixture of the old ones' weights: ``new[:, t] = sum over s of mix[s, t] old[:, s]``. Row
``s`` of the mixture says how the old band ``s`` is estimated from the new bands: its entries sum to one, so that a
flat spectrum is answered as before. Only ``name`` and ``zero``, which leave bands out, do not keep that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vitreous.catalog.arguments import MOST_BANDS
from vitreous.errors import ModelError, did_you_mean

if TYPE_CHECKING:
    import xarray as xr

SAME_NM = 2.0  # the same band of one sensor drifts less
LEAST_NM, LEAST_WIDTH_NM = 100.0, 0.2  # less is no optical band in nm: it looks like micrometres
LONE_GAP_NM = (
    100.0  # how far a single band stands for its neighbourhood: a third of the visible light
)
# Gaussian responses that share less than this of what they could share do not overlap.
LEAST_OVERLAP = 1e-3
SIGMA_OF_FWHM = 1 / (2 * math.sqrt(2 * math.log(2)))


@dataclass(frozen=True)
class Bands:
    """The bands that a first layer reads.

    Args:
        count: how many.
        wavelengths: their centres in nm, where known.
        fwhm: their full widths at half maximum in nm, where known.
        names: names such as ``B8A``, where known.

    Raises:
        ModelError: not one value per band, values that are no lengths in nm, or a name used twice.
    """

    count: int
    wavelengths: tuple[float, ...] | None = None
    fwhm: tuple[float, ...] | None = None
    names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.count <= MOST_BANDS:
            raise ModelError(
                f"A model cannot have {self.count} bands.", f"Give a count of 1 to {MOST_BANDS}."
            )
        for what in ("wavelengths", "fwhm", "names"):
            values = getattr(self, what)
            if values is not None and len(values) != self.count:
                raise ModelError(
                    f"{self.count} bands have {len(values)} {what}.", "Give one value per band."
                )
        _check_lengths("wavelengths", self.wavelengths, LEAST_NM)
        _check_lengths("widths (fwhm)", self.fwhm, LEAST_WIDTH_NM)
        if self.names is not None and len(set(self.names)) < self.count:
            raise ModelError("Two bands have the same name.", "Give each band a unique name.")

    @classmethod
    def of(cls, scene: xr.DataArray) -> Bands:
        """Describe the bands of a scene (``scenes/cube.py``); what is not known of every band is left out."""

        def column(name: str) -> tuple[Any, ...] | None:
            return tuple(scene[name].values.tolist()) if name in scene.coords else None

        def lengths(name: str) -> tuple[float, ...] | None:
            values = column(name)
            return values if values is not None and all(map(math.isfinite, values)) else None

        names = column("band_name")
        if names is not None and len(set(names)) < len(names):
            names = None
        return cls(int(scene.sizes["band"]), lengths("wavelength"), lengths("fwhm"), names)

    def to_json(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> Bands:
        """Rebuild what :meth:`to_json` gave.

        Raises:
            ModelError: the description contradicts itself.
            KeyError, TypeError, ValueError: it is none.
        """
        kinds: dict[str, Callable[[Any], Any]] = {"wavelengths": float, "fwhm": float, "names": str}
        known = {
            key: tuple(kind(part) for part in value[key])
            for key, kind in kinds.items()
            if value.get(key) is not None
        }
        return cls(int(value["count"]), **known)


class Adapted(NamedTuple):
    """A weight for other bands.

    Attributes:
        weight: as the old one, with another length of the axis that counts bands.
        method: how it was made: ``same`` where the bands are the same ones, else one of :data:`METHODS`.
        unmatched: positions of old bands that no new band resembles: they are estimated from the nearest, or left out.
    """

    weight: Tensor
    method: str
    unmatched: tuple[int, ...]


class Mixture(NamedTuple):
    """How old bands are estimated from new ones, and which of them only by far neighbours or not at all."""

    weights: Float[Tensor, "old new"]
    unmatched: Bool[Tensor, "old"]


def adapt_bands(
    weight: Float[Tensor, "..."],
    source: Bands,
    target: Bands,
    method: str = "auto",
    *,
    table: bool = False,
    axis: int = 1,
) -> Adapted:
    """Make a first layer's weight for other bands.

    The weights of a layer are shared out, so that what it adds up stays what it was. The vectors of a table, one per
    band, are mixed the other way round: each new one is estimated from the old ones as below.

    ==========  =====================================================================================
    method      an old band is estimated from ...
    ==========  =====================================================================================
    overlap     new bands whose Gaussian response (centre, fwhm) overlaps its own, by how much it does;
                the same band alone, where it is there
    nearest     the new bands that are nearer to it than to any other old band, else the nearest one
    name        the new band of its name; other old bands are left out, other new bands are silent
    repeat      every ``count``-th new band: the weights are repeated, or folded, and rescaled
    mean        the mean of all new bands
    zero        the new band at its place; further old bands are left out, further new bands are silent
    auto        the first of the above for which both sides hold the information
    ==========  =====================================================================================

    Args:
        weight: the weight, one axis of which counts the bands of ``source``.
        source: bands that the weight was made for.
        target: bands that it should read.
        method: one of the above.
        table: the weight is a table.
        axis: which axis counts bands; the second, as of a layer's weight, unless told otherwise.

    Returns:
        The new weight in the type of the old one, and how it was made.

    Raises:
        ModelError: no such method, information that it needs is missing, or a weight of other bands.
    """
    if method not in (*METHODS, "auto"):
        raise ModelError(
            f"Bands cannot be adapted by '{method}'.", did_you_mean(method, [*METHODS, "auto"])
        )
    if weight.ndim <= axis or weight.shape[axis] != source.count:
        raise ModelError(
            f"A weight of shape {tuple(weight.shape)} does not read {source.count} bands.",
            f"Describe the bands on its axis {axis}, counted from 0.",
        )
    if method == "auto":
        if same_bands(source, target):
            return Adapted(weight, "same", ())
        method = best_method(source, target)
    mixture = METHODS[method](source, target)
    shares = METHODS[method](target, source).weights.T if table else mixture.weights
    bands_first = weight.double().movedim(axis, 0)
    mixed = torch.einsum("s...,st->t...", bands_first, shares.to(weight.device)).movedim(0, axis)
    unmatched = tuple(mixture.unmatched.nonzero()[:, 0].tolist())
    return Adapted(mixed.to(weight.dtype).contiguous(), method, unmatched)


def same_bands(source: Bands, target: Bands) -> bool:
    """Tell whether two descriptions are of the same bands in the same order, as far as both know them."""
    if source.count != target.count:
        return False
    if source.wavelengths is not None and target.wavelengths is not None:
        pairs = zip(source.wavelengths, target.wavelengths, strict=True)
        return all(abs(a - b) <= SAME_NM for a, b in pairs)
    if source.names is not None and target.names is not None:
        return source.names == target.names
    return True


def best_method(source: Bands, target: Bands) -> str:
    """Return the method that uses most of what both sides know about their bands."""
    both = (source, target)
    if all(b.wavelengths is not None for b in both):
        return "overlap" if all(b.fwhm is not None for b in both) else "nearest"
    if source.names and target.names and set(source.names) & set(target.names):
        return "name"
    return "repeat"


def _overlap(source: Bands, target: Bands) -> Mixture:
    old, new = _centres(source, "overlap"), _centres(target, "overlap")
    if source.fwhm is None or target.fwhm is None:
        raise ModelError(
            "Method 'overlap' needs the widths (fwhm) of the bands on both sides.",
            "Give them, or use method 'nearest'.",
        )
    widths = [torch.tensor(b.fwhm, dtype=torch.float64) for b in (source, target)]
    distance = (old[:, None] - new[None, :]).abs()
    shared = response_overlap(distance, widths[0][:, None], widths[1][None, :])
    same = (distance <= SAME_NM) & (widths[0][:, None] - widths[1][None, :]).abs().le(SAME_NM)
    apart = shared.amax(1) < LEAST_OVERLAP
    shared = torch.where(shared < LEAST_OVERLAP, 0.0, shared)
    estimated = torch.where(apart[:, None], _interpolation(old, new), _to_one(shared))
    alone = _one_hot(distance.argmin(1), target.count)
    return Mixture(torch.where(same.any(1)[:, None], alone, estimated), apart)


def response_overlap(
    distance: Float[Tensor, "old new"],
    first: Float[Tensor, "#old #new"],
    second: Float[Tensor, "#old #new"],
) -> Float[Tensor, "old new"]:
    """Return the overlap of Gaussian spectral responses: the cosine of the angle between them, 0 to 1.

    The integral of the product of two Gaussians of unit square is a Gaussian of the distance of their centres, of
    variance ``s1**2 + s2**2``, times ``sqrt(2 s1 s2 / (s1**2 + s2**2))``.

    Args:
        distance: between the centres in nm.
        first: full widths at half maximum in nm.
        second: the same of the others.
    """
    variance = (first**2 + second**2) * SIGMA_OF_FWHM**2
    alike = 2 * first * second * SIGMA_OF_FWHM**2 / variance
    return alike.sqrt() * torch.exp(-(distance**2) / (2 * variance))


def _nearest(source: Bands, target: Bands) -> Mixture:
    old, new = _centres(source, "nearest"), _centres(target, "nearest")
    distance = (old[:, None] - new[None, :]).abs()
    closest = _one_hot(distance.argmin(1), target.count)
    followers = _one_hot(distance.argmin(0), source.count).T
    served = followers.any(1)
    # Between neighbours a band finds itself; at the end of the spectrum, or in a gap, it takes what there is.
    spacing = torch.maximum(_gap(old), _gap(new))
    return Mixture(
        torch.where(served[:, None], _to_one(followers), closest), distance.amin(1) > spacing
    )


def _name(source: Bands, target: Bands) -> Mixture:
    if source.names is None or target.names is None:
        raise ModelError(
            "Method 'name' needs the names of the bands on both sides.",
            "Give them, or wavelengths.",
        )
    place = {name: at for at, name in enumerate(target.names)}
    weights = torch.zeros(source.count, target.count, dtype=torch.float64)
    for at, name in enumerate(source.names):
        if name in place:
            weights[at, place[name]] = 1
    if not weights.any():
        raise ModelError(
            f"None of the bands {_some(source.names)} is among {_some(target.names)}.",
            "Use method 'repeat', or give wavelengths.",
        )
    return Mixture(weights, weights.sum(1) == 0)


def _repeat(source: Bands, target: Bands) -> Mixture:
    old, new = torch.arange(source.count)[:, None], torch.arange(target.count)
    alike = old == new % source.count if target.count >= source.count else old % target.count == new
    return _complete(_to_one(alike.double()))


def _mean(source: Bands, target: Bands) -> Mixture:
    return _complete(_to_one(torch.ones(source.count, target.count, dtype=torch.float64)))


def _zero(source: Bands, target: Bands) -> Mixture:
    weights = torch.eye(source.count, target.count, dtype=torch.float64)
    return Mixture(weights, weights.sum(1) == 0)


METHODS: dict[str, Callable[[Bands, Bands], Mixture]] = {
    "overlap": _overlap,
    "nearest": _nearest,
    "name": _name,
    "repeat": _repeat,
    "mean": _mean,
    "zero": _zero,
}


def resize_kernel(
    weight: Float[Tensor, "out bands rows columns"], size: tuple[int, int]
) -> Float[Tensor, "out bands new_rows new_columns"]:
    """Make the kernel of a patch embedding for patches of another size.

    A smaller kernel answers a patch exactly as the old one answers the patch enlarged to its size, so small images are
    seen as if they had been enlarged. A larger kernel answers an enlarged patch exactly as the old one answers the
    patch itself (Beyer et al., FlexiViT, 2023, section 3.4: the pseudo-inverse of resampling).

    Args:
        weight: the old kernel.
        size: rows and columns wanted.
    """
    old = (weight.shape[2], weight.shape[3])
    if old == size:
        return weight
    if size[0] <= old[0] and size[1] <= old[1]:
        turn = _enlargement(size, old).T
    else:
        turn = torch.linalg.pinv(_enlargement(old, size).T)
    kernel = torch.einsum("no,xbo->xbn", turn.to(weight.device), weight.double().flatten(2))
    return kernel.unflatten(2, size).to(weight.dtype)


def _enlargement(size: tuple[int, int], to: tuple[int, int]) -> Float[Tensor, "new old"]:
    """Return bilinear resampling of a flattened patch as a matrix."""
    units = torch.eye(size[0] * size[1], dtype=torch.float64).view(-1, 1, *size)
    return F.interpolate(units, to, mode="bilinear", antialias=True).flatten(1).T


# -- parts of the mixtures ----------------------------------------------------------------------------------


def _complete(weights: Float[Tensor, "old new"]) -> Mixture:
    return Mixture(weights, torch.zeros(len(weights), dtype=torch.bool))


def _to_one(weights: Float[Tensor, "old new"]) -> Float[Tensor, "old new"]:
    """Let each row that is not zero sum to one."""
    return weights / weights.sum(1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)


def _one_hot(places: Int[Tensor, "rows"], count: int) -> Float[Tensor, "rows count"]:
    return F.one_hot(places, count).double()


def _interpolation(
    old: Float[Tensor, "old"], new: Float[Tensor, "new"]
) -> Float[Tensor, "old new"]:
    """Return linear interpolation between the two neighbours of each old band; beyond the ends, the last one alone."""
    order = new.argsort()
    ordered = new[order]
    right = torch.searchsorted(ordered, old).clamp(0, len(new) - 1)
    left = (right - 1).clamp(min=0)
    gap = (ordered[right] - ordered[left]).clamp(min=torch.finfo(old.dtype).tiny)
    share = ((old - ordered[left]) / gap).clamp(0, 1)
    count = len(new)
    return _one_hot(order[left], count) * (1 - share[:, None]) + (
        _one_hot(order[right], count) * share[:, None]
    )


def _gap(centres: Float[Tensor, "bands"]) -> Tensor:
    """Return the median distance of neighbouring bands."""
    if len(centres) == 1:
        return centres.new_tensor(LONE_GAP_NM)
    return centres.sort().values.diff().median()


def _centres(bands: Bands, method: str) -> Float[Tensor, "bands"]:
    if bands.wavelengths is None:
        raise ModelError(
            f"Method '{method}' needs the wavelengths of the bands on both sides.",
            "Give them, or use method 'repeat'.",
        )
    return torch.tensor(bands.wavelengths, dtype=torch.float64)


def _check_lengths(what: str, values: Sequence[float] | None, least: float) -> None:
    if values is None:
        return
    if not all(math.isfinite(value) and value > 0 for value in values):
        raise ModelError(
            f"The {what} hold values that are not positive lengths.", "Give positive values in nm."
        )
    if max(values) < least:
        raise ModelError(
            f"The {what} reach up to {max(values):g}: that looks like micrometres.",
            "Give nanometres: micrometres times 1000.",
        )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
