"""Scenes in the bands of another sensor: identities that resampling must keep, and what it cannot give."""

import tracemalloc
import warnings

import numpy as np
import pytest
import rasterio
from affine import Affine

import vitreous
from vitreous import resample
from vitreous.errors import SceneError
from vitreous.scenes.cube import LazyCube, good_bands, make_scene, read_window
from vitreous.scenes.resample import read_responses
from vitreous.scenes.sensors import sensor

SIGMA = 1 / (2 * np.sqrt(2 * np.log(2)))  # of a Gaussian of width 1 nm


def fine(spectrum, *, step=1.0, fwhm=None, low=350.0, high=2500.0, **facts):
    """A scene of 1 x 2 pixels with a spectrum, given as a function of nm, and twice that spectrum."""
    nm = np.arange(low, high + step / 2, step)
    values = np.stack([spectrum(nm), 2 * spectrum(nm)]).T[:, None].astype(np.float32)
    widths = np.full(nm.size, step if fwhm is None else fwhm)
    return make_scene(values, wavelengths=nm, fwhm=widths, source="fine", **facts)


def values_of(scene):
    return scene.values[:, 0, 0].astype(float)


def quietly(scene, to):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return resample(scene, to)


@pytest.mark.parametrize("name", ["sentinel2a", "landsat8", "rapideye", "quickbird"])
@pytest.mark.parametrize("step", [1.0, 10.0])
def test_a_flat_spectrum_stays_flat_and_a_straight_one_straight(name, step):
    flat = quietly(fine(lambda nm: np.full(nm.shape, 0.3), step=step), name)
    np.testing.assert_allclose(flat.values[:, 0], [[0.3, 0.6]] * flat.sizes["band"], rtol=1e-6)
    straight = quietly(fine(lambda nm: nm / 1000, step=step), name)
    np.testing.assert_allclose(values_of(straight), straight["wavelength"] / 1000, rtol=1e-5)


@pytest.mark.parametrize("name", ["sentinel2a", "landsat8", "worldview3", "aviris_1992"])
def test_a_sensor_resampled_to_itself_stays_what_it_is(name):
    facts = sensor(name).facts()
    values = np.random.default_rng(0).random((len(facts["fwhm"]), 3, 4), dtype=np.float32)
    again = quietly(make_scene(values, **facts), sensor(name))
    np.testing.assert_allclose(again.values, values, rtol=1e-5)
    assert again["band_name"].values.tolist() == facts["band_names"]


@pytest.mark.parametrize("width", [20.0, 60.0, 180.0])
def test_a_gaussian_line_has_its_known_integral(width, tmp_path):
    line, centre, offset = 15.0, 1000.0, 12.0
    scene = fine(lambda nm: np.exp(-0.5 * ((nm - centre - offset) / line) ** 2))
    (tmp_path / "bands.csv").write_text(f"wavelength_nm,fwhm\n{centre},{width}\n")
    found = float(resample(scene, tmp_path / "bands.csv").values[0, 0, 0])
    # The spectrum is smoothed by the source's 1 nm already.
    variance = line**2 + (width * SIGMA) ** 2 - SIGMA**2
    known = line / np.sqrt(variance) * np.exp(-0.5 * offset**2 / variance)
    assert found == pytest.approx(known, rel=2e-3)


def test_a_measured_curve_weights_the_spectrum(tmp_path):
    (tmp_path / "curves.csv").write_text(
        "wavelength_um,box,ramp\n0.6,0,0\n0.601,1,0\n0.602,1,1\n0.603,1,2\n0.604,0,0\n"
    )
    scene = fine(lambda nm: nm - 600)
    got = quietly(scene, str(tmp_path / "curves.csv"))
    np.testing.assert_allclose(values_of(got), [2.0, 8 / 3], rtol=1e-4)
    assert got["band_name"].values.tolist() == ["box", "ramp"]
    assert got["wavelength"].values[0] == pytest.approx(602)
    assert got["fwhm"].values[0] == pytest.approx(3)


