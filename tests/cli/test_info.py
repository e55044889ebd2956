"""``vitreous info`` on small scenes whose facts are known."""

import json
import math
import re

import numpy as np
import pytest
import rasterio.transform
from affine import Affine
from matplotlib.image import imread
from typer.testing import CliRunner

from vitreous.cli.info import describe, ranges, write_preview
from vitreous.cli.main import app
from vitreous.errors import VitreousError
from vitreous.scenes import write_scene
from vitreous.scenes.cube import LazyCube, make_scene

COS, SIN = math.cos(math.radians(30)), math.sin(math.radians(30))
HEADER = """ENVI
samples = 7
lines = 4
bands = 3
header offset = 0
data type = 12
interleave = bil
byte order = 0
wavelength units = Micrometers
wavelength = {0.45, 0.55, 0.65}
bbl = {1, 0, 1}
data ignore value = 9
map info = {UTM, 1, 1, 500000, 4000000, 30, 30, 11, North, WGS-84, units=Meters}
"""


@pytest.fixture
def envi(tmp_path):
    (tmp_path / "scene.hdr").write_text(HEADER)
    values = np.arange(4 * 3 * 7, dtype="<u2").reshape(4, 3, 7)
    (tmp_path / "scene.img").write_bytes(values.tobytes())
    return tmp_path / "scene.hdr"


def _info(*words):
    done = CliRunner(env={"COLUMNS": "160", "NO_COLOR": "1"}).invoke(
        app, ["info", *map(str, words)]
    )
    assert done.exit_code == 0, done.output
    return done.output


def test_json_holds_the_facts_of_the_header(envi):
    facts = json.loads(_info(envi, "--json"))
    assert (facts["width"], facts["height"], facts["bands"]) == (7, 4, 3)
    assert facts["bad_bands"] == [2]
    assert facts["wavelengths_nm"] == pytest.approx([450, 650])
    assert (facts["data_type"], facts["nodata"]) == ("uint16", 9)
    assert facts["crs"] == "EPSG:32611"
    assert facts["pixel_size"] == [30, 30]
    assert facts["bounds"] == [500000, 4000000 - 4 * 30, 500000 + 7 * 30, 4000000]


def test_table_says_the_same_in_words(envi):
    text = _info(envi)
    for words in ("7 x 4 pixels, 3 bands", "450.0 to 650.0 nm", "1: 2", "EPSG:32611", "30 x 30"):
        assert words in text


def test_a_single_band_is_singular(tmp_path):
    write_scene(make_scene(np.zeros((1, 4, 7), "uint8")), tmp_path / "one.npy")
    assert re.search(r"7 x 4 pixels, 1 band\b", _info(str(tmp_path / "one.npy")))


def test_hints_reach_the_reader(envi):
    assert json.loads(_info(envi, "--json", "--hints", "nodata=3"))["nodata"] == 3


def test_sample_has_labels():
    labels = json.loads(_info("indian_pines", "--json"))["labels"]
    assert len(labels) == 16
    assert sum(labels.values()) == 10249


def test_facts_cost_no_pixels():
    def read(window):
        raise AssertionError("a pixel was read")

    facts = describe(make_scene(LazyCube((200, 50_000, 40_000), "u2", read)))
    assert facts["megabytes"] == 200 * 50_000 * 40_000 * 2 / 1e6
    assert facts["bounds"] is None


def test_bounds_of_a_rotated_scene_hold_its_corners():
    transform = Affine(2 * COS, 3 * SIN, 100, 2 * SIN, -3 * COS, 200)
    facts = describe(make_scene(np.zeros((1, 5, 8), np.uint8), transform=transform))
    assert facts["pixel_size"] == pytest.approx([2, 3])
    assert facts["rotation_degrees"] == pytest.approx(30)
    left, bottom, right, top = facts["bounds"]
    for corner in ((0, 0), (8, 0), (0, 5), (8, 5)):
        x, y = rasterio.transform.xy(transform, corner[1], corner[0], offset="ul")
        assert left <= x <= right
        assert bottom <= y <= top


def test_preview_is_small_and_transparent_where_there_is_nothing(tmp_path):
    rows = []

    def read(window):
        rows.append(window[1].stop - window[1].start)
        bands, height, width = (part.stop - part.start for part in window)
        values = np.broadcast_to(np.arange(width, dtype=float), (bands, height, width)).copy()
        values[..., : width // 2] = np.nan
        return values

    scene = make_scene(LazyCube((3, 5000, 2500), "f8", read))
    write_preview(scene, tmp_path / "preview.png")
    picture = imread(tmp_path / "preview.png")
    assert picture.shape == (1000, 500, 4)
    assert (picture[:, :250, 3] == 0).all()
    assert (picture[:, 250:, 3] == 1).all()
    assert np.all(np.diff(picture[0, 250:, 0]) >= 0)
    assert max(rows) == 1


def test_preview_of_a_scene_without_valid_pixels(tmp_path):
    write_preview(make_scene(np.full((2, 3, 4), np.nan)), tmp_path / "empty.png")
    assert (imread(tmp_path / "empty.png")[..., 3] == 0).all()


def test_preview_must_be_a_png(tmp_path):
    with pytest.raises(VitreousError, match="png"):
        write_preview(make_scene(np.zeros((1, 2, 2))), tmp_path / "preview.exe")
    assert not list(tmp_path.iterdir())


def test_ranges():
    assert ranges([1, 2, 3, 7, 9, 10]) == "1-3, 7, 9-10"
    assert ranges([]) == ""


def test_a_long_path_stays_on_one_line(tmp_path):
    folder = tmp_path / ("a folder with a long name " * 4).strip()
    folder.mkdir()
    write_scene(make_scene(np.zeros((1, 4, 7), "uint8")), folder / "[one].npy")
    assert str(folder / "[one].npy") in _info(str(folder / "[one].npy")).splitlines()
