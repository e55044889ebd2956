"""What spoils a cube: noise, lost columns and bands, blur; to train restorers on, and to measure them with.

Values are those that restorers see (``layers/restorer.py``): a scene divided by its range, mostly between 0 and 1.
Noise is given as the literature gives it, as a standard deviation on a scale of 255. The cases are those of the
denoising literature on hyperspectral images (QRNN3D, arXiv 2003.04547, and HSDT, arXiv 2303.09040, use them alike).
Everything random comes from the generator that a degradation is called with.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import xarray as xr
from jaxtyping import Float
from torch import Generator, Tensor

from vitreous.errors import ConfigError, did_you_mean
from vitreous.layers.ranges import BandRange, fill_invalid
from vitreous.scenes.cube import good_bands, like_scene, read_window

FULL_SCALE = 255.0
LEVELS = (10.0, 30.0, 50.0, 70.0)
IMPULSE_SHARES = (0.1, 0.3, 0.5, 0.7)
SCALES = (2, 3, 4, 8)


@dataclass(frozen=True)
class Degradation:
    """Turns a clean cube into a spoilt one; settings are its fields."""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value == ():
                raise ValueError(f"{name} = {value}: must be at least 1")
            for number in value if isinstance(value, tuple) else (value,):
                if not 0 <= number < float("inf"):
                    raise ValueError(f"{name} = {value}: must not be negative")

    @property
    def factor(self) -> int:
        """How many times coarser the spoilt cube is."""
        return 1

    def __call__(
        self, clean: Float[Tensor, "bands height width"], generator: Generator
    ) -> Float[Tensor, "bands height2 width2"]:
        """Return a spoilt copy of one cube."""
        raise NotImplementedError


@dataclass(frozen=True)
class Gaussian(Degradation):
    """The same white noise in every band.

    Attributes:
        sigma: standard deviation, of 255.
    """

    sigma: float = 50.0

    def __call__(
        self, clean: Float[Tensor, "bands height width"], generator: Generator
    ) -> Float[Tensor, "bands height width"]:
        """Add the noise."""
        return clean + self.sigma / FULL_SCALE * _normal(clean, generator)


@dataclass(frozen=True)
class Blind(Degradation):
    """White noise whose level is drawn anew for every cube, so that a network cannot count on it.

    Attributes:
        sigmas: the levels, of 255.
    """

    sigmas: tuple[float, ...] = LEVELS

    def __call__(
        self, clean: Float[Tensor, "bands height width"], generator: Generator
    ) -> Float[Tensor, "bands height width"]:
        """Draw a level and add the noise."""
        level = self.sigmas[_below(len(self.sigmas), generator)]
        return clean + level / FULL_SCALE * _normal(clean, generator)


@dataclass(frozen=True)
class BandNoise(Degradation):
    """White noise with another level in every band (non-i.i.d.).

    Attributes:
        low: smallest level, of 255.
        high: largest level.
    """

    low: float = 10.0
    high: float = 70.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.low > self.high:
            raise ValueError(f"low = {self.low} lies above high = {self.high}")

    def __call__(
        self, clean: Float[Tensor, "bands height width"], generator: Generator
    ) -> Float[Tensor, "bands height width"]:
        """Draw a level per band and add the noise."""
        share = torch.rand(len(clean), 1, 1, generator=generator)
        level = (self.low + (self.high - self.low) * share).to(clean)
        return clean + level / FULL_SCALE * _normal(clean, generator)


@dataclass(frozen=True)
class _OnSomeBands(BandNoise):
    """Band noise, and a fault in some of the bands.

    Attributes:
        bands: share of the bands with the fault.
    """

    bands: float = 1 / 3

    def __call__(
        self, clean: Float[Tensor, "bands height width"], generator: Generator
    ) -> Float[Tensor, "bands height width"]:
        """Add the noise, then the fault in bands drawn at random."""
        spoilt = super().__call__(clean, generator)
        for band in _some(len(clean), self.bands, generator):
            self.fault(spoilt[band], generator)
        return spoilt

    def fault(self, image: Float[Tensor, "height width"], generator: Generator) -> None:
        """Spoil one band in place."""
        raise NotImplementedError


@dataclass(frozen=True)
class Stripes(_OnSomeBands):
    """Band noise, and columns that are too bright or too dark in a third of the bands, as of a push-broom sensor.

    Attributes:
        fewest: smallest share of a band's columns.
        most: largest share.
        height: a column is off by up to so much, either way.
    """

    fewest: float = 0.05
    most: float = 0.15
    height: float = 0.25

    def fault(self, image: Float[Tensor, "height width"], generator: Generator) -> None:
        """Shift some columns."""
        columns = _some_columns(image, self.fewest, self.most, generator)
        offsets = 2 * torch.rand(len(columns), generator=generator) - 1
        image[:, columns] += self.height * offsets.to(image)


@dataclass(frozen=True)
class Deadlines(_OnSomeBands):
    """Band noise, and columns without a signal in a third of the bands.

    Attributes:
        fewest: smallest share of a band's columns.
        most: largest share.
    """

    fewest: float = 0.05
    most: float = 0.15

    def fault(self, image: Float[Tensor, "height width"], generator: Generator) -> None:
        """Set some columns to 0."""
        image[:, _some_columns(image, self.fewest, self.most, generator)] = 0


@dataclass(frozen=True)
class Impulse(_OnSomeBands):
    """Band noise, and pixels at 0 or 1 in a third of the bands, as many of either.

    Attributes:
        shares: shares of a band's pixels, of which one is drawn per band.
    """

    shares: tuple[float, ...] = IMPULSE_SHARES

    def fault(self, image: Float[Tensor, "height width"], generator: Generator) -> None:
        """Set some pixels to 0 or 1."""
        share = self.shares[_below(len(self.shares), generator)]
        draw = torch.rand(image.shape, generator=generator).to(image)
        image[draw < share / 2] = 0
        image[(draw >= share / 2) & (draw < share)] = 1


@dataclass(frozen=True)
class Mixture(BandNoise):
    """Band noise, stripes, dead columns and impulses, each fault in a third of the bands of its own."""

    def __call__(
        self, clean: Float[Tensor, "bands height width"], generator: Generator
    ) -> Float[Tensor, "bands height width"]:
        """Add them all."""
        spoilt = super().__call__(clean, generator)
        for fault in (Stripes(0, 0), Deadlines(0, 0), Impulse(0, 0)):
            spoilt = fault(spoilt, generator)
        return spoilt


@dataclass(frozen=True)
class Missing(Degradation):
    """Bands without any signal.

    Attributes:
        bands: share of the bands.
        sigma: standard deviation of white noise in the others, of 255.
    """

    bands: float = 0.1
    sigma: float = 0.0

    def __call__(
        self, clean: Float[Tensor, "bands height width"], generator: Generator
    ) -> Float[Tensor, "bands height width"]:
        """Add the noise and set some bands to 0."""
        spoilt = Gaussian(self.sigma)(clean, generator)
        spoilt[_some(len(clean), self.bands, generator)] = 0
        return spoilt


@dataclass(frozen=True)
class Downsample(Degradation):
    """A coarser cube: blurred, then bicubic with antialiasing.

    Attributes:
        scale: how many times coarser: 2, 3, 4 or 8.
        blur: standard deviation of a Gaussian blur before it, in fine pixels.
        sigma: standard deviation of white noise after it, of 255.
    """

    scale: int = 4
    blur: float = 0.0
    sigma: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale not in SCALES or not isinstance(self.scale, int):
            raise ValueError(f"scale = {self.scale}: one of {SCALES}")

    @property
    def factor(self) -> int:
        """How many times coarser the spoilt cube is."""
        return self.scale

    def __call__(
        self, clean: Float[Tensor, "bands height width"], generator: Generator
    ) -> Float[Tensor, "bands height/scale width/scale"]:
        """Blur, reduce, add the noise; sides that are no multiple of ``scale`` lose the rest."""
        height, width = (side // self.scale * self.scale for side in clean.shape[1:])
        cube = clean[None, :, :height, :width]
        size = [height // self.scale, width // self.scale]
        if not all(size):
            raise ConfigError(
                f"An image of {clean.shape[1]} x {clean.shape[2]} pixels cannot be made {self.scale} times coarser.",
                "Use a larger image or a smaller scale.",
            )
        coarse = F.interpolate(gaussian_blur(cube, self.blur), size, mode="bicubic", antialias=True)
        return Gaussian(self.sigma)(coarse[0], generator)


KINDS: dict[str, type[Degradation]] = {
    "gaussian": Gaussian,
    "blind": Blind,
    "band_noise": BandNoise,
    "stripes": Stripes,
    "deadlines": Deadlines,
    "impulse": Impulse,
    "mixture": Mixture,
    "missing": Missing,
    "downsample": Downsample,
}


def degradation(name: str, settings: Mapping[str, Any] | None = None) -> Degradation:
    """Return a degradation by name.

    Args:
        name: a key of :data:`KINDS`.
        settings: fields of its class that differ from the defaults; a single number serves where several may stand.

    Raises:
        ConfigError: no such degradation, no such setting, or a value that makes no sense.
    """
    if name not in KINDS:
        raise ConfigError(f"Unknown degradation: {name}.", did_you_mean(name, KINDS))
    kind = KINDS[name]
    known = inspect.signature(kind).parameters
    values = dict(settings or {})
    for key, value in values.items():
        if key not in known:
            raise ConfigError(f"'{name}' has no setting '{key}'.", did_you_mean(key, known))
        several = isinstance(known[key].default, tuple)
        parts = list(value) if isinstance(value, list | tuple) else [value]
        if not all(isinstance(part, int | float) for part in parts) or (
            len(parts) != 1 and not several
        ):
            raise ConfigError(f"{key} = {value} of '{name}' is not a number.", "Give a number.")
        values[key] = tuple(parts) if several else parts[0]
    try:
        return kind(**values)
    except ValueError as error:
        raise ConfigError(f"'{name}' cannot have {error}.") from error


def spoil(
    degrade: Callable[[Tensor, Generator], Tensor],
    cubes: Float[Tensor, "batch bands height width"],
    generator: Generator,
) -> Float[Tensor, "batch bands height2 width2"]:
    """Spoil every cube of a batch by itself: each has a level, columns and bands of its own."""
    return torch.stack([degrade(cube, generator) for cube in cubes])


def degraded_scene(
    scene: xr.DataArray, degrade: Degradation, *, per: str = "band", seed: int = 0
) -> xr.DataArray:
    """Return a spoilt copy of a whole scene, in memory, in its own unit.

    Args:
        scene: the scene; its good bands are taken.
        degrade: what to do to it.
        per: what is scaled to 0..1 before: every ``band``, or the ``scene`` as a whole.
        seed: decides everything random.

    Raises:
        ModelError: it has no valid pixel.
        ConfigError: ``per`` is neither.
    """
    bands = good_bands(scene).astype(np.int64)
    values = torch.from_numpy(
        read_window(scene, slice(0, scene.sizes["y"]), slice(0, scene.sizes["x"]), bands)
    )
    filled, valid = fill_invalid(values)
    ranges = BandRange.fit(values[:, valid].T.numpy(), per)
    spoilt = ranges.inverse(degrade(ranges(filled), Generator().manual_seed(seed)))
    # A coarse pixel is made of those below it: one invalid pixel makes it invalid.
    factor = degrade.factor
    parts = valid.unfold(0, factor, factor).unfold(1, factor, factor)
    spoilt[:, ~parts.all(3).all(2)] = torch.nan
    return like_scene(scene, spoilt.numpy(), bands, 1 / degrade.factor)


def gaussian_blur(
    cube: Float[Tensor, "batch bands height width"], sigma: float
) -> Float[Tensor, "batch bands height width"]:
    """Blur every band with a Gaussian of ``sigma`` pixels, mirrored at the edges; 0 changes nothing."""
    if sigma == 0:
        return cube
    reach = min(max(1, round(3 * sigma)), min(cube.shape[2:]) - 1)
    along = torch.arange(-reach, reach + 1).to(cube)
    weights = torch.exp(-0.5 * (along / sigma) ** 2)
    weights = (weights / weights.sum()).expand(cube.shape[1], 1, 1, -1)
    wide = F.pad(cube, (reach, reach, reach, reach), mode="reflect")
    wide = F.conv2d(wide, weights, groups=cube.shape[1])
    return F.conv2d(wide, weights.transpose(2, 3), groups=cube.shape[1])


def _normal(like: Tensor, generator: Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator).to(like)


def _below(count: int, generator: Generator) -> int:
    return int(torch.randint(count, (), generator=generator))


def _some(count: int, share: float, generator: Generator) -> list[int]:
    """Return a share of ``count`` indices, rounded up, in random order; none where the share is 0."""
    chosen = min(count, -int(-share * count // 1))
    return torch.randperm(count, generator=generator)[:chosen].tolist()


def _some_columns(image: Tensor, fewest: float, most: float, generator: Generator) -> list[int]:
    share = fewest + (most - fewest) * float(torch.rand((), generator=generator))
    return _some(image.shape[1], share, generator)
