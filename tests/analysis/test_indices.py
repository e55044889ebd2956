import re
import subprocess
import sys

import numpy as np
import pytest
import spyndex

from mixed_scene import mixed_scene
from vitreous.analysis.indices import indices, known_indices
from vitreous.analysis.narrow_indices import NARROW
from vitreous.errors import ConfigError, SceneError
from vitreous.scenes.cube import make_scene
from vitreous.scenes.sensors import banded

pytestmark = pytest.mark.filterwarnings("error::UserWarning")
EVERY = np.arange(400.0, 2500.0, 8.0)


def sentinel(cube=None, **facts):
    bands = [b for b in banded("sentinel2a").bands if b.name not in {"B09", "B10"}]
    if cube is None:
        cube = np.random.default_rng(0).uniform(0.02, 0.6, (len(bands), 20, 30)).astype(np.float32)
    known = {
        "wavelengths": [b.centre for b in bands], "fwhm": [b.fwhm for b in bands],
        "band_names": [b.name for b in bands], "unit": "reflectance", "source": "s2", **facts,
    }  # fmt: skip
    return make_scene(cube, **known)


def spectrometer(**facts):
    cube = np.random.default_rng(0).uniform(0.02, 0.6, (EVERY.size, 9, 8)).astype(np.float32)
    known = {"wavelengths": EVERY, "fwhm": np.full(EVERY.size, 8.0), "unit": "reflectance"}
    return make_scene(cube, **{**known, "source": "spectrometer", **facts})


def band(scene, name):
    return scene.values[list(scene["band_name"].values).index(name)].astype(np.float64)


def near(scene, nm):
    return scene.values[np.abs(EVERY - nm).argmin()].astype(np.float64)


def test_usual_indices_are_their_formulas():
    scene = sentinel()
    found = indices(scene, ["NDVI", "ndwi", "NBR", "EVI", "NDMI"])
    red, green, blue, nir = (band(scene, name) for name in ("B04", "B03", "B02", "B08"))
    short, long = band(scene, "B11"), band(scene, "B12")
    expected = [
        (nir - red) / (nir + red),
        (green - nir) / (green + nir),
        (nir - long) / (nir + long),
        2.5 * (nir - red) / (nir + 6 * red - 7.5 * blue + 1),
        (nir - short) / (nir + short),
    ]
    np.testing.assert_allclose(found.image.values, expected, rtol=1e-5)
    assert list(found.image["band_name"].values) == ["NDVI", "NDWI", "NBR", "EVI", "NDMI"]


def test_all_indices_are_those_of_spyndex():
    scene = sentinel()
    names = {"A": "B01", "B": "B02", "G": "B03", "R": "B04", "RE1": "B05", "RE2": "B06", "RE3": "B07",
             "N": "B08", "N2": "B8A", "S1": "B11", "S2": "B12"}  # fmt: skip
    values = {name: band(scene, own) for name, own in names.items()}
    centres = dict(zip(scene["band_name"].values, scene["wavelength"].values, strict=True))
    constants = {k: c.default for k, c in spyndex.constants.items() if c.default is not None}
    constants |= {f"lambda{name}": centres[own] for name, own in names.items()}
    found = indices(scene)
    assert len(found.image) > 150
    compared = 0
    for row, fact in zip(found.image.values, found.facts["indices"], strict=True):
        if set(spyndex.indices[fact["name"]].bands) & {"G1", "Y"}:
            continue
        with np.errstate(all="ignore"):
            expected = np.asarray(
                spyndex.computeIndex(fact["name"], params={**constants, **values}), dtype=float
            )
        valid = np.isfinite(expected) & (np.abs(expected) < 1e30)
        np.testing.assert_allclose(row[valid], expected[valid], rtol=1e-5, err_msg=fact["name"])
        compared += 1
    assert compared > 150


def test_narrow_indices_are_their_formulas():
    scene = spectrometer()
    found = indices(scene, ["PRI", "REIP", "CAI", "NDNI"]).image.values
    pri = (near(scene, 531) - near(scene, 570)) / (near(scene, 531) + near(scene, 570))
    edge = (near(scene, 670) + near(scene, 780)) / 2
    reip = 700 + 40 * (edge - near(scene, 700)) / (near(scene, 740) - near(scene, 700))
    cai = 0.5 * (near(scene, 2000) + near(scene, 2200)) - near(scene, 2100)
    first, second = np.log10(1 / near(scene, 1510)), np.log10(1 / near(scene, 1680))
    for ours, theirs in zip(
        found, (pri, reip, cai, (first - second) / (first + second)), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4)


def test_every_narrow_index_has_formula_and_source():
    known = known_indices()
    assert not set(NARROW) & set(spyndex.indices)
    for name, one in NARROW.items():
        assert re.search(r"\((19|20)\d\d\)", one.source)
        assert known[name].points
    computed = indices(spectrometer(), list(NARROW))
    assert np.isfinite(computed.image.values).all()


def test_narrow_bands_are_averaged_over_a_broad_range():
    scene = spectrometer()
    found = indices(scene, ["NDVI"]).image.values[0]
    red = scene.values[(EVERY >= 620) & (EVERY <= 690)].astype(float).mean(axis=0)
    nir = scene.values[(EVERY >= 760) & (EVERY <= 900)].astype(float).mean(axis=0)
    np.testing.assert_allclose(found, (nir - red) / (nir + red), rtol=1e-5)