def test_units_and_order_of_the_source_do_not_matter(tmp_path):
    rng = np.random.default_rng(1)
    nm = np.arange(400, 2501, 10.0)
    stored = rng.integers(1, 10_000, (nm.size, 2, 3)).astype(np.uint16)
    facts = {"unit": "reflectance", "scale": 1e-4}
    usual = resample(make_scene(stored, wavelengths=nm, **facts), "landsat8").values
    vitreous.write_scene(make_scene(stored, **facts), tmp_path / "scene.npy")
    hints = {"wavelengths": (nm / 1000).tolist(), "wavelength_unit": "um"}
    micro = resample(vitreous.open_scene(tmp_path / "scene.npy", **hints), "landsat8").values
    np.testing.assert_allclose(micro, usual, rtol=1e-5)
    turned = make_scene(stored[::-1].copy(), wavelengths=nm[::-1], **facts)
    np.testing.assert_allclose(resample(turned, "landsat8").values, usual, rtol=1e-5)
    percent = make_scene(stored, wavelengths=nm, unit="reflectance", scale=1e-2)
    np.testing.assert_allclose(resample(percent, "landsat8").values, 100 * usual, rtol=1e-5)


def test_bands_that_are_not_covered_are_left_out_with_a_sentence():
    scene = fine(lambda nm: nm, low=400, high=1000, step=5)
    with pytest.warns(
        UserWarning, match=r"covers? 3 of the 13 bands of sentinel2a.*: B10, B11, B12\."
    ):
        got = resample(scene, "sentinel2a")
    assert got["band_name"].values.tolist()[-1] == "B09"
    assert got.sizes["band"] == 10


def test_a_gap_of_bad_bands_is_not_bridged():
    scene = fine(lambda nm: nm, step=10)
    good = ~((scene["wavelength"].values > 1340) & (scene["wavelength"].values < 1450))
    scene = scene.assign_coords(good_band=("band", good))
    with pytest.warns(UserWarning, match="1 of the 8 bands of landsat8.*: B9"):
        assert "B9" not in resample(scene, "landsat8")["band_name"].values


def test_a_broad_source_does_not_pretend_to_fine_bands():
    facts = sensor("sentinel2a").facts()
    scene = make_scene(np.ones((13, 1, 1), dtype=np.float32), **facts)
    with pytest.warns(UserWarning, match="more than twice as wide") as said:
        got = resample(scene, "sentinel3_olci")
    assert "does not cover" in str(said[0].message)
    assert {"Oa17", "Oa20"} <= set(got["band_name"].values)  # B8A and B09 are as fine
    assert not {"Oa06", "Oa21"} & set(got["band_name"].values)


def test_nothing_covered_is_refused():
    with pytest.raises(SceneError, match=r"400 to 700 nm\) measures none of the bands of"):
        resample(fine(lambda nm: nm, low=400, high=700), "sentinel2a:B11,B12")


def test_a_scene_without_wavelengths_is_refused_with_the_way_out():
    with pytest.raises(SceneError, match="has no wavelengths") as caught:
        resample(make_scene(np.ones((3, 2, 2))), "sentinel2a")
    assert "sensor=..." in caught.value.fix


def test_invalid_pixels_stay_invalid_and_place_and_unit_are_kept():
    values = np.full((211, 4, 4), 2000, dtype=np.int16)
    values[:, 1, 2] = -9999
    place = Affine(30, 0, 500_000, 0, -30, 4_000_000)
    scene = make_scene(
        values,
        wavelengths=np.arange(400, 2501, 10.0),
        unit="reflectance",
        scale=1e-4,
        nodata=-9999,
        crs="EPSG:32633",
        transform=place,
    )
    got = resample(scene, "landsat8")
    invalid = np.isnan(got.values)
    assert invalid[:, 1, 2].all() and invalid.sum() == 8
    np.testing.assert_allclose(got.values[~invalid], 0.2, rtol=1e-6)
    assert got.attrs["unit"] == "reflectance" and got.attrs["scale"] == 1
    assert got.rio.crs.to_epsg() == 32633 and got.rio.transform(recalc=False) == place
    assert got["fwhm"].values[0] == 15.98


