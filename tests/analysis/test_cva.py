import numpy as np
import pytest
from affine import Affine

from mixed_scene import mixed_cube, mixed_scene, smooth_spectra
from vitreous.analysis.cva import cva, otsu, separability
from vitreous.errors import SceneError

pytestmark = pytest.mark.filterwarnings("error::UserWarning")
GRID = Affine(10, 0, 500_000, 0, -10, 4_000_000)


def dates(bands=5, **facts):
    before = mixed_cube(smooth_spectra(4, bands))
    after = before + np.random.default_rng(5).normal(0, 0.005, before.shape).astype(np.float32)
    after[:, 10:16, 20:30] += np.linspace(0.2, -0.2, bands, dtype=np.float32)[:, None, None]
    place = {"crs": "EPSG:32611", "transform": GRID, **facts}
    return mixed_scene(cube=before, **place), mixed_scene(
        cube=after, **{**place, "source": "after"}
    )


@pytest.mark.parametrize("bands", [1, 2, 5])
def test_magnitude_and_direction_are_those_of_the_difference(bands):
    before, after = dates(bands)
    found = cva(before, after).image
    change = after.values.astype(float) - before.values
    magnitude = np.sqrt((change**2).sum(axis=0))
    np.testing.assert_allclose(found.values[0], magnitude, rtol=1e-4, atol=1e-7)
    if bands == 1:
        np.testing.assert_allclose(found.values[1:], change, rtol=1e-4, atol=1e-7)
    elif bands == 2:
        angle = np.degrees(np.arctan2(change[1], change[0])) % 360
        np.testing.assert_allclose(found.values[1], angle, atol=1e-2)
    else:
        np.testing.assert_allclose(found.values[1:], change / magnitude, atol=1e-4)
        assert found["band_name"].values[1] == "cosine 450 nm"


def test_the_change_is_told_from_the_rest():
    before, after = dates()
    result = cva(before, after)
    changed = result.image.values[0] > result.facts["threshold_otsu"]
    truth = np.zeros_like(changed)
    truth[10:16, 20:30] = True
    np.testing.assert_array_equal(changed, truth)
    assert result.facts["share_above_threshold"] == pytest.approx(60 / 2000)


def test_no_change_has_magnitude_zero_and_no_direction():
    before, _ = dates()
    assert not cva(before, before).image.values.any()


def test_normalised_dates_may_differ_in_gain_and_offset():
    before, after = dates()
    ours = cva(before, after, normalise=True)
    brighter = mixed_scene(
        cube=after.values * 1.7 + 0.1, crs="EPSG:32611", transform=GRID, source="after"
    )
    theirs = cva(before, brighter, normalise=True)
    np.testing.assert_allclose(theirs.image.values[0], ours.image.values[0], atol=1e-3)
    first = before.values.astype(float)
    second = after.values.astype(float)
    scaled = [
        (one - one.mean(axis=(1, 2), keepdims=True)) / one.std(axis=(1, 2), keepdims=True, ddof=1)
        for one in (first, second)
    ]
    expected = np.linalg.norm(scaled[1] - scaled[0], axis=0)
    np.testing.assert_allclose(ours.image.values[0], expected, rtol=1e-3, atol=1e-4)


def test_dates_that_hold_no_reflectance_are_normalised():
    before, after = dates()
    numbers = [mixed_scene(cube=one.values * 200, unit="dn") for one in (before, after)]
    assert not cva(before, after).facts["normalised"]
    assert cva(*numbers).facts["normalised"]
    raw = cva(*numbers, normalise=False).image.values[0]
    np.testing.assert_allclose(raw, 200 * cva(before, after).image.values[0], rtol=1e-3, atol=1e-4)


def test_the_second_date_comes_onto_the_grid_of_the_first():
    before, after = dates()
    part = after[:, 5:35, 8:44]  # its own grid, shifted and smaller
    found = cva(before, part).image.values
    expected = cva(before, after).image.values
    np.testing.assert_allclose(found[:, 5:35, 8:44], expected[:, 5:35, 8:44], atol=1e-6)
    assert np.isfinite(found[0]).sum() == 30 * 36
    halved = Affine(5, 0, 500_000, 0, -5, 4_000_000)
    doubled = after.values.repeat(2, axis=1).repeat(2, axis=2)
    fine = mixed_scene(cube=doubled, crs="EPSG:32611", transform=halved)
    np.testing.assert_allclose(cva(before, fine).image.values, expected, atol=1e-6)


def test_bands_are_found_by_wavelength():
    before, after = dates()
    order = [3, 0, 4, 2, 1]
    np.testing.assert_allclose(
        cva(before, after[order]).image.values, cva(before, after).image.values, atol=1e-6
    )


