"""Fingerprints: the same for the same content wherever it lies, another for every change."""

from __future__ import annotations

import numpy as np
import pytest
import rasterio
from rasterio.transform import Affine

from vitreous.data import fingerprint
from vitreous.data.fingerprint import Ground, labels_fingerprint, scene_fingerprint, values_hash
from vitreous.errors import SceneError
from vitreous.scenes import open_scene
from vitreous.scenes.cube import LazyCube, make_labels, make_scene

CUBE = np.random.default_rng(0).integers(-5, 3000, (6, 20, 30)).astype(np.int16)
PLACE = {"crs": "EPSG:32632", "transform": Affine(10, 0, 500_000, 0, -10, 5_000_000)}


def test_a_copy_in_another_format_and_type_has_the_same_hash(tmp_path):
    np.save(tmp_path / "a.npy", CUBE)
    np.save(tmp_path / "b.npy", CUBE.astype(np.float32))
    profile = {"driver": "GTiff", "width": 30, "height": 20, "count": 6, "dtype": "int16", **PLACE}
    with rasterio.open(tmp_path / "c.tif", "w", **profile) as file:
        file.write(CUBE)
    for name, hints in (("a.npy", {"axis_order": "byx"}), ("b.npy", {"axis_order": "byx"}), ("c.tif", {})):  # fmt: skip
        assert values_hash(open_scene(tmp_path / name, **hints)) == values_hash(make_scene(CUBE))


def test_every_value_and_the_size_count():
    whole = values_hash(make_scene(CUBE))
    for place in ((0, 0, 0), (5, 19, 29), (3, 7, 11)):
        changed = CUBE.copy()
        changed[place] += 1
        assert values_hash(make_scene(changed)) != whole
    assert values_hash(make_scene(CUBE.reshape(6, 30, 20))) != whole
    holes = CUBE.astype(np.float32)
    holes[:, 3] = np.nan
    other = holes.copy()
    other.view(np.uint32)[:, 3] |= 1  # a NaN of other bits
    assert values_hash(make_scene(holes)) == values_hash(make_scene(other)) != whole


def test_a_large_scene_is_sampled_everywhere_but_not_read(monkeypatch):
    values = np.random.default_rng(0).random((90, 400, 300)).astype(np.float32)
    read = 0

    def window(key):
        nonlocal read
        part = values[key]
        read += part.size
        return part

    monkeypatch.setattr(fingerprint, "WHOLE", 10**6)
    scene = make_scene(LazyCube(values.shape, np.float32, window))
    whole = values_hash(scene)
    assert read < 0.06 * values.size
    values[:, 200:230, 150:180] += 1
    assert values_hash(scene) != whole


@pytest.mark.parametrize(
    "change",
    [
        {"unit": "reflectance"},
        {"scale": 1e-4},
        {"nodata": -5},
        {"wavelengths": np.linspace(400, 900, 6)},
        {"good_band": [True] * 5 + [False]},
    ],
)
def test_how_values_are_read_counts_for_a_training(change):
    plain, changed = make_scene(CUBE), make_scene(CUBE, **change)
    assert values_hash(plain) == values_hash(changed)
    assert scene_fingerprint(plain) == scene_fingerprint(make_scene(CUBE, source="elsewhere"))
    assert scene_fingerprint(plain) != scene_fingerprint(changed)


def test_labels_and_the_names_of_their_classes_count():
    values = np.arange(12).reshape(3, 4) % 3
    plain = make_labels(values)
    others = [
        labels_fingerprint(make_labels((values + 1) % 3)),
        labels_fingerprint(make_labels(values, class_names=["corn", "soy"])),
        labels_fingerprint(plain, plain),
        labels_fingerprint(make_labels(values.reshape(4, 3))),
    ]
    assert labels_fingerprint(plain) == labels_fingerprint(make_labels(values.astype(np.uint8)))
    assert labels_fingerprint(plain, None) != labels_fingerprint(None, plain)
    assert len({labels_fingerprint(plain), *others}) == 5


def test_a_scene_that_breaks_off_is_named():
    def broken(window):
        raise OSError("short read")

    scene = make_scene(LazyCube((3, 4, 5), np.float32, broken), source="half.tif")
    with pytest.raises(SceneError, match=r"half\.tif cannot be read: short read") as caught:
        scene_fingerprint(scene)
    assert caught.value.fix


# -- where pixels are in another scene --------------------------------------------------------------------


def located(seen, other, pixels):
    found = Ground.of(seen).locate(np.asarray(pixels), Ground.of(other))
    return None if found is None else [list(map(int, part)) for part in found]


def test_the_same_values_are_the_same_ground_without_a_place():
    assert located(make_scene(CUBE), make_scene(CUBE.copy()), [0, 31]) == [[0, 1], [0, 1]]
    assert located(make_scene(CUBE), make_scene(CUBE + 1), [0, 31]) is None


def test_a_clipping_and_another_resolution_are_found_by_their_place():
    whole = make_scene(CUBE, **PLACE)
    clip = make_scene(
        CUBE[:2, 4:10, 7:12] * 2, crs=PLACE["crs"], transform=PLACE["transform"] @ Affine.translation(7, 4)
    )  # fmt: skip
    assert located(whole, clip, [0, 6]) == [[4, 5], [7, 8]]
    assert located(clip, whole, [0, 4 * 30 + 7]) == [[-4, 0], [-7, 0]]
    coarse = make_scene(
        CUBE[:, ::2, ::2], crs=PLACE["crs"], transform=PLACE["transform"] @ Affine.scale(2)
    )
    assert located(coarse, whole, [31, 62, 5]) == [[0, 1, 0], [0, 1, 2]]
    # A coarse pixel is where its middle is.
    third = make_scene(
        CUBE[:, ::3, ::3], crs=PLACE["crs"], transform=PLACE["transform"] @ Affine.scale(3)
    )
    assert located(whole, third, [0, 11]) == [[1, 4], [1, 4]]


@pytest.mark.parametrize("change", [{"crs": "EPSG:32633"}, {"crs": None}, {"transform": None}])
def test_other_places_are_not_compared(change):
    assert located(make_scene(CUBE, **PLACE), make_scene(CUBE + 1, **{**PLACE, **change}), [0]) is None  # fmt: skip


def test_ground_comes_back_and_nonsense_does_not():
    ground = Ground.of(make_scene(CUBE, **PLACE))
    assert Ground.from_json(ground.to_json()) == ground
    for change in ({"transform": [0] * 6}, {"transform": [1, 2]}, {"hash": 3}, {"crs": 7}, {"rows": "x"}):  # fmt: skip
        with pytest.raises((LookupError, TypeError, ValueError)):
            Ground.from_json({**ground.to_json(), **change})
