"""The examples on the page about scenes run as they stand there, on files of the names they use."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import test_sentinel2
from affine import Affine
from typer.testing import CliRunner

import vitreous
from vitreous.cli.main import app
from vitreous.scenes.cube import make_labels, make_scene
from vitreous.scenes.geotiff import write_labels

PAGE = Path(__file__).resolve().parents[2] / "docs" / "scenes.md"
SECTIONS = ("Sensors", "Resampling to another sensor", "Masks", "Formats")
PLACE = {"crs": "EPSG:32633", "transform": Affine(10, 0, 600000, 0, -10, 5000000)}

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def blocks(section: str) -> list[tuple[str, str]]:
    text = PAGE.read_text(encoding="utf-8")
    part = re.search(rf"^## {section}\n(.*?)(?=^## |\Z)", text, re.S | re.M)
    return re.findall(r"```(sh|python)\n(.*?)```", part[1], re.S)


def printed_by(program: str) -> list[str]:
    printed: list[str] = []

    def show(*words: object) -> None:
        printed.append(" ".join(map(str, words)))

    exec(program, {"vitreous": vitreous, "print": show})
    return printed


def commands(block: str) -> list[list[str]]:
    lines = block.replace("\\\n", " ").splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith("vitreous")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The files that the examples name."""
    geopandas, shapely = pytest.importorskip("geopandas"), pytest.importorskip("shapely")
    path = tmp_path_factory.mktemp("page")
    rng = np.random.default_rng(0)
    labels = np.repeat(np.repeat(np.arange(1, 5).reshape(2, 2), 12, 0), 12, 1)
    spectra = rng.integers(500, 3000, (5, 13))
    cube = (spectra[labels].transpose(2, 0, 1) + rng.integers(0, 60, (13, 24, 24))).astype("u2")
    vitreous.write_scene(make_scene(cube, **PLACE), path / "stack.tif")
    vitreous.write_scene(make_scene(cube[:4], **PLACE), path / "rgbn.tif")
    for name in ("scene.tif", "other.tif"):
        vitreous.write_scene(make_scene(cube[:4], wavelengths=[490, 560, 665, 842], **PLACE), path / name)  # fmt: skip
    nm = np.arange(400, 2500, 10.0)
    fine = np.ones((nm.size, 4, 5), "f4") * nm[:, None, None].astype("f4") / 5000
    vitreous.write_scene(make_scene(fine, wavelengths=nm, fwhm=np.full(nm.size, 10.0), unit="reflectance"), path / "cube.hdr")  # fmt: skip
    (path / "curves.csv").write_text("wavelength,a,b\n500,0,0\n550,1,0\n600,0,1\n650,0,0\n")
    write_labels(make_labels((labels == 4).astype(int), **PLACE), path / "clouds.tif")
    clear = np.full((1, 24, 24), 21824, "u2")  # of Landsat 8
    vitreous.write_scene(make_scene(clear, **PLACE), path / "other_QA_PIXEL.tif")
    (path / "other_QA_PIXEL.tif").rename(path / "other_QA_PIXEL.TIF")
    boxes, names = [], []
    for row in range(0, 24, 6):
        for column in range(0, 24, 6):
            left, top = 600000 + 10 * column, 5000000 - 10 * row
            boxes.append(shapely.box(left, top - 60, left + 60, top))
            names.append(f"crop {labels[row, column]}")
    geopandas.GeoDataFrame({"crop": names}, geometry=boxes, crs="EPSG:32633").to_file(path / "fields.gpkg")  # fmt: skip
    granule, _ = test_sentinel2.put_level_2a(path, "S2B_MSIL2A_20230216.SAFE")
    classes = np.full((12, 12), 4)
    classes[:4] = 9
    test_sentinel2.put_band(granule / "R20m" / "T33UUU_20230216T102101_SCL_20m.jp2", 20, classes)
    for name in "B02", "B03", "B04":
        vitreous.write_scene(make_scene(cube[:1], **PLACE), path / f"{name}.tif")
    return path


@pytest.mark.parametrize("section", ["Sensors", "Resampling to another sensor", "Masks"])
def test_examples_run(folder, section, monkeypatch):
    monkeypatch.chdir(folder)
    found = blocks(section)
    assert {language for language, _ in found} == {"sh", "python"}
    for language, text in found:
        if language == "python":
            printed = printed_by(text)
            assert printed == re.findall(r"^print\(.*\)  # (.*)$", text, re.M)
        for words in commands(text) if language == "sh" else ():
            done = CliRunner().invoke(app, words, catch_exceptions=False)
            assert done.exit_code == 0, (words, done.output)
            for out in (words[k + 1] for k, word in enumerate(words) if word == "-o"):
                assert vitreous.open_scene(folder / out).size


def test_masked_pixels_are_hidden(folder, monkeypatch):
    """What the examples of masks have made: clouds are neither resampled nor among the training pixels."""
    monkeypatch.chdir(folder)
    scene = vitreous.open_scene("S2B_MSIL2A_20230216.SAFE", mask="scl")
    hidden = np.isnan(scene.values).all(0)
    assert hidden[:8].all() and not hidden[8:].any()
    clear = vitreous.open_scene("scene.tif", mask="clouds.tif", mask_values=1).values
    assert np.isnan(clear[:, 12:, 12:]).all() and np.isfinite(clear[:, :12]).all()
