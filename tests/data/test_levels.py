"""Units and scales that a scene's values contradict are refused; other ground in the right unit is not."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest

from vitreous.data.contract import BandContract
from vitreous.data.levels import Levels
from vitreous.errors import ModelError
from vitreous.scenes.cube import make_scene

NM = np.linspace(450, 2400, 60)


def spectrum(kind):
    """Reflectances much like those of real surfaces."""
    if kind == "vegetation":
        return np.where(NM < 700, 0.05, 0.4) * np.where(NM > 1350, 0.35, 1)
    if kind == "soil":
        return 0.08 + 0.25 * (NM - 450) / 1950
    if kind == "snow":
        return np.where(NM < 1000, 0.9, 0.25)
    return np.where(NM < 700, 0.03, 0.004)  # water


def land(*kinds, side=40, seed=0, scale=1.0):
    """``(bands, side, side)`` of some surfaces in fields, with illumination and noise."""
    rng = np.random.default_rng(seed)
    fields = np.kron(rng.integers(0, len(kinds), (side // 4, side // 4)), np.ones((4, 4), int))
    cube = np.stack([spectrum(kind) for kind in kinds])[fields].transpose(2, 0, 1)
    cube = cube * rng.uniform(0.6, 1.2, (side, side)) + rng.normal(0, 0.002, cube.shape)
    return (cube / scale).astype(np.float32)


def scene_of(cube, scale=1.0, unit="reflectance"):
    return make_scene(cube, wavelengths=NM, unit=unit, scale=scale)


def trained(*kinds, unit="reflectance", scale=1.0):
    """A contract of a training on such ground."""
    cube = land(*kinds, scale=scale)
    return BandContract.of(scene_of(cube, unit=unit)).measured(cube.reshape(60, -1).T)


CROPS = trained("vegetation", "soil")


@pytest.mark.parametrize("factor", [1e-4, 1e-3, 1e-2, 1e2, 1e3, 1e4])
def test_values_in_another_unit_are_refused_with_their_share_and_the_right_scale(factor):
    scene = scene_of(land("vegetation", "soil", seed=1), scale=factor)
    with pytest.raises(
        ModelError, match=r"\d+% of the scene's pixels are more than 5 times"
    ) as told:
        CROPS.check_values(scene)
    assert ("darker" if factor < 1 else "brighter") in told.value.problem
    assert f"scale=1 (now {factor:g})" in told.value.fix
    CROPS.check_values(scene.assign_attrs(scale=1.0))


@pytest.mark.parametrize("kinds", [("soil",), ("snow",), ("water",), ("snow", "water", "soil")])
def test_other_ground_in_the_right_unit_is_mapped(kinds):
    """Snow and water where the training pixels were crops."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CROPS.check_values(scene_of(land(*kinds, seed=2)))


def test_digital_numbers_with_a_scale_that_is_applied():
    """The training file had no scale tag; this one has, and keeps it when it is opened as digital numbers."""
    contract = trained("vegetation", "soil", unit="dn", scale=1e-4)
    stored = land("vegetation", "soil", seed=3, scale=1e-4)
    contract.check_values(scene_of(stored, unit="dn"))
    with pytest.raises(ModelError) as caught:
        contract.check_values(scene_of(stored, scale=1e-4, unit="dn"))
    assert "scale=1 (now 0.0001)" in caught.value.fix


def test_the_advice_on_another_unit_names_the_scale_too():
    stored = land("vegetation", "soil", seed=3, scale=1e-4)
    numbers = trained("vegetation", "soil", unit="dn", scale=1e-4)
    with pytest.raises(ModelError, match="trained on dn, the scene holds reflectance") as caught:
        numbers.select(scene_of(stored, scale=1e-4))
    assert "unit=dn scale=1 " in caught.value.fix
    with pytest.raises(ModelError, match="trained on reflectance, the scene holds dn") as caught:
        CROPS.select(scene_of(stored, unit="dn"))
    assert "unit=reflectance scale=0.0001 " in caught.value.fix
    with pytest.raises(ModelError) as caught:
        CROPS.select(scene_of(land("soil"), unit="dn"))
    assert "unit=reflectance if" in caught.value.fix
    unmeasured = BandContract.of(scene_of(stored, unit="dn"))
    with pytest.raises(ModelError) as caught:
        unmeasured.select(scene_of(stored, scale=1e-4))
    assert "unit=dn scale=1 " in caught.value.fix


def test_some_pixels_are_told_with_their_share():
    cube = land("vegetation", "soil", seed=4)
    cube[:, :12] *= 1e-3
    with pytest.warns(UserWarning, match="30% of the scene's pixels are more than 5 times darker"):
        CROPS.check_values(scene_of(cube))


def test_a_margin_of_zeros_is_no_darkness_and_untagged_nodata_is_no_scale():
    cube = land("vegetation", "soil", seed=4)
    cube[:, :30] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CROPS.check_values(scene_of(cube))
    cube[:, :30] = -9999
    with pytest.raises(
        ModelError, match="75% of the scene's pixels are more than 5 times brighter"
    ) as caught:
        CROPS.check_values(scene_of(cube))
    assert "no-data" in caught.value.fix and "hint scale" not in caught.value.fix


def test_absorption_bands_of_noise_decide_nothing():
    rng = np.random.default_rng(0)
    cube, again = land("vegetation", "soil"), land("vegetation", "soil", seed=1)
    for values, width in ((cube, 1e-6), (again, 1e-3)):
        values[20:30] = rng.normal(0, width, (10, 40, 40))
    contract = BandContract.of(scene_of(cube)).measured(cube.reshape(60, -1).T)
    assert contract.levels.typical[25] == 0
    contract.check_values(scene_of(again))


def test_levels_come_back():
    assert BandContract.from_json(json.loads(json.dumps(CROPS.to_json()))) == CROPS
    assert Levels.fit(np.zeros((5, 3))) is None
    assert Levels.fit(np.zeros((0, 3))) is None


@pytest.mark.parametrize(
    "levels", [3, {}, {"typical": [1.0], "darkest": 1, "brightest": 1}, "x", [],
               {**CROPS.levels.to_json(), "darkest": float("nan")}]
)  # fmt: skip
def test_damaged_levels_are_refused(levels):
    from vitreous.errors import CheckpointError

    with pytest.raises(CheckpointError, match="band description is damaged"):
        BandContract.from_json({**CROPS.to_json(), "levels": levels})
