"""Collections: which scenes a folder, a pattern or a table names, and everything that does not fit, at once."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from many_scenes import write_collection, write_pair, write_table
from tiny_scene import tiny_cube, tiny_labels
from vitreous.data.blocks import TEST, TRAIN, VAL
from vitreous.data.collection import is_collection, read_collection
from vitreous.data.contract import BandContract
from vitreous.data.matched import matched
from vitreous.data.overlap import groups, overlapping
from vitreous.data.scene_set import open_collection
from vitreous.data.scene_split import divide_scenes
from vitreous.errors import CollectionError, ConfigError, ModelError, SplitError
from vitreous.recipe import make_recipe
from vitreous.scenes import open_scene
from vitreous.tasks.labelled import open_data


def names_of(listing):
    return [
        (entry.name, entry.labels and entry.labels.rpartition("/")[2]) for entry in listing.entries
    ]


def faults_of(call):
    with pytest.raises(CollectionError) as caught:
        call()
    return {where.partition(",")[0]: what for where, what in caught.value.faults}


def touched(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


@pytest.mark.parametrize(
    ("files", "pairs"),
    [
        (("a.tif", "a_mask.png", "b.tif", "b_mask.png"), {"a": "a_mask.png", "b": "b_mask.png"}),
        (("x_rgbn.tif", "x_mask.png"), {"x_rgbn": "x_mask.png"}),
        (("images/t 1.png", "masks/t 1.png"), {"t 1": "t 1.png"}),
        (("train/i.png", "trainannot/i.png", "test/i.png", "testannot/i.png"), {"i": "i.png"}),
        (("images/é_1.tif", "images/é_2.tif", "labels/é_2.tif", "labels/é_1.tif"), {"é_1": "é_1.tif", "é_2": "é_2.tif"}),
    ],
)  # fmt: skip
def test_labels_are_found_by_their_names(tmp_path, files, pairs):
    listing = read_collection(str(touched(tmp_path, *files)))
    assert not listing.faults
    assert dict(names_of(listing)) == pairs
    for entry in listing.entries:
        if "/train/" in entry.scene or "/test/" in entry.scene:  # neither is given the other's
            role = "train" if "/train/" in entry.scene else "test"
            assert entry.labels.split("/")[-2] == f"{role}annot"
            assert entry.role == {"train": TRAIN, "test": TEST}[role]


def test_numbers_are_no_suffix(tmp_path):
    listing = read_collection(str(touched(tmp_path, "img_1.tif", "img_2_mask.png")))
    assert [what for _, what in listing.faults] == ["no labels of its name"]


@pytest.mark.parametrize(
    ("files", "pattern", "pairs"),
    [
        (("a_rgb.tif", "a_mask.png", "b_rgb.tif", "b_mask.png"), "*_rgb.tif", {"a_rgb": "a_mask.png", "b_rgb": "b_mask.png"}),
        (("a_rgb.tif", "a_mask.png", "other.tif"), "a_*", {"a_rgb": "a_mask.png"}),
        (("images/t.png", "masks/t.png", "other/t.png"), "images/*.png", {"t": "t.png"}),
        (("images/t.png", "masks/t.png"), "im*/*.png", {"t": "t.png"}),
        (("t.png", "labels/t.png"), "*.png", {"t": "t.png"}),
        (("train/i.png", "trainannot/i.png", "testannot/i.png"), "train/*", {"i": "i.png"}),
        (("images/t.png", "masks/t.png"), "images", {"t": "t.png"}),
        (("a.tif", "b.tif"), "*.tif", {"a": None, "b": None}),
    ],
)  # fmt: skip
def test_labels_beside_the_files_of_a_pattern_are_found(tmp_path, files, pattern, pairs):
    touched(tmp_path, *files)
    listing = read_collection(str(tmp_path / pattern))
    assert not listing.faults
    assert dict(names_of(listing)) == pairs
    for entry in listing.entries:
        assert "testannot" not in (entry.labels or "") and "other" not in (entry.labels or "")
    unlabelled = read_collection(str(tmp_path / pattern), labelled=False)
    assert not any(entry.labels for entry in unlabelled.entries)


def test_a_pattern_and_labels_elsewhere(tmp_path):
    touched(tmp_path, "in/a.tif", "in/b.tif", "out/a.png", "out/b.png")
    listing = read_collection(str(tmp_path / "in" / "*.tif"), str(tmp_path / "out"))
    assert names_of(listing) == [("a", "a.png"), ("b", "b.png")]


TABLE = [
    {"scene": "a b.tif", "labels": "a_l.tif", "role": "Training", "date": "2020-01-01", "sensor": "x"},
    {"scene": "é.tif", "labels": "", "role": "val", "date": "", "sensor": ""},
]  # fmt: skip


def as_csv(path):
    write_table(path, TABLE)


def as_semicolons(path):
    lines = [";".join(row.values()) for row in TABLE]
    path.write_text("﻿Image;Mask;Split;date;sensor\n" + "\n".join(lines), encoding="utf-8")


def as_parquet(path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pa.Table.from_pylist([*TABLE]), path)


def as_geopackage(path):
    geopandas = pytest.importorskip("geopandas")
    from shapely import Point

    geopandas.GeoDataFrame(TABLE, geometry=[Point(0, 0)] * 2, crs=4326).to_file(path, driver="GPKG")


def as_stac(path):
    items = [
        {
            "type": "Feature",
            "id": str(k),
            "properties": {"datetime": row["date"] or None, "split": row["role"], "platform": row["sensor"]},
            "assets": {
                "thumb": {"href": "thumb.png", "roles": ["thumbnail"]},
                "image": {"href": row["scene"], "roles": ["data"]},
                **({"mask": {"href": row["labels"]}} if row["labels"] else {}),
            },
        }
        for k, row in enumerate(TABLE)
    ]  # fmt: skip
    path.write_text(json.dumps({"type": "FeatureCollection", "features": items}))


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("t.csv", as_csv),
        ("t.txt", as_semicolons),
        ("t.parquet", as_parquet),
        ("t.gpkg", as_geopackage),
        ("t.json", as_stac),
    ],
)
def test_every_kind_of_table_says_the_same(tmp_path, name, write):
    write(tmp_path / name)
    assert is_collection(str(tmp_path / name))
    first, second = read_collection(str(tmp_path / name)).entries
    assert first.scene == str(tmp_path / "a b.tif")
    assert first.labels == str(tmp_path / "a_l.tif")
    assert (first.role, first.date, first.sensor) == (TRAIN, "2020-01-01", "x")
    assert (second.role, second.labels, second.date, second.sensor) == (VAL, None, None, None)
    assert second.scene == str(tmp_path / "é.tif")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.csv", ""),
        ("head.csv", "scene,labels\n"),
        ("other.csv", "picture,labels\na,b\n"),
        ("no.json", "{"),
        ("no.json", '{"features": [1]}'),
        ("no.json", '{"features": [{"id": "x"}]}'),
        ("no.gpkg", "nothing"),
        ("no.parquet", "nothing"),
        ("what.xyz", "nothing"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=name):
        read_collection(str(tmp_path / name))
    with pytest.raises(ConfigError, match="nowhere"):
        read_collection(str(tmp_path / "nowhere"))


def test_an_empty_folder_is_refused_and_runs_in_a_folder_are_no_scenes(tmp_path):
    with pytest.raises(ConfigError, match="no scenes"):
        read_collection(str(tmp_path))
    touched(
        tmp_path, "a.tif", "runs/classify/x/config.json", "runs/classify/x/map.tif", ".hidden.tif"
    )
    assert [entry.name for entry in read_collection(str(tmp_path)).entries] == ["a"]


# -- all faults at once -----------------------------------------------------------------------------------


def test_all_faults_of_a_table_are_told_at_once(tmp_path):
    good = write_pair(tmp_path, "good", 0)
    other = write_pair(tmp_path, "other", 1)
    few = write_pair(tmp_path, "few", 2, cube=tiny_cube(tiny_labels())[:5])
    unit = write_pair(tmp_path, "unit", 3, unit="radiance")
    twin = write_pair(tmp_path, "twin", 0)
    size = write_pair(tmp_path, "size", 4)
    lone = write_pair(tmp_path, "lone", 5, labels=np.zeros((24, 28), int))
    whole = Path(good["scene"]).read_bytes()
    (tmp_path / "torn.tif").write_bytes(whole[: len(whole) * 6 // 10])
    rows = [
        {**good, "role": "train"},
        {**other, "role": "test"},
        {**few, "role": "train"},
        {**unit, "role": "train"},
        {**twin, "role": "test"},
        {**size, "labels": str(tmp_path / "size.npy"), "role": "train"},
        {**lone, "role": "train"},
        {"scene": "gone.tif", "labels": good["labels"], "role": "train"},
        {"scene": str(tmp_path / "torn.tif"), "labels": good["labels"], "role": "train"},
        {"scene": "", "labels": "x", "role": "train"},
        {"scene": other["scene"], "labels": "missing.tif", "role": "train"},
        {**good, "role": "trian"},
    ]
    np.save(tmp_path / "size.npy", tiny_labels()[:5])
    table = write_table(tmp_path / "t.csv", rows)
    found = faults_of(lambda: open_data(make_recipe({"scenes": table})))
    wanted = {
        "row 3": "bands",
        "row 4": "radiance",
        "row 5": "same scene",
        "row 6": "size.npy",
        "row 7": "labelled",
        "row 8": "gone.tif",
        "row 9": "torn.tif",
        "row 10": "no scene",
        "row 11": "same scene|missing.tif",
        "row 12": "trian|same scene",
    }
    assert set(wanted) <= set(found), found
    for where, words in wanted.items():
        assert re.search(words, found[where]), (where, found[where])
    assert "row 1" not in found and "row 2" not in found


def with_labels(folder, *changes, roles="train test"):
    rows = []
    for k, (labels, role) in enumerate(zip(changes, roles.split(), strict=True)):
        rows.append({**write_pair(folder, f"s{k}", k, labels=labels), "role": role})
    return make_recipe({"scenes": write_table(folder / "t.csv", rows)})


def test_a_class_that_nobody_can_learn_and_a_single_class_are_refused(tmp_path):
    labels = tiny_labels()
    two = np.where(labels == 3, 0, labels)
    found = faults_of(lambda: open_data(with_labels(tmp_path / "a", two, labels)))
    assert "class 3" in found["role train"]
    one = np.where(labels == 1, 1, 0)
    found = faults_of(lambda: open_data(with_labels(tmp_path / "b", one, one)))
    assert "one class" in found["labels"]
    found = faults_of(
        lambda: open_data(with_labels(tmp_path / "c", labels, labels, roles="train val"))
    )
    assert "role test" in found


def test_roles_are_for_all_scenes_or_for_none(tmp_path):
    rows = [
        {**write_pair(tmp_path, f"s{k}", k), "role": role}
        for k, role in enumerate(("train", "", "test"))
    ]
    found = faults_of(
        lambda: open_data(make_recipe({"scenes": write_table(tmp_path / "t.csv", rows)}))
    )
    assert found == {"row 2": "it has no role"}


def test_classes_are_joined_by_their_codes(tmp_path):
    labels = tiny_labels()
    first, second = np.where(labels == 2, 7, labels), np.where(labels == 1, 0, labels)
    rows = [
        {**write_pair(tmp_path, "s0", 0, labels=first), "role": "train"},
        {**write_pair(tmp_path, "s1", 1, labels=second), "role": "train"},
        {**write_pair(tmp_path, "s2", 2, labels=second), "role": "test"},
    ]
    data = open_data(make_recipe({"scenes": write_table(tmp_path / "t.csv", rows)}))
    assert data.class_codes == [1, 2, 3, 7]
    table = np.array([0, *data.class_codes])
    for k, wanted in enumerate((first, second, second)):
        np.testing.assert_array_equal(table[data[k].labels.values], wanted)
    np.testing.assert_array_equal(
        data.counts,
        [[(image == code).sum() for code in (1, 2, 3, 7)] for image in (first, second, second)],
    )


# -- other sensors -----------------------------------------------------------------------------------------


def test_bands_of_other_sensors_are_found_by_wavelength(tmp_path):
    labels = tiny_labels()
    cube = tiny_cube(labels)
    own = write_pair(
        tmp_path, "own", 0, cube=cube[[1, 3, 6]], wavelengths=[500, 600, 800], fwhm=[40] * 3
    )
    order = [4, 0, 2, 1]
    nm = np.array([505.0, 590.0, 810.0, 950.0])
    other = write_pair(
        tmp_path,
        "other",
        1,
        cube=cube[:4][np.argsort(order)],
        wavelengths=nm[[1, 3, 2, 0]],
        fwhm=[30] * 4,
    )
    fine = np.linspace(450, 900, 151)
    flat = np.tile(np.interp(fine, [450, 900], [0.1, 1.0])[:, None, None], (1, 24, 28)).astype(
        np.float32
    )
    narrow = write_pair(tmp_path, "narrow", 2, cube=flat, wavelengths=fine, fwhm=np.full(151, 3.0))
    far = write_pair(tmp_path, "far", 3, cube=cube[:3], wavelengths=[500, 600, 1200], fwhm=[40] * 3)
    scenes = [open_scene(pair["scene"]) for pair in (own, other, narrow, far)]
    contract = BandContract.of(scenes[0])
    assert matched(scenes[0], contract).how == ""
    picked = matched(scenes[1], contract)
    stored = scenes[1].values
    np.testing.assert_array_equal(picked.scene.values, stored[[3, 0, 2]])
    assert "nearest in wavelength" in picked.how
    averaged = matched(scenes[2], contract)
    assert "averaged" in averaged.how
    wanted = np.interp([500, 600, 800], [450, 900], [0.1, 1.0])
    np.testing.assert_allclose(averaged.scene.values[:, 0, 0], wanted, atol=2e-3)
    for scene in (picked.scene, averaged.scene):
        assert contract.select(scene).tolist() == [0, 1, 2]
    with pytest.raises(ModelError, match=r"lacks 1 of the 3 bands \(800 nm"):
        matched(scenes[3], contract)
    with pytest.warns(UserWarning, match="of another sensor"):
        found = open_collection(write_table(tmp_path / "t.csv", [own, other, narrow]), {})
    np.testing.assert_array_equal(found[1].values, picked.scene.values)


# -- the same ground ----------------------------------------------------------------------------------------


def test_scenes_that_share_ground_stay_together(tmp_path):
    cube = tiny_cube(tiny_labels())
    pairs = [
        write_pair(tmp_path, "a", 0),
        write_pair(tmp_path, "b", 1),  # beside it: an edge is no ground
        write_pair(tmp_path, "c", 1, cube=cube + 1, shift=(3, 5)),
        write_pair(tmp_path, "d", 2, cube=cube + 2, shift=(100, 0)),
    ]
    scenes = open_collection(write_table(tmp_path / "t.csv", pairs), {})
    assert overlapping(scenes.grounds) == [[], [2], [1], []]
    assert groups(scenes.grounds) == [[0], [1, 2], [3]]


def test_another_projection_of_the_same_ground_is_found(tmp_path):
    from affine import Affine

    from vitreous.scenes.grids import Grid, pixels_at

    own = write_pair(tmp_path, "own", 0)
    grid = Grid.of(open_scene(own["scene"]))
    degrees = write_pair(
        tmp_path, "degrees", 0, cube=tiny_cube(tiny_labels(), seed=9), crs="EPSG:4326",
        transform=Affine(1.3e-4, 0, 9.0, 0, -0.9e-4, 45.1525),
    )  # fmt: skip
    other = Grid.of(open_scene(degrees["scene"]))
    rows, columns = pixels_at(grid, other, np.arange(24), np.arange(28))
    shared = (rows >= 0) & (rows < 24) & (columns >= 0) & (columns < 28)
    scenes = open_collection(write_table(tmp_path / "t.csv", [own, degrees]), {})
    assert (overlapping(scenes.grounds) == [[1], [0]]) == bool(shared.any())
    assert shared.any()  # or the test says nothing
    first, second = scenes.grounds
    place = first.locate(np.arange(24 * 28), second, reproject=True)
    np.testing.assert_array_equal(place[0].reshape(24, 28), rows)
    np.testing.assert_array_equal(place[1].reshape(24, 28), columns)


def test_scenes_are_divided_so_that_every_part_has_every_class():
    counts = np.array([[90, 0], [80, 5], [100, 0], [70, 6], [110, 4], [60, 0], [100, 0], [90, 5]])
    roles = np.array(divide_scenes(counts, [[k] for k in range(8)], np.array([0.5, 0.25, 0.25]), 0))
    for role, scenes in ((TRAIN, 4), (VAL, 2), (TEST, 2)):
        assert (roles == role).sum() == scenes
        assert (counts[roles == role].sum(0) > 0).all()
    together = divide_scenes(counts, [[0, 1, 2], [3, 4, 5], [6, 7]], np.array([0.4, 0.2, 0.4]), 0)
    assert len({*together[:3]}) == len({*together[3:6]}) == len({*together[6:]}) == 1
    with pytest.raises(SplitError, match="same ground"):
        divide_scenes(counts, [list(range(8))], np.array([0.5, 0.2, 0.3]), 0)
    with pytest.raises(SplitError, match="single scene"):
        divide_scenes(counts[:1], [[0]], np.array([0.5, 0.2, 0.3]), 0)


def test_a_whole_table_opens_lazily(tmp_path):
    data = open_data(make_recipe({"scenes": write_collection(tmp_path)}))
    assert len(data) == 5
    assert data.names == [f"scene {k}" for k in range(5)]
    assert data.shapes == [(24, 28)] * 5
