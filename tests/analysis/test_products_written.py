"""Products on disk and the command: every analysis, its files, and what is refused before anything is written."""

import json

import numpy as np
import pytest
import rasterio
from affine import Affine
from PIL import Image
from typer.testing import CliRunner

import vitreous
from mixed_scene import mixed_cube, mixed_scene, smooth_spectra
from vitreous.analysis.streams import Passes, tiles
from vitreous.analysis.table import ANALYSES
from vitreous.cli.main import app
from vitreous.errors import ConfigError
from vitreous.scenes import open_scene, write_scene
from vitreous.scenes.cube import LazyCube, georeference, make_scene
from vitreous.scenes.spectra import Spectra, read_spectra, write_spectra

RUNNER = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"})
GRID = Affine(10, 0, 500_000, 0, -10, 4_000_000)
SETTINGS = {
    "pca": ["--components", 3],
    "mnf": ["--components", 3],
    "ica": ["--components", 2],
    "indices": ["--index", "NDMI,NBR"],
    "sam": ["--pixel", "3,4", "--pixel", "7,1"],
    "mf": ["--library", "lib.csv", "--spectrum", "b"],
    "ace": ["--pixel", "3,4"],
    "cem": ["--library", "lib.csv"],
    "rx": ["--window", 9, "--guard", 3],
    "unmix": ["--endmembers", 3],
    "cva": ["--no-normalise"],
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a scene, a later date and a library."""
    monkeypatch.chdir(tmp_path)
    before = mixed_scene(12, crs="EPSG:32611", transform=GRID)
    cube = before.values.copy()
    cube[:, 5:9, 5:9] *= 0.5
    cube[:, 20, 20] = np.nan
    facts = {"crs": "EPSG:32611", "transform": GRID, "nodata": float("nan")}
    write_scene(mixed_scene(cube=cube, **facts), "scene.tif")
    write_scene(before, "later.tif")
    spectra = Spectra(before.values[:, 0, :2].T, before["wavelength"].values, ["a", "b"])
    write_spectra(spectra, "lib.csv")
    write_spectra(spectra, "lib.spectra.csv")
    return tmp_path


def run(*words):
    return RUNNER.invoke(app, ["analyse", *map(str, words)])


def refused(*words):
    """Run a command that fails, and return its message, on one line."""
    done = run(*words)
    assert done.exit_code == 2, done.output
    return " ".join(done.output.split())


@pytest.mark.filterwarnings("ignore:Dataset has no geotransform")
@pytest.mark.parametrize("name", ANALYSES)
def test_every_analysis_is_a_command_with_whole_products(name, place):
    scenes = ["scene.tif", "later.tif"] if name == "cva" else ["scene.tif"]
    done = run(name, *scenes, "-o", "out.tif", *SETTINGS[name])
    assert done.exit_code == 0, done.output
    image = open_scene("out.tif")
    crs, transform = georeference(image)
    assert crs == "EPSG:32611"
    assert transform.almost_equals(GRID)
    values = image.values
    assert np.isnan(values[:, 20, 20]).all()
    assert np.isfinite(values).mean() > 0.99
    facts = json.loads((place / "out.facts.json").read_text())
    assert facts["analysis"] == name
    assert facts["scene"].endswith("scene.tif")
    assert set(facts["wavelengths_nm"]) <= set(open_scene("scene.tif")["wavelength"].values)
    assert facts["bands"] == list(image["band_name"].values)
    with rasterio.open("out.tif") as dataset:
        assert dataset.profile["tiled"]
        assert dataset.dtypes[0] == "float32"
    with Image.open("out.png") as picture:
        colours = picture.convert("RGB").getcolors(1 << 22)
        assert picture.width > 300
        assert len(colours) > 50
    if (place / "out.spectra.csv").is_file():
        spectra = read_spectra("out.spectra.csv")
        np.testing.assert_allclose(spectra.wavelengths, np.linspace(450, 2300, 12), rtol=1e-8)
    listed = [line for line in done.output.splitlines() if line.startswith("out.")]
    assert sorted(listed) == sorted(path.name for path in place.glob("out.*"))
    assert not [path for path in place.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("name", ANALYSES)
def test_the_python_api_gives_the_same(name, place):
    scene, later = open_scene("scene.tif"), open_scene("later.tif")
    if name == "cva":
        result = vitreous.analyse(name, scene, later)
    elif ANALYSES[name].takes == "targets":
        result = vitreous.analyse(name, scene, library="lib.csv")
    else:
        result = vitreous.analyse(name, scene)
    assert result.image.shape[1:] == (40, 50)
    assert result.facts["analysis"] == name
    assert result.summary.endswith(".")
    json.dumps(result.facts, allow_nan=False)


@pytest.mark.parametrize("out", ["out.hdr", "out.npy", "out.zarr"])
def test_other_formats_are_written_too(out, place):
    done = run("pca", "scene.tif", "-o", out, "--components", 2)
    assert done.exit_code == 0, done.output
    image = open_scene(out)
    expected = vitreous.analyse("pca", open_scene("scene.tif"), components=2).image
    np.testing.assert_allclose(image.values, expected.values, rtol=1e-5, atol=1e-6)
    assert (place / "out.png").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pca", "scene.tif", "-o", "scene.tif"], "would overwrite the scene itself"),
        (["pca", "scene.tif", "-o", "out.jpg"], "suffix of a writable format"),
        (["pca", "scene.tif", "-o", "out.tif", "--components", 13], "13 components"),
        (["sam", "scene.tif", "-o", "lib.tif", "--library", "lib.spectra.csv"], "lib.spectra.csv would overwrite"),
        (["sam", "scene.tif", "-o", "out.tif"], "either by a library or by pixels"),
        (["sam", "scene.tif", "-o", "out.tif", "--pixel", "3"], "not of the form ROW,COLUMN"),
        (["sam", "scene.tif", "-o", "out.tif", "--spectrum", "a"], "need --library"),
        (["ace", "scene.tif", "-o", "out.tif", "--library", "none.sli"], "none"),
        (["mf", "scene.tif", "-o", "out.tif", "--library", "lib.csv", "--library-scale", "0"], "scale"),
        (["mf", "scene.tif", "-o", "out.tif", "--library", "lib.csv", "--spectrum", "c"], "no spectrum 'c'"),
        (["mf", "scene.tif", "-o", "out.tif", "--library", "lib.csv", "--library-scale", "5000"], "another unit"),
        (["cem", "scene.tif", "-o", "out.tif", "--library", "lib.csv", "--wavelength-unit", "um"], "unit"),
        (["indices", "scene.tif", "-o", "out.tif", "--index", "PRI"], "PRI lacks"),
        (["indices", "scene.tif", "-o", "out.tif", "--index", "NDVX"], "Unknown index: NDVX"),
        (["indices", "scene.tif"], "file to write"),
        (["rx", "scene.tif", "-o", "out.tif", "--window", 8], "not possible"),
        (["unmix", "scene.tif", "-o", "out.tif", "--endmembers", 11], "more than"),
        (["cva", "scene.tif", "later.tif", "-o", "later.tif"], "would overwrite"),
        (["cva", "scene.tif", "later.tif", "-o", "out.tif", "--hints-after", "bands=1-3"], "bands of"),
    ],
)  # fmt: skip
def test_bad_input_is_one_message_and_nothing_is_written(words, message, place):
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*")}
    said = refused(*words)
    assert message in said
    assert said.count("Error:") == 1
    assert "Traceback" not in said
    assert {path: path.stat().st_mtime_ns for path in place.rglob("*")} == before


def test_spectra_of_an_earlier_analysis_do_not_stay(place):
    scene = open_scene("scene.tif")
    vitreous.analyse("pca", scene).write("out.tif")
    assert (place / "out.spectra.csv").is_file()
    vitreous.analyse("rx", scene).write("out.tif")
    assert not (place / "out.spectra.csv").exists()
    assert json.loads((place / "out.facts.json").read_text())["analysis"] == "rx"


def test_a_file_that_breaks_off_leaves_nothing_behind(place):
    whole = mixed_cube(smooth_spectra(4, 12), 300, 200)
    calls = []

    def read(window):
        calls.append(window)
        if len(calls) > 9:  # the statistics are read whole, the image is not
            raise OSError("unreadable")
        return whole[window]

    scene = make_scene(LazyCube(whole.shape, np.float32, read), source="broken.tif")
    before = set(place.iterdir())
    with pytest.raises(vitreous.VitreousError, match=r"broken\.tif cannot be read"):
        vitreous.analyse("pca", scene).write("out.tif")
    assert set(place.iterdir()) == before


def test_the_list_of_indices_shows_bands_and_formulas():
    done = run("indices", "--list")
    assert done.exit_code == 0
    row = next(line for line in done.output.splitlines() if line.split()[1:2] == ["NDVI"])
    assert "R 620-690" in row
    assert "(N-R)/(N+R)" in row
    assert "PRI" in done.output


def test_unknown_analyses_are_refused():
    with pytest.raises(ConfigError, match=r"Unknown analysis: pac\. Did you mean 'pca'"):
        vitreous.analyse("pac", mixed_scene(4))


def test_memory_is_that_of_a_tile():
    """No window that is read is larger than a tile and its border, however large the scene is."""
    largest = []

    def read(window):
        shape = [len(range(part.start, part.stop, part.step)) for part in window]
        largest.append(int(np.prod(shape)))
        rng = np.random.default_rng(window[1].start * 1000 + window[2].start)
        return rng.random(shape, dtype=np.float32)

    scene = make_scene(LazyCube((4, 700, 900), np.float32, read), wavelengths=[480, 560, 660, 830])
    for name, settings in {"pca": {}, "mnf": {}, "rx": {}, "sam": {"pixels": [(0, 0)]}}.items():
        image = vitreous.analyse(name, scene, **settings).image
        assert np.isfinite(image[:, :40, :50].values).all()
    assert max(largest) <= 4 * 129 * 129


def test_progress_reaches_its_end(tmp_path):
    said = []
    scene = mixed_scene(6, 150, 139)
    result = vitreous.analyse("pca", scene, progress=lambda done, total: said.append((done, total)))
    result.write(tmp_path / "a.tif")
    assert said[-1][0] == said[-1][1] == 2 * 150 * 139
    assert [done for done, _ in said] == sorted(done for done, _ in said)
    counted = Passes(scene, 1, lambda done, total: said.append((done, total)))
    assert sum(len(tile.spectra) for tile in tiles(scene, np.arange(6), counted)) == 150 * 139