def test_invalid_pixels_of_either_date_take_no_part(monkeypatch):
    before, after = dates()
    first, second = before.values.copy(), after.values.copy()
    first[:, 3, 4] = np.nan
    second[2, 30:] = np.nan
    place = {"crs": "EPSG:32611", "transform": GRID}
    result = cva(mixed_scene(cube=first, **place), mixed_scene(cube=second, **place))
    assert result.facts["valid_at_both_dates"] == 30 * 50 - 1
    assert np.isnan(result.image.values[:, 3, 4]).all()
    assert np.isnan(result.image.values[:, 30:]).all()
    monkeypatch.setattr("vitreous.analysis.streams.SIDE", 11)
    parts = cva(mixed_scene(cube=first, **place), mixed_scene(cube=second, **place))
    np.testing.assert_allclose(parts.image.values, result.image.values)
    assert parts.facts == result.facts


def test_bands_that_are_bad_at_one_date_take_no_part():
    before, after = dates()
    spoilt = after.values.copy()
    spoilt[2] = 99
    good = [True, True, False, True, True]
    place = {"crs": "EPSG:32611", "transform": GRID}
    result = cva(before, mixed_scene(cube=spoilt, good_band=good, **place))
    change = np.delete(after.values.astype(float) - before.values, 2, axis=0)
    np.testing.assert_allclose(result.image.values[0], np.linalg.norm(change, axis=0), rtol=1e-3)


def test_dates_without_common_ground_are_refused():
    before, after = dates()
    elsewhere = Affine(10, 0, 600_000, 0, -10, 4_000_000)
    far = mixed_scene(cube=after.values, crs="EPSG:32611", transform=elsewhere)
    with pytest.raises(SceneError, match="no common ground"):
        cva(before, far)
    nothing = mixed_scene(cube=np.full_like(after.values, np.nan), crs="EPSG:32611", transform=GRID)
    with pytest.raises(SceneError, match="no pixel that is valid at both dates"):
        cva(before, nothing)
    with pytest.raises(SceneError, match=r"40 x 50 pixels.*20 x 50 pixels.*nothing says"):
        cva(mixed_scene(5), mixed_scene(5)[:, :20])


def test_dates_of_other_bands_or_units_are_refused():
    before, after = dates()
    place = {"crs": "EPSG:32611", "transform": GRID}
    with pytest.raises(SceneError, match=r"mixed holds reflectance, .* holds dn"):
        cva(before, mixed_scene(cube=after.values, unit="dn", **place))
    other = mixed_scene(cube=after.values, wavelengths=[3000, 3500, 4000, 4500, 5000], **place)
    with pytest.raises(SceneError, match="does not have the bands of mixed"):
        cva(before, other)
    with pytest.raises(SceneError, match="does not have the bands of mixed"):
        cva(before, after[:3])


def test_otsu_separates_two_groups():
    low, high = (
        np.random.default_rng(0).normal(0, 1, 900),
        np.random.default_rng(1).normal(9, 1, 100),
    )
    assert 2 < otsu(np.concatenate([low, high])) < 7
    assert otsu(np.array([3.0])) == 3.0


@pytest.mark.parametrize("bands", [2, 12, 40])
def test_a_scene_and_its_rounded_copy_have_no_share_of_changed_pixels(bands):
    before = mixed_scene(bands)
    rounded = before.copy(data=np.round(before.values * 1e4).astype(np.float32) / np.float32(1e4))
    result = cva(before, rounded)
    assert result.facts["separability"] < 0.8
    assert "no two distinct groups" in result.summary
    assert "have changed" not in result.summary


def test_two_groups_are_told_from_one():
    rng = np.random.default_rng(0)
    one = np.abs(rng.normal(5, 1, 5000))
    few = np.concatenate([one, rng.normal(40, 1, 150)])
    assert separability(one, otsu(one)) == pytest.approx(2 / np.pi, abs=0.02)
    assert separability(few, otsu(few)) > 0.95
    assert separability(np.ones(5), 1.0) == 0.0


def test_equal_scenes_have_not_changed():
    before = mixed_scene(4)
    assert "all magnitudes are equal" in cva(before, before).summary


@pytest.mark.parametrize("which", ["before", "after"])
def test_bands_by_order_are_told(which):
    before, after = dates()
    if which == "before":
        before = before.drop_vars("wavelength")
    else:
        after = after.drop_vars("wavelength")
    with pytest.warns(UserWarning, match="matched by their order alone"):
        cva(before, after)
