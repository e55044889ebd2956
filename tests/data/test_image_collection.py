import csv

import numpy as np
import pytest
import rasterio
from PIL import Image

from tiny_images import folder_of_pictures, folder_of_rasters, picture, raster
from vitreous.data import image_collection
from vitreous.data.image_collection import draw_part, open_images, open_unlabelled
from vitreous.data.image_files import read_image
from vitreous.errors import ConfigError, VitreousError

DRAW = np.random.default_rng(1)


def table(path, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


# -- layouts --------------------------------------------------------------------------------------------------


def test_a_folder_with_roles_keeps_them_and_draws_what_is_missing(tmp_path):
    found = open_images(folder_of_pictures(tmp_path, {"train": 20, "test": 4}), val_fraction=0.2)
    assert found.class_names == ["cat", "dog"] and not found.several
    assert found.counts == {"train": 32, "val": 8, "test": 8} and found.drawn == ("val",)
    assert all(found.store.names[k].startswith("test/") for k in found.of("test"))
    assert (found.targets[found.of("val")].sum(0) == 4).all()


def test_a_folder_without_roles_is_divided_by_seed_within_classes(tmp_path):
    folder = folder_of_pictures(tmp_path, count=20)
    one, same, other = (open_images(folder, seed=seed) for seed in (0, 0, 1))
    assert one.counts == {"train": 28, "val": 4, "test": 8} and one.drawn == ("test", "val")
    assert (one.roles == same.roles).all() and (one.roles != other.roles).any()
    assert one.fingerprint == same.fingerprint != other.fingerprint
    for role in ("train", "val", "test"):
        share = one.targets[one.of(role)].sum(0)
        assert share[0] == share[1]


def test_validation_images_test_where_there_are_no_others(tmp_path):
    found = open_images(folder_of_pictures(tmp_path, {"train": 10, "val": 4}))
    assert found.counts["test"] == 8 and found.counts["val"] == 2
    assert any("measured on the validation images" in note for note in found.notes)


def test_a_table_with_one_label_and_unicode_and_spaces(tmp_path):
    rows = []
    for k in range(8):
        name = f"bild {k} ñ.png"
        picture(tmp_path / "p q" / name, k % 2, draw=DRAW)
        role = "test" if k >= 6 else "train"
        rows.append({"image": f"p q/{name}", "label": "rot" if k % 2 else "grün", "role": role})
    found = open_images(table(tmp_path / "liste.csv", rows), val_fraction=0)
    assert found.class_names == ["grün", "rot"] and found.counts["test"] == 2


def several(tmp_path, rows=8):
    made = []
    for k in range(rows):
        picture(tmp_path / f"{k}.png", k % 2, draw=DRAW)
        labels = [name for name, has in (("sea", k % 2), ("sky", k % 4 < 2)) if has]
        made.append((f"{k}.png", labels))
    return made


def test_several_labels_in_csv_and_parquet_are_alike(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    made = several(tmp_path)
    rows = [{"image": name, "labels": ";".join(labels)} for name, labels in made]
    one = open_images(table(tmp_path / "one.csv", rows))
    assert open_images(tmp_path).fingerprint == one.fingerprint  # its only table
    columns = {"image": [n for n, _ in made], "labels": [labels for _, labels in made]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "two.parquet")
    two = open_images(tmp_path / "two.parquet")
    assert one.several and one.class_names == ["sea", "sky"]
    assert one.fingerprint == two.fingerprint
    assert {tuple(row) for row in one.targets} == {(0, 0), (0, 1), (1, 0), (1, 1)}


def test_rasters_have_physical_values_and_no_data(tmp_path):
    folder = folder_of_rasters(tmp_path)
    values = np.full((5, 12, 10), 700, np.uint16)
    values[:, :3] = 0
    raster(folder / "field" / "gap.tif", values, nodata=0)
    found = open_images(folder, hints={"scale": 0.001})
    assert found.store.bands == 5 and found.store.kind == "uint16" and not found.store.is_color
    gap = found.store.read(found.store.names.index("field/gap.tif"))
    assert np.isnan(gap[:3]).all() and np.allclose(gap[3:], 0.7)
    own = np.concatenate([found.store.read(k).reshape(-1, 5) for k in found.of("train")])
    own = own[np.isfinite(own).all(1)].astype(np.float64)
    assert np.allclose(found.mean, own.mean(0)) and np.allclose(found.deviation, own.std(0))


def test_a_png_of_16_bits_keeps_its_values(tmp_path):
    values = DRAW.integers(0, 60_000, (6, 5)).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    found, facts = read_image(tmp_path / "deep.png")
    assert facts.kind == "uint16" and np.array_equal(found[:, :, 0], values)


def test_what_is_not_kept_is_read_again(tmp_path, monkeypatch):
    folder = folder_of_pictures(tmp_path)
    kept = open_images(folder)
    monkeypatch.setattr(image_collection, "KEPT_BYTES", 1000)
    lazy = open_images(folder)
    assert kept.store.kept and not lazy.store.kept
    assert all(np.array_equal(kept.store.read(k), lazy.store.read(k)) for k in range(24))
    picture(lazy.store.paths[3], 1, draw=DRAW)
    with pytest.raises(VitreousError, match="changed since it was checked"):
        lazy.store.read(3)


# -- what is told ---------------------------------------------------------------------------------------------


def test_other_files_are_skipped_and_grey_pictures_are_read_in_color(tmp_path):
    folder = folder_of_pictures(tmp_path, {"train": 6, "test": 2})
    (folder / "train" / "cat" / "notes.txt").write_text("no image")
    (folder / "LICENSE").write_text("none")
    Image.fromarray(np.full((12, 12), 77, np.uint8)).save(folder / "train" / "cat" / "grey.png")
    found = open_images(folder)
    assert "LICENSE" in found.notes[0] and "train/cat/notes.txt" in found.notes[0]
    assert any("1 grey pictures" in note for note in found.notes)
    grey = found.store.read(found.store.names.index("train/cat/grey.png"))
    assert grey.shape == (12, 12, 3) and (grey == 77).all()


def test_copies_across_roles_are_leakage_whatever_their_format(tmp_path):
    folder = folder_of_pictures(tmp_path, {"train": 8, "test": 4})
    with Image.open(folder / "train" / "cat" / "0.png") as known:
        known.save(folder / "test" / "cat" / "other name.png", optimize=True)
        known.save(folder / "train" / "dog" / "again.png")
    found = open_images(folder)
    assert found.leaked.sum() == 1 and len(found.leaked) == 9
    assert any("1 of 9 test images are copies" in note for note in found.notes)
    assert any("different labels" in note and "train/dog/again.png" in note for note in found.notes)


def test_copies_are_drawn_together():
    targets = np.ones((40, 1), np.float32)
    digests = np.repeat(np.arange(20, dtype=np.uint64), 2)
    chosen = draw_part(targets, digests, 0.3, np.random.default_rng(0))
    assert (chosen[::2] == chosen[1::2]).all() and chosen.sum() == 12


# -- what is refused ------------------------------------------------------------------------------------------


def test_all_faults_of_a_folder_are_told_at_once(tmp_path):
    folder = folder_of_pictures(tmp_path, {"train": 6, "test": 2})
    (folder / "train" / "cat" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no jpeg")
    whole = (folder / "train" / "cat" / "0.png").read_bytes()
    (folder / "train" / "cat" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "train" / "cat" / "fake.png").write_bytes(b"GIF89a")
    picture(folder / "train" / "loose.png", 0, draw=DRAW)
    picture(folder / "test" / "zebra" / "0.png", 0, draw=DRAW)
    raster(folder / "train" / "dog" / "five.tif", np.ones((5, 12, 12), np.uint16))
    (folder / "val").mkdir()
    with pytest.raises(VitreousError) as error:
        open_images(folder)
    told = [" ".join(line.split()) for line in str(error.value).splitlines()]
    for line in (
        "train/loose.png lies outside of the class folders",
        "val/ has no image in a class folder",
        "train/cat/cut.png cannot be read as JPEG or PNG: image file is truncated",
        "train/cat/fake.png cannot be read as JPEG or PNG: its content is neither",
        "train/dog/five.tif differs from most images in its bands: 5, not 3",
        "train/dog/five.tif differs from most images in its type of values: uint16, not uint8",
        "zebra is a class without an image in 'train'",
    ):
        assert line in told
    assert any(line.startswith("train/cat/broken.jpg cannot be read") for line in told)
    assert told[0].startswith("8 faults in the images of")


def test_many_faults_of_one_kind_do_not_bury_the_others(tmp_path):
    folder = folder_of_pictures(tmp_path, {"train": 6, "test": 2})
    for k in range(300):
        (folder / "train" / "cat" / f"x{k}.png").write_bytes(b"none")
    picture(folder / "test" / "zebra" / "0.png", 0, draw=DRAW)
    with pytest.raises(VitreousError, match=r"301 faults(.|\n)*and 280 more(.|\n)*zebra"):
        open_images(folder)


def test_all_faults_of_a_table_are_told_at_once(tmp_path):
    for k in range(4):
        picture(tmp_path / f"{k}.png", k % 2, draw=DRAW)
    rows = [
        {"image": "0.png", "label": "a", "role": "train"},
        {"image": "0.png", "label": "b", "role": "test"},
        {"image": "1.png", "label": "", "role": "train"},
        {"image": "2.png", "label": "b", "role": "tset"},
        {"image": "3.png", "label": "b", "role": ""},
        {"image": "gone.png", "label": "a", "role": "test"},
        {"image": "", "label": "a", "role": "test"},
    ]
    (tmp_path / "folder").mkdir()
    rows.append({"image": "folder", "label": "a", "role": "test"})
    rows.append({"image": f"../{tmp_path.name}/2.png", "label": "b", "role": "test"})
    with pytest.raises(VitreousError) as error:
        open_images(table(tmp_path / "t.csv", rows))
    told = [" ".join(line.split()) for line in str(error.value).splitlines()]
    for line in (
        "0.png is listed more than once",
        "line 4: 1.png has no label",
        "line 5: 2.png has the unknown role 'tset' (known: train, val, test)",
        "line 6: 3.png has no role, unlike other rows",
        "gone.png does not exist",
        "folder is a folder",
        "2.png is listed more than once",
        f"../{tmp_path.name}/2.png is listed more than once",
        "line 8 names no image",
    ):
        assert line in told


@pytest.mark.parametrize("unit", ["units", "values"])
def test_other_units_and_types_are_refused(tmp_path, unit):
    folder = folder_of_rasters(tmp_path)
    kind = np.float32 if unit == "values" else np.uint16
    raster(folder / "water" / "odd.tif", np.ones((5, 12, 10), kind))
    if unit == "units":
        with rasterio.open(folder / "water" / "odd.tif", "r+") as file:
            file.units = ("reflectance",) * 5
    found = "reflectance" if unit == "units" else "float32"
    with pytest.raises(
        VitreousError, match=rf"odd\.tif +differs from most images in its .*: {found}, not"
    ):
        open_images(folder)


def test_a_table_in_which_no_image_has_a_label_is_refused(tmp_path):
    picture(tmp_path / "0.png", 0, draw=DRAW)
    with pytest.raises(VitreousError, match=r"labels +names no class in any row"):
        open_images(table(tmp_path / "t.csv", [{"image": "0.png", "labels": ""}]))


def test_one_class_and_classes_that_cannot_be_divided_are_refused(tmp_path):
    with pytest.raises(VitreousError, match="at least two"):
        open_images(folder_of_pictures(tmp_path / "one", classes=("cat",)))
    folder = folder_of_pictures(tmp_path / "two")
    picture(folder / "rare" / "0.png", 0, draw=DRAW)
    with pytest.raises(VitreousError, match=r"rare +is a class with a single image"):
        open_images(folder)


@pytest.mark.parametrize("name", ["", "nowhere"])
def test_nothing_to_read_is_refused(tmp_path, name):
    with pytest.raises(ConfigError, match=r"no images in class folders|No such folder or table"):
        open_images(tmp_path / name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no rows"),
        ("image,label\n", "no rows"),
        ("a,b\n1,2\n", "needs a column 'image'"),
        ("image,label,labels\n1,2,3\n", "either 'label' or 'labels'"),
        (b"\xff\xfe\x00", "UTF-8"),
    ],
)
def test_what_is_no_table_of_images_is_refused(tmp_path, text, message):
    path = tmp_path / "t.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=message):
        open_images(path)


def test_images_to_predict_are_found_everywhere_and_checked_as_a_whole(tmp_path):
    folder = folder_of_pictures(tmp_path, {"x": 3, "y/z w": 2})
    store, _, sample = open_unlabelled(folder)
    assert len(store) == 10 and "y/z w/cat/0.png" in store.names and sample.shape[1] == 3
    (folder / "x" / "a.jpg").write_bytes(b"no")
    (folder / "x" / "b.jpg").write_bytes(b"no")
    with pytest.raises(VitreousError, match=r"2 faults(.|\n)*x/a\.jpg(.|\n)*x/b\.jpg"):
        open_unlabelled(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="contains no images"):
        open_unlabelled(tmp_path / "empty")