def test_bands_of_one_sensor_are_picked_not_averaged():
    facts = indices(sentinel(), ["NDVI", "NDREI"]).facts["indices"]
    used = {name: nm for one in facts for name, nm in one["wavelengths_nm"].items()}
    assert used["N"] == [832.8]
    assert used["R"] == [664.6]


@pytest.mark.parametrize("make", [sentinel, spectrometer])
def test_the_order_of_bands_and_bad_bands_do_not_matter(make):
    scene = make()
    ours = indices(scene, ["NDVI", "NBR", "EVI"]).image.values
    order = np.random.default_rng(3).permutation(scene.sizes["band"])
    np.testing.assert_allclose(
        indices(scene[order], ["NDVI", "NBR", "EVI"]).image.values, ours, rtol=1e-6
    )
    spoilt = np.concatenate([scene.values, np.full((1, *scene.shape[1:]), np.nan, np.float32)])
    centres = [*scene["wavelength"].values, 830.0]
    widths = [*scene["fwhm"].values, 100.0]
    good = [True] * scene.sizes["band"] + [False]
    other = make_scene(spoilt, wavelengths=centres, fwhm=widths, good_band=good, unit="reflectance")
    np.testing.assert_allclose(indices(other, ["NDVI", "NBR", "EVI"]).image.values, ours, rtol=1e-6)


def test_ratios_do_not_depend_on_the_unit_and_others_need_reflectance():
    scene = sentinel()
    numbers = sentinel(cube=np.round(scene.values * 1e4).astype(np.uint16), unit="dn")
    with pytest.warns(UserWarning, match="s2 holds dn"):
        found = indices(numbers, ["NDVI", "NBR"]).image.values
    np.testing.assert_allclose(found, indices(scene, ["NDVI", "NBR"]).image.values, atol=2e-2)
    for other in (numbers, numbers.assign_attrs(unit="reflectance")):
        with pytest.raises(SceneError, match=r"EVI needs reflectance .* s2 holds .*scale=0\.0001"):
            indices(other, ["NDVI", "EVI"])
        with pytest.warns(UserWarning, match="not of reflectance"):
            some = indices(other)
        names = {one["name"] for one in some.facts["indices"]}
        assert {"NDVI", "NBR"} <= names
        assert not names & {"EVI", "SAVI"}
    scaled = numbers.assign_attrs(unit="reflectance", scale=1e-4)
    np.testing.assert_allclose(
        indices(scaled, ["SAVI"]).image.values, indices(scene, ["SAVI"]).image.values, atol=1e-3
    )


def test_constants_can_be_set():
    scene = sentinel()
    nir, red = band(scene, "B08"), band(scene, "B04")
    found = indices(scene, ["SAVI"], constants={"L": 0.5}).image.values[0]
    np.testing.assert_allclose(found, 1.5 * (nir - red) / (nir + red + 0.5), rtol=1e-5)
    with pytest.raises(ConfigError, match="constant 'Q'"):
        indices(scene, ["SAVI"], constants={"Q": 1})
    with pytest.raises(ConfigError, match="must be a number"):
        indices(scene, ["SAVI"], constants={"L": "half"})


def test_where_an_index_is_not_defined_it_alone_is_invalid(tmp_path):
    cube = np.random.default_rng(0).uniform(0.1, 0.6, (11, 20, 30)).astype(np.float32)
    cube[[2, 3, 7], 5, 6] = 0  # green, red and near infrared
    cube[:, 8, 9] = np.nan
    result = indices(sentinel(cube=cube), ["NDVI", "MNDWI"])
    ndvi, water = result.image.values
    assert np.isnan(ndvi[5, 6])
    assert np.isfinite(water[5, 6])
    assert np.isnan([ndvi[8, 9], water[8, 9]]).all()
    assert np.isnan(ndvi).sum() == 2
    assert result.write(tmp_path / "a.tif")[1].stat().st_size > 1000


def test_lacking_bands_are_named():
    visible = spectrometer().isel(band=slice(0, 35))
    with pytest.raises(SceneError, match=r"400 to 672 nm\).*NDVI lacks N \(760 to 900 nm\)"):
        indices(visible, ["GLI", "NDVI"])
    with pytest.raises(SceneError, match="PRI lacks a band at 531 nm of at most 20 nm width"):
        indices(sentinel(), ["PRI"])
    with pytest.raises(SceneError, match="the bands of no index"):
        indices(spectrometer().isel(band=slice(0, 2)), ["all"])
    pan = make_scene(np.ones((1, 4, 4)), wavelengths=[600], fwhm=[400], unit="reflectance")
    with pytest.raises(SceneError, match="NDVI lacks N"):
        indices(pan, ["NDVI"])


def test_unknown_names_and_scenes_without_wavelengths_are_refused():
    with pytest.raises(ConfigError, match=r"Unknown index: NDVY. Did you mean .*'NDVI'"):
        indices(sentinel(), ["NDVY"])
    with pytest.raises(SceneError, match="no wavelengths, so the bands of an index"):
        indices(mixed_scene(4, wavelengths=None), ["NDVI"])


def test_without_spyndex_there_are_narrow_indices_and_advice():
    code = """
import sys
sys.modules["spyndex"] = None
from vitreous.analysis.indices import known_indices, indices
from vitreous.scenes.samples import load_sample
assert set(known_indices()) >= {"PRI", "REIP"} and "NDVI" not in known_indices()
scene = load_sample("indian_pines").scene
indices(scene, ["PRI"])
try:
    indices(scene, ["NDVI"])
except Exception as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'vitreous[analysis]'" in done.stdout
