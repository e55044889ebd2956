"""The examples on the pages about analyses run as they stand there, on files of the names they use."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from affine import Affine

import vitreous
from mixed_scene import mixed_cube, mixed_scene, smooth_spectra
from page_runner import DOCS, blocks, run

GRID = {"crs": "EPSG:32611", "transform": Affine(10, 0, 500_000, 0, -10, 4_000_000)}
NAMES = ["Kaolinite CM9", "Well crystallized kaolinite", "Alunite GDS84", "Quartz"]
CENTRES = np.concatenate([np.arange(400.0, 1000.0, 12.0), np.arange(1000.0, 2451.0, 40.0)])
SLI = """ENVI
samples = {bands}
lines = 4
bands = 1
data type = 4
interleave = bsq
byte order = 0
file type = ENVI Spectral Library
wavelength units = Nanometers
reflectance scale factor = 1
spectra names = {{{names}}}
wavelength = {{{centres}}}
"""

pytestmark = [
    pytest.mark.timeout(1200),  # a dozen commands, each with its picture
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore:Dataset has no geotransform"),
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The files that the pages name."""
    monkeypatch.chdir(tmp_path)
    spectra = smooth_spectra(4, CENTRES.size)
    cube = mixed_cube(spectra, 30, 36)
    known = {"wavelengths": CENTRES, "fwhm": np.where(CENTRES < 1000, 12.0, 40.0), **GRID}
    later = cube.copy()
    later[:, 5:9, 5:9] *= 0.5
    vitreous.write_scene(mixed_scene(cube=cube, **known), "before.tif")
    vitreous.write_scene(mixed_scene(cube=later, **known), "after.tif")
    text = SLI.format(
        bands=CENTRES.size, names=", ".join(NAMES), centres=", ".join(map(str, CENTRES))
    )
    Path("minerals.hdr").write_text(text)
    spectra.astype("<f4").tofile("minerals.sli")
    return lambda scene: vitreous.write_scene(mixed_scene(cube=scene(cube), **known), "scene.tif")


def test_the_page_about_analyses(folder):
    folder(lambda cube: cube)
    printed = run("analyse.md")
    for product in (
        "pca",
        "mnf",
        "ica",
        "indices",
        "all",
        "kaolinite",
        "rx",
        "abundances",
        "change",
    ):
        for ending in (".tif", ".png", ".facts.json"):
            assert Path(product).with_suffix(ending).is_file(), product
    assert "components have more signal than noise" in printed[-1]


def test_every_command_is_on_the_page():
    from vitreous.analysis.table import ANALYSES

    rows = re.findall(r"^\| `(\w+)` \|", (DOCS / "analyse.md").read_text("utf-8"), re.M)
    assert rows == list(ANALYSES)
    text = "\n".join(text for _, text in blocks("analyse.md"))
    used = set(re.findall(r"vitreous analyse (\w+)", text))
    assert used | {"mf", "cem"} == set(ANALYSES)


@pytest.mark.slow
def test_a_material_is_found_as_the_page_says(folder):
    folder(lambda cube: np.round(cube * 10_000))
    printed = run("find-material.md")
    counts = re.findall(
        r"(0\.\d+) rad: (\d+) pixels, (\d+)% right, (\d+)% of all", "\n".join(printed)
    )
    first = dict(zip(("threshold", "pixels", "right", "complete"), counts[0], strict=True))
    assert first["threshold"] == "0.06"
    assert int(first["right"]) > 65
    assert int(first["complete"]) > 60
    image = vitreous.open_scene("minerals.tif")
    names = [f"SAM {name}" for name in NAMES[:3]]
    assert list(image["band_name"].values) == names
    np.testing.assert_allclose(image.values[:, 0, [0, 1, 2]].diagonal(), 0, atol=0.05)