def test_a_dead_band_does_not_take_the_scene():
    scene = fine(lambda nm: np.ones(nm.shape), step=10)
    scene.values[50] = np.nan
    with pytest.warns(UserWarning, match="hold no data"):
        got = resample(scene, "sentinel2a")
    assert np.isfinite(got.values).all()


@pytest.mark.parametrize("strip", [1, 1000, 2**22])
def test_windows_agree_with_the_whole(strip, monkeypatch):
    monkeypatch.setattr("vitreous.scenes.resample._STRIP", strip)
    rng = np.random.default_rng(2)
    nm = np.arange(400, 2501, 10.0)
    scene = make_scene(rng.random((nm.size, 9, 7), dtype=np.float32), wavelengths=nm)
    got = resample(scene, "sentinel2a")
    whole = got.values
    np.testing.assert_allclose(got[2:5, 1:8:3, ::2].values, whole[2:5, 1:8:3, ::2], rtol=1e-6)
    np.testing.assert_array_equal(got[:, 3, 4].values, whole[:, 3, 4])
    assert got[:, 0:0].values.shape == (13, 0, 7)
    window = read_window(got, slice(2, 4), slice(0, 7))
    np.testing.assert_allclose(window, whole[:, 2:4], rtol=1e-6)
    assert good_bands(got).size == 13


def test_memory_does_not_grow_with_the_scene(tmp_path):
    nm = np.arange(400, 2501, 10.0)

    def read(window):
        bands, rows, columns = window
        size = [len(range(part.start, part.stop, part.step)) for part in (bands, rows, columns)]
        return np.ones(size, dtype=np.int16)

    def peak(height):
        scene = make_scene(LazyCube((nm.size, height, 64), np.int16, read), wavelengths=nm)
        got = resample(scene, "landsat8")
        tracemalloc.start()
        for top in range(0, height, 64):
            assert got[:, top : top + 64].values.shape == (8, 64, 64)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    assert peak(1024) < 1.2 * peak(128)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("wavelength,a\n400,1\n410,1\n", "no response curves"),
        ("wavelength,a\n400,1\n410,x\n420,1\n", "not a number"),
        ("wavelength,a\n410,1\n400,1\n420,1\n", "must rise"),
        ("wavelength,a\n400,0\n410,0\n420,0\n", "0 everywhere"),
        ("wavelength,a,b\n400,1\n410,1,1\n420,1,1\n", "no response curves"),
        ("wavelength\n500\n", "one band without a width"),
        ("wavelength,fwhm\n500,0\n600,10\n", "not positive"),
        ("", "no single column"),
    ],
)
def test_faulty_tables_are_refused_in_words(text, words, tmp_path):
    path = tmp_path / "table.csv"
    path.write_text(text or "\n")
    with warnings.catch_warnings(), pytest.raises(SceneError) as caught:
        warnings.simplefilter("ignore")
        read_responses(path)
    assert words in str(caught.value)


def test_a_misspelt_sensor_is_told_of():
    with pytest.raises(SceneError, match=r"Unknown sensor: sentinel2.*Did you mean"):
        read_responses("sentinel2")


def test_the_built_in_scene_becomes_sentinel_2(cli, tmp_path):
    done = cli("resample", "indian_pines", "--to", "sentinel2b", "-o", "s2.tif")
    assert done.returncode == 0, done.stderr
    assert "B10" in done.stderr  # in the water vapour that the scene leaves out
    scene = vitreous.open_scene(tmp_path / "s2.tif")
    assert scene.shape == (12, 145, 145)
    assert scene["band_name"].values.tolist()[:3] == ["B01", "B02", "B03"]
    assert scene["wavelength"].values[1] == pytest.approx(492.1)
    with rasterio.open(tmp_path / "s2.tif") as file:
        assert np.isfinite(file.read()).all()
    refused = cli("resample", "indian_pines", "--to", "prisma", "-o", "p.tif")
    assert refused.returncode == 2 and "differ from file to file" in refused.stderr
