"""Sensors: which bands they have, with centres and widths in nm.

The numbers are facts from public documents, in ``sensors.json`` with the source of each. Bands are listed in the order
in which the products stack them. Sensors whose bands differ from product to product (PRISMA, EnMAP) have only the ranges
of their spectrometers here: their files say the centres.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from typing import Any, NamedTuple

import numpy as np

from vitreous.errors import SceneError, did_you_mean, listed
from vitreous.scenes.attributes import key_of

_HLS = re.compile(r"\bHLS\.(L30|S30)\.", re.I)
_LANDSAT = re.compile(r"landsat[-_ ]?([45789])\b|\bL[CETM]0([45789])_", re.I)
_SENTINEL_2 = re.compile(
    r"sentinel[-_ ]?2(?:[-_ ]?([abcd]))?\b|(?:\b|_)S2([ABCD])?_|(?:\b|_)T\d\d[A-Z]{3}_", re.I
)


class SensorBand(NamedTuple):
    """One band: its centre and full width at half maximum in nm."""

    name: str
    centre: float
    fwhm: float


class SpectralRange(NamedTuple):
    """What one spectrometer covers, in nm, and its number of bands."""

    low: float
    high: float
    bands: int


class Sensor(NamedTuple):
    """A sensor.

    Attributes:
        name: by which it is asked for, ``sentinel2a``.
        title: ``Sentinel-2A MSI``.
        platform: what carries it.
        source: of the numbers.
        bands: in the order of its products; none where only ``ranges`` are known.
        ranges: of a spectrometer whose bands each file says.
    """

    name: str
    title: str
    platform: str
    source: str
    bands: tuple[SensorBand, ...] = ()
    ranges: tuple[SpectralRange, ...] = ()

    def band(self, name: str) -> SensorBand:
        """Return the band of this name, whatever its capitals.

        Raises:
            SceneError: there is none.
        """
        by_name = {band.name.lower(): band for band in self.bands}
        found = by_name.get(name.strip().lower())
        if found is None:
            raise SceneError(
                f"{self.title} has no band '{name}'.",
                did_you_mean(name, [band.name for band in self.bands]),
            )
        return found

    def facts(self) -> dict[str, list[Any]]:
        """Return names, centres and widths as arguments of :func:`vitreous.scenes.cube.make_scene`."""
        return {
            "wavelengths": [band.centre for band in self.bands],
            "fwhm": [band.fwhm for band in self.bands],
            "band_names": [band.name for band in self.bands],
        }


@functools.cache
def sensors() -> dict[str, Sensor]:
    """Return all sensors by name."""
    return {name: _sensor(name, entry) for name, entry in _entries("sensors").items()}


def sensor(name: str) -> Sensor:
    """Return a sensor by its name or title; capitals, blanks and hyphens do not count.

    Args:
        name: ``sentinel2a``, ``Sentinel-2A MSI``; ``sentinel2a:B02,B03,B04`` takes these bands alone, in this order.

    Raises:
        SceneError: there is none, or it has no such band.
    """
    wanted, colon, chosen = str(name).partition(":")
    by_key = {key_of(word): one for one in sensors().values() for word in (one.title, one.name)}
    found = by_key.get(key_of(wanted))
    if found is None:
        raise SceneError(f"Unknown sensor: {wanted}.", did_you_mean(wanted, sensors()))
    if not colon:
        return found
    bands = tuple(found.band(word) for word in chosen.split(",") if word.strip())
    if not bands or len(set(bands)) < len(bands):
        raise SceneError(
            f"sensor={name} names {'a band twice' if bands else 'no bands'}.",
            f"Name each once: {found.name}:{listed([band.name for band in found.bands[:3]])}.",
        )
    return found._replace(bands=bands)


def banded(name: str) -> Sensor:
    """Return a sensor whose bands are known.

    Raises:
        SceneError: there is none, or its bands are not the same in all files.
    """
    found = sensor(name)
    if not found.bands:
        spans = " and ".join(f"{r.low:g} to {r.high:g} nm" for r in found.ranges)
        raise SceneError(
            f"The bands of {found.title} ({spans}) differ from file to file.",
            "Its products say their centres; give them as a CSV file with the columns wavelength and fwhm.",
        )
    return found


def sensor_of_names(
    names: Sequence[str], texts: Iterable[str] = ()
) -> dict[str, SensorBand] | None:
    """Return the bands, by name, of the sensor that names of bands or other texts of a product give away.

    Numbers alone do not: B05 is the red edge of Sentinel-2 and the near infrared of Landsat 8.

    Args:
        names: of the bands, in capitals.
        texts: file names, titles, names of platforms.
    """
    said = " ".join(texts)
    hls = {match.upper() for match in _HLS.findall(said)}
    if len(hls) > 1:
        return None
    landsat = _LANDSAT.search(said)
    if hls == {"L30"} or landsat:
        number = landsat[1] or landsat[2] if landsat else "8"
        bands = sensors()[f"landsat{number}"].bands
        # HLS and others give the bands of Landsat two digits.
        return {name: b for b in bands for name in (b.name, f"B{int(b.name[1:]):02d}")}
    sentinel = _SENTINEL_2.search(said)
    if hls == {"S30"} or sentinel or "B8A" in names:
        letter = (sentinel[1] or sentinel[2] or "a").lower() if sentinel else "a"
        # Platforms of one kind differ by a few nanometres.
        found = sensors().get(f"sentinel2{letter}", sensors()["sentinel2a"])
        return {
            name: band
            for band in found.bands
            for name in (band.name, re.sub("^B0", "B", band.name))
        }
    return None


def facts_of_names(names: Sequence[str], texts: Iterable[str] = ()) -> dict[str, list[float]]:
    """Return centres and widths of bands that :func:`sensor_of_names` knows, all of them; empty otherwise."""
    wanted = [name.upper() for name in names]
    table = sensor_of_names(wanted, texts) or {}
    if not wanted or not set(wanted) <= table.keys():
        return {}
    bands = [table[name] for name in wanted]
    return {"wavelengths": [b.centre for b in bands], "fwhm": [b.fwhm for b in bands]}


def _entries(name: str) -> dict[str, Any]:
    text = resources.files("vitreous.scenes").joinpath(f"{name}.json").read_text("utf-8")
    content: dict[str, Any] = json.loads(text)
    return content


def _sensor(name: str, entry: Mapping[str, Any]) -> Sensor:
    ranges = tuple(SpectralRange(*values) for values in entry.get("ranges", ()))
    return Sensor(
        name, entry["title"], entry["platform"], entry["source"], tuple(_bands(entry)), ranges
    )


def _bands(entry: Mapping[str, Any]) -> Sequence[SensorBand]:
    """Bands as their source gives them: centre and width, half-maximum edges, equal steps, or a built-in scene's."""
    if "edges" in entry:
        return [
            SensorBand(name, (low + high) / 2, high - low)
            for name, (low, high) in entry["edges"].items()
        ]
    if "grids" in entry:
        return [band for grid in entry["grids"] for band in _grid(**grid)]
    if "scene" in entry:
        facts = _entries(entry["scene"])
        pairs = zip(facts["wavelengths"], facts["fwhm"], strict=True)
        return [SensorBand(str(k), centre, fwhm) for k, (centre, fwhm) in enumerate(pairs, start=1)]
    return [SensorBand(name, *values) for name, values in entry.get("bands", {}).items()]


def _grid(first: int, last: int, centres: tuple[float, float], fwhm: float) -> list[SensorBand]:
    steps = np.linspace(*centres, last - first + 1).round(2).tolist()
    return [
        SensorBand(f"B{k:03}", float(nm), float(fwhm)) for k, nm in enumerate(steps, start=first)
    ]
