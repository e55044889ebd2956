"""The sensors: their bands are those of the measured responses, and a scene gets them by a hint."""

import gzip
import json
import lzma
from pathlib import Path

import numpy as np
import pytest

import vitreous
from vitreous.errors import SceneError
from vitreous.scenes.cube import make_scene
from vitreous.scenes.sensors import banded, sensor, sensors

# file, last wavelength of its rows in nm, nm between rows (the files give neither)
CURVES = {
    "landsat4": ("Landsat_4_response.csv.gz", 2400, 1),
    "landsat5": ("Landsat_5_response.csv.gz", 2400, 1),
    "landsat7": ("Landsat_7_response.csv.gz", 2400, 1),
    "landsat8": ("Landsat_8_response.csv.gz", 2355, 1),
    "quickbird": ("Quickbird_response.csv.gz", 1100, 5),
    "rapideye": ("RapidEye_response.csv.gz", 901, 1),
    "sentinel2a": ("Sentinel2A_response.csv.xz", 2600, 1),
    "sentinel2b": ("Sentinel2B_response.csv.xz", 2600, 1),
    "worldview2": ("WV_2_8_response.csv.gz", 1100, 1),
}


def measured(path: Path, last: float, step: float) -> np.ndarray:
    """``(bands, 2)`` centre and width of each response by its half maximum, rising centres."""
    read = gzip.open if path.suffix == ".gz" else lzma.open
    with read(path, "rt") as file:
        rows = [[float(cell) for cell in line.split(";")] for line in file.readlines()[1:]]
    curves = np.array(rows).T
    wavelengths = last - step * np.arange(curves.shape[1])[::-1]
    found = []
    for curve in curves:
        above = np.flatnonzero(curve >= curve.max() / 2)
        part = slice(above[0], above[-1] + 1)
        centre = np.average(wavelengths[part], weights=np.clip(curve[part], 0, None))
        found.append((centre, wavelengths[above[-1]] - wavelengths[above[0]] + step))
    return np.array(sorted(found))


@pytest.mark.parametrize("name", CURVES)
def test_bands_are_those_of_the_measured_responses(name, shared_data):
    file, last, step = CURVES[name]
    curves = measured(shared_data / "sensor_response_hsdar" / file, last, step)
    bands = np.array(sorted((band.centre, band.fwhm) for band in sensor(name).bands))
    assert bands.shape == curves.shape
    # Half of the near-infrared of WorldView-2 lies on the flank of its detector: 5 nm; all others 4 and less.
    np.testing.assert_allclose(bands, curves, rtol=0, atol=5.5)
    assert np.median(np.abs(bands - curves)) < 2


def test_every_sensor_is_complete():
    for name, one in sensors().items():
        assert one.name == name
        assert one.title and one.platform and one.source
        assert bool(one.bands) != bool(one.ranges)
        assert len({band.name for band in one.bands}) == len(one.bands)
        for band in one.bands:
            assert 350 < band.centre < 2600 and 1 < band.fwhm <= 300


def test_names_are_found_in_any_spelling():
    assert sensor("Sentinel-2A MSI") is sensor("sentinel2a") is sensor("SENTINEL_2A")
    chosen = sensor("sentinel2a:b8a,B02").bands
    assert [(band.name, band.centre) for band in chosen] == [("B8A", 864.7), ("B02", 492.4)]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("sentinel2x", "Did you mean 'sentinel2"),
        ("sentinel2a:B99", "no band 'B99'"),
        ("sentinel2a:B02,B02", "a band twice"),
        ("sentinel2a:", "names no bands"),
        ("prisma", "differ from file to file"),
    ],
)
def test_what_is_no_sensor_is_refused_in_words(name, words):
    with pytest.raises(SceneError) as caught:
        banded(name)
    assert words in str(caught.value)


def a_scene(tmp_path: Path, bands: int, **facts: object) -> Path:
    path = tmp_path / "scene.tif"
    values = np.arange(bands * 4, dtype=np.uint16).reshape(bands, 2, 2)
    vitreous.write_scene(make_scene(values, **facts), path)
    return path


def test_a_hint_names_the_bands_of_a_scene(tmp_path):
    scene = vitreous.open_scene(a_scene(tmp_path, 13), sensor="sentinel2a")
    assert scene["band_name"].values.tolist()[7:9] == ["B08", "B8A"]
    assert scene["wavelength"].values[8] == 864.7
    assert scene["fwhm"].values[7] == 106


def test_a_hint_replaces_what_the_file_says(tmp_path):
    path = a_scene(tmp_path, 4, wavelengths=[1, 2, 3, 4])
    scene = vitreous.open_scene(path, sensor="sentinel2b:B02,B03,B04,B08")
    assert scene["wavelength"].values.tolist() == [492.1, 559.0, 664.9, 832.9]


def test_another_number_of_bands_is_refused_with_the_way_out(tmp_path):
    with pytest.raises(SceneError, match="has 4 bands, but Sentinel-2A MSI has 13: B01") as caught:
        vitreous.open_scene(a_scene(tmp_path, 4), sensor="sentinel2a")
    assert "sensor=sentinel2a:B01,B02,B03" in caught.value.fix


def test_sensors_are_listed(cli):
    listed = cli("sensors").stdout
    assert "sentinel3_olci" in listed and "PRISMA (centres in the files)" in listed
    assert "864.7" in cli("sensors", "Sentinel-2A").stdout
    (one,) = json.loads(cli("sensors", "landsat8", "--json").stdout)
    assert one["bands"][0] == {"name": "B1", "centre": 442.96, "fwhm": 15.98}
    assert cli("sensors", "landsat6").returncode == 2
