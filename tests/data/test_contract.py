"""Band contracts: bands found by wavelength or place, everything else refused in words."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiny_scene import NANOMETRES, tiny_classifier, tiny_scene
from vitreous.data.contract import BandContract
from vitreous.errors import CheckpointError, ModelError, VitreousError
from vitreous.inference.pixels import classify_pixels
from vitreous.scenes.cube import make_scene


def scene_of(wavelengths, *, bands=None, unit="reflectance", good_band=None):
    count = len(wavelengths) if bands is None else bands
    values = np.arange(count * 6, dtype=np.float32).reshape(count, 2, 3)
    return make_scene(values, wavelengths=wavelengths, unit=unit, good_band=good_band)


@settings(deadline=None, max_examples=40)
@given(st.permutations(range(8)), st.lists(st.booleans(), min_size=8, max_size=8))
def test_shuffled_and_further_bands_are_found(order, good):
    good[0] = True
    contract = BandContract.of(scene_of(NANOMETRES, good_band=good))
    further = [*NANOMETRES[list(order)], 2000.0, 1500.0]
    np.testing.assert_array_equal(
        np.array(further)[contract.select(scene_of(further))], NANOMETRES[good]
    )


def test_shuffled_bands_give_the_same_map():
    scene = tiny_scene()
    classifier = tiny_classifier(scene)
    pixels = np.arange(scene.sizes["x"] * scene.sizes["y"])
    expected = classify_pixels(classifier, scene, pixels)
    assert len(np.unique(expected)) > 1
    order = np.array([3, 0, 7, 1, 6, 2, 5, 4])
    shuffled = make_scene(scene.values[order], wavelengths=NANOMETRES[order], unit="reflectance")
    np.testing.assert_array_equal(classify_pixels(classifier, shuffled, pixels), expected)


def test_drifting_wavelengths_are_the_same_band():
    contract = BandContract.of(scene_of(NANOMETRES))
    drifted = scene_of(NANOMETRES[::-1] + 1.5)
    np.testing.assert_array_equal(contract.select(drifted), np.arange(8)[::-1])


def test_a_missing_band_is_named():
    contract = BandContract.of(scene_of(NANOMETRES))
    with pytest.raises(ModelError, match=r"lacks 1 of the 8 bands .*450\.0 nm") as caught:
        contract.select(scene_of([*NANOMETRES[1:], 453.0]))
    assert "Resample" in caught.value.fix


def test_one_band_does_not_serve_as_two():
    contract = BandContract.of(scene_of([600.0, 601.0, 700.0]))
    np.testing.assert_array_equal(
        contract.select(scene_of([700.0, 601.0, 500.0, 600.0])), [3, 1, 0]
    )
    with pytest.raises(ModelError, match="lacks 1 of the 3 bands"):
        contract.select(scene_of([600.5, 700.0, 800.0, 900.0]))


def test_another_unit_is_refused():
    contract = BandContract.of(scene_of(NANOMETRES))
    with pytest.raises(
        ModelError, match="trained on reflectance, the scene holds radiance"
    ) as caught:
        contract.select(scene_of(NANOMETRES, unit="radiance"))
    assert "unit=reflectance" in caught.value.fix


@pytest.mark.parametrize(("trained", "mapped"), [(True, False), (False, True), (False, False)])
def test_without_wavelengths_the_number_of_bands_decides(trained, mapped):
    def scene(known, bands):
        return scene_of(np.arange(bands) * 10 + 400.0 if known else None, bands=bands)

    contract = BandContract.of(scene(trained, 5))
    np.testing.assert_array_equal(contract.select(scene(mapped, 5)), np.arange(5))
    with pytest.raises(ModelError, match="trained on 5 bands, the scene has 6") as caught:
        contract.select(scene(mapped, 6))
    assert "wavelengths" in caught.value.fix


def test_bad_bands_are_left_out_by_place():
    scene = scene_of(None, bands=4, good_band=[True, False, True, False])
    assert BandContract.of(scene).used == (0, 2)
    np.testing.assert_array_equal(BandContract.of(scene).select(scene_of(None, bands=4)), [0, 2])
    with pytest.raises(VitreousError, match="all of its 2 bands as bad"):
        BandContract.of(scene_of(None, bands=2, good_band=[False, False]))


def test_unknown_wavelengths_never_match():
    partly = [450.0, np.nan, 900.0]
    assert BandContract.of(scene_of(partly)).wavelengths is None
    contract = BandContract.of(scene_of([450.0, 900.0]))
    np.testing.assert_array_equal(contract.select(scene_of(partly)), [0, 2])


def test_indian_pines_with_its_overlapping_detectors():
    """Its list is not ascending: neighbours of two detectors cover the same light."""
    from vitreous.scenes.samples import load_sample

    scene = load_sample("indian_pines").scene
    assert (np.diff(scene["wavelength"].values) < 2).any()
    contract = BandContract.from_json(json.loads(json.dumps(BandContract.of(scene).to_json())))
    assert contract == BandContract.of(scene)
    np.testing.assert_array_equal(contract.select(scene), contract.used)
    backwards = scene.isel(band=slice(None, None, -1))
    np.testing.assert_array_equal(
        backwards["wavelength"].values[contract.select(backwards)],
        scene["wavelength"].values[list(contract.used)],
    )


def test_repeated_wavelengths_keep_their_places():
    scene = scene_of([400.0, 500.0, 500.0, 600.0])
    contract = BandContract.from_json(BandContract.of(scene).to_json())
    np.testing.assert_array_equal(contract.select(scene), [0, 1, 2, 3])
    further = scene_of([300.0, 400.0, 500.0, 500.0, 600.0])
    np.testing.assert_array_equal(contract.select(further), [1, 2, 3, 4])


@pytest.mark.parametrize(
    "change",
    [
        {"used": [0, 9]},
        {"used": [-1, 1]},
        {"used": []},
        {"used": 3},
        {"wavelengths": [450.0]},
        {"bands": "many"},
        {"unit": None, "used": None},
    ],
)
def test_a_damaged_contract_is_refused(change):
    sound = BandContract.of(scene_of([450.0, 500.0])).to_json()
    assert BandContract.from_json(sound).used == (0, 1)
    with pytest.raises(CheckpointError, match="band description is damaged"):
        BandContract.from_json({**sound, **change})


def test_a_contract_lacking_a_part_is_refused():
    with pytest.raises(CheckpointError, match="damaged"):
        BandContract.from_json({"bands": 3})


@pytest.mark.parametrize(("trained", "given"), [(NANOMETRES, None), (None, NANOMETRES)])
def test_bands_matched_by_order_are_told(trained, given, recwarn):
    known = [scene_of(nm, bands=8) if nm is None else scene_of(nm) for nm in (trained, given)]
    contract = BandContract.of(known[0])
    with pytest.warns(UserWarning, match="matched by their order alone"):
        contract.check_values(known[1])
    recwarn.clear()
    contract.check_values(known[0])
    assert not recwarn.list
