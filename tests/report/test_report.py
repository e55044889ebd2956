"""The report: one page that is whole, safe to open, and says what the run folder says."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import rasterio
import xarray as xr
from page_walker import HOSTILE, walk, words
from rasterio.errors import NotGeoreferencedWarning
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import accuracy_score, cohen_kappa_score, confusion_matrix
from sklearn.naive_bayes import GaussianNB

from vitreous.errors import VitreousError
from vitreous.report import figures, pictures
from vitreous.report.html import build_report, duration, percent, quantity, ratio
from vitreous.report.markup import Markup, inline_svg, join, tag
from vitreous.report.page import scene_facts
from vitreous.report.record import plain, read_log, read_record
from vitreous.report.spectra import class_spectra
from vitreous.scenes.cube import LazyCube, class_palette, make_labels, make_scene


@dataclass
class Roles:
    roles: np.ndarray


@dataclass
class Run:
    folder: Path
    scene: xr.DataArray
    labels: xr.DataArray
    split: Roles
    metrics: dict

    def build(self) -> str:
        return build_report(self.folder, self.scene, self.labels, self.split).read_text("utf-8")

    def save(self) -> None:
        (self.folder / "metrics.json").write_text(json.dumps(self.metrics), "utf-8")


def scores(truth: np.ndarray, found: np.ndarray, names: list[str]) -> dict:
    matrix = confusion_matrix(truth, found, labels=range(1, len(names) + 1))
    hits, support, mapped = np.diag(matrix), matrix.sum(axis=1), matrix.sum(axis=0)
    producer, user = hits / np.maximum(support, 1), hits / np.maximum(mapped, 1)
    oa, aa = accuracy_score(truth, found), producer[support > 0].mean()
    kappa = cohen_kappa_score(truth, found)
    return {
        "oa": oa,
        "aa": aa,
        "kappa": kappa,
        "oa_ci": [max(0, oa - 0.02), min(1, oa + 0.02)],
        "aa_ci": [max(0, aa - 0.03), min(1, aa + 0.03)],
        "kappa_ci": [kappa - 0.02, kappa + 0.02],
        "per_class": [
            {
                "value": k + 1,
                "name": name,
                "producer": producer[k] if support[k] else None,
                "user": user[k] if mapped[k] else None,
                "f1": 2 * hits[k] / (support[k] + mapped[k]) if support[k] + mapped[k] else None,
                "support": int(support[k]),
            }
            for k, name in enumerate(names)
        ],
        "confusion": matrix.tolist(),
    }


def make_run(folder: Path, *, classes: int = 4, bands: int = 12, wavelengths: bool = True) -> Run:
    """Train two classifiers of scikit-learn on a noisy scene of rectangular fields, and keep a run of it."""
    random = np.random.default_rng(classes)
    cells = int(np.ceil(np.sqrt(classes)))
    truth = np.kron(
        np.arange(cells * cells).reshape(cells, cells) % classes + 1, np.ones((10, 9), int)
    )
    truth[::7] = 0
    endmembers = random.normal(1000, 300, (classes + 1, bands))
    cube = endmembers[truth].transpose(2, 0, 1) + random.normal(0, 250, (bands, *truth.shape))
    roles = np.where(truth > 0, random.choice([1, 1, 2, 3, 3, 3], truth.shape), 0).astype(np.uint8)
    names = [f"field {k}" for k in range(1, classes + 1)]
    centres = np.linspace(410, 900, bands) if wavelengths else None
    scene = make_scene(cube.astype(np.float32), wavelengths=centres, source="fields.hdr")
    labels = make_labels(truth, class_names=names)
    pixels = cube.reshape(bands, -1).T
    train, test = (roles == 1).ravel(), (roles == 3).ravel()
    systems = []
    for name, classifier in (("lda", LinearDiscriminantAnalysis()), ("bayes", GaussianNB())):
        found = classifier.fit(pixels[train], truth.ravel()[train]).predict(pixels)
        systems.append(
            {
                "name": name,
                "kind": "estimator",
                "parameters": 1234567 if name == "lda" else None,
                "trainable": 1234567 if name == "lda" else None,
                "train_seconds": 83.0,
                "pixels_per_second": 45678.0,
                "val": None,
                "test": scores(truth.ravel()[test], found[test], names),
            }
        )
        if name == "lda":
            write_map(folder / "map.tif", found.reshape(truth.shape))
    counts = {part: int((roles == k + 1).sum()) for k, part in enumerate(("train", "val", "test"))}
    metrics = {
        "schema": 1,
        "classes": [
            {"value": k + 1, "name": names[k], "color": color}
            for k, color in enumerate(class_palette(classes))
        ],
        "split": {
            "method": "random",
            "params": {"train_fraction": 0.3},
            "seed": 7,
            "hash": "0123abcd",
            "optimistic": True,
            "leakage": 0.874,
            "patch_size": 15,
            "counts": counts,
        },
        "systems": systems,
    }
    config = {
        "recipe": {"scene": "fields.hdr", "seed": 42, "model": "lda"},
        "versions": {"vitreous": "0.0.1", "numpy": "9.9.9"},
        "command": "vitreous train --scene fields.hdr",
        "model": {"name": "lda", "parameters": 1234567, "trainable": 1234567},
    }
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    (folder / "log.csv").write_text(
        "epoch,step,seconds,learning_rate,train_loss,train_oa,val_loss,val_oa,val_aa,val_kappa\n"
        "1,10,1.0,0.001,1.5,0.4,1.6,0.35,0.3,0.2\n2,20,2.0,0.0005,0.9,0.7,1.0,0.6,0.5,0.5\n3,30,3,0,0.7,0.8,,,,\n",
        "utf-8",
    )
    run = Run(folder, scene, labels, Roles(roles), metrics)
    run.save()
    return run


def write_map(path: Path, values: np.ndarray) -> None:
    profile = {
        "driver": "GTiff",
        "count": 1,
        "dtype": "uint8",
        "height": values.shape[0],
        "width": values.shape[1],
    }
    with pytest.warns(NotGeoreferencedWarning), rasterio.open(path, "w", **profile) as file:
        file.write(values.astype(np.uint8), 1)


def test_page_holds_the_numbers_of_the_run(tmp_path):
    run = make_run(tmp_path)
    walker = walk(run.build())
    text = words(walker)
    for system in run.metrics["systems"]:
        test = system["test"]
        assert percent(test["oa"]) in text
        assert percent(test["aa"]) in text
        assert ratio(test["kappa"]) in text
        assert percent(test["oa_ci"][1]) in text
    for row in run.metrics["systems"][0]["test"]["per_class"]:
        assert row["name"] in text
        assert percent(row["producer"]) in text
        assert percent(row["user"]) in text
    matrix = run.metrics["systems"][0]["test"]["confusion"]
    assert {str(n) for line in matrix for n in line if n} <= set(text.split())
    for fact in (
        "0123abcd",
        "9.9.9",
        "vitreous train --scene fields.hdr",
        "seed: 42",
        "1 min 23 s",
        "1.23 M",
    ):
        assert fact in text
    assert walker.tags.count("img") == 5
    assert {"maps", "systems", "classes", "learning", "spectra", "again"} <= set(walker.ids)


def test_split_is_judged_in_words(tmp_path):
    run = make_run(tmp_path)
    text = words(walk(run.build()))
    assert "Optimistic estimate." in text
    assert "87.4 % of the test pixels lie inside a 15 × 15 training patch" in text
    run.metrics["split"] |= {"optimistic": False, "method": "blocks", "leakage": 0.01}
    run.save()
    assert "Some leakage." in words(walk(run.build()))
    run.metrics["split"]["leakage"] = 0
    run.save()
    text = words(walk(run.build()))
    assert "No leakage." in text and "Optimistic" not in text


def test_hostile_names_stay_text(tmp_path):
    run = make_run(tmp_path)
    nasty = [
        f"{HOSTILE}$\\frac{{$--]]>",
        '" onmouseover="x" style="',
        "a\x00b\x1b\ud800\u202ec",
        "&lt;https&colon; 'q' " + "long" * 400,
    ]
    for k, name in enumerate(nasty):
        run.metrics["classes"][k]["name"] = name
        run.metrics["classes"][k]["color"] = "red;background:url(//evil)"
        for system in run.metrics["systems"]:
            system["test"]["per_class"][k]["name"] = name
    run.metrics["systems"][0]["name"] = HOSTILE
    run.metrics["split"] |= {"hash": HOSTILE, "method": HOSTILE, "params": {HOSTILE: HOSTILE}}
    run.save()
    config = {"recipe": {HOSTILE: [HOSTILE]}, "versions": {HOSTILE: HOSTILE}, "command": HOSTILE}
    (tmp_path / "config.json").write_text(json.dumps(config), "utf-8")
    run.scene.attrs |= {"source": HOSTILE, "attribution": HOSTILE, "unit": HOSTILE}
    page = run.build()
    walker = walk(page)
    assert "<script" not in page
    assert "evil" not in page
    assert words(walker).count(HOSTILE) >= 8


@pytest.mark.parametrize("absent", ["log.csv", "map.tif", "baselines", "all"])
def test_absent_parts_are_left_out(tmp_path, absent):
    run = make_run(tmp_path)
    if absent in {"log.csv", "all"}:
        (tmp_path / "log.csv").unlink()
    if absent in {"map.tif", "all"}:
        (tmp_path / "map.tif").unlink()
    if absent in {"baselines", "all"}:
        run.metrics["systems"] = run.metrics["systems"][:1]
        run.save()
    walker = walk(run.build())
    assert ("learning" in walker.ids) == (absent not in {"log.csv", "all"})
    assert ("systems" in walker.ids) == (absent not in {"baselines", "all"})
    assert walker.tags.count("img") == (3 if absent in {"map.tif", "all"} else 5)
    assert "#learning" in walker.references or absent in {"log.csv", "all"}


@pytest.mark.parametrize("classes", [2, 60])
def test_few_and_many_classes(tmp_path, classes):
    page = make_run(tmp_path, classes=classes).build()
    text = words(walk(page))
    assert all(f"field {k}" in text for k in (1, classes))
    assert len(page) < 3e6


def test_one_band_without_wavelengths(tmp_path):
    text = words(walk(make_run(tmp_path, bands=1, wavelengths=False).build()))
    assert "Band 1 in grey" in text
    assert "1 band " in text


def test_invalid_pixels_and_bad_bands(tmp_path):
    run = make_run(tmp_path)
    values = run.scene.values.copy()
    values[:, :5] = np.nan
    values[4] = np.nan
    good = np.arange(12) != 4
    run.scene = make_scene(
        values, wavelengths=run.scene["wavelength"].values, good_band=good, source="holes"
    )
    walk(run.build())
    picture = pictures.scene_picture(run.scene)
    assert (picture[:5, :, 3] == 0).all() and (picture[5:, :, 3] == 255).all()
    run.scene = make_scene(np.full_like(values, np.nan), source="nothing")
    assert "spectra" not in walk(run.build()).ids


def test_undefined_accuracies_are_dashes(tmp_path):
    run = make_run(tmp_path)
    test = run.metrics["systems"][0]["test"]
    test["per_class"][0] |= {"producer": None, "user": None, "f1": None, "support": 0}
    test |= {"aa": None, "aa_ci": None, "kappa_ci": [None, None]}
    test["unclassified"] = [0, 3, 0, 4]
    run.save()
    text = words(walk(run.build()))
    assert "–" in text
    assert "Classes without test pixels (not part of AA): field 1." in text
    assert "7 test pixels have no prediction and count as wrong." in text


def test_same_run_gives_the_same_page(tmp_path):
    run = make_run(tmp_path)
    assert run.build() == run.build()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metrics.json", "{"),
        ("metrics.json", "[]"),
        ("metrics.json", '{"schema": 2, "classes": [], "split": {}, "systems": []}'),
        ("config.json", '{"recipe": 5}'),
        ("log.csv", "epoch,\x00\udcff"),
        ("map.tif", "no map"),
    ],
)
def test_damaged_records_are_refused(tmp_path, name, content):
    run = make_run(tmp_path)
    (tmp_path / "report.html").write_text("the report before")
    (tmp_path / name).write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(VitreousError, match=re.escape(name)):
        run.build()
    assert (tmp_path / "report.html").read_text() == "the report before"


def test_truncated_map_is_refused(tmp_path):
    run = make_run(tmp_path)
    data = (tmp_path / "map.tif").read_bytes()
    (tmp_path / "map.tif").write_bytes(data[: len(data) // 2])
    with pytest.raises(VitreousError, match=r"map\.tif"):
        run.build()


def test_sizes_must_agree(tmp_path):
    run = make_run(tmp_path)
    write_map(tmp_path / "map.tif", np.ones((3, 3)))
    with pytest.raises(VitreousError, match="3 x 3"):
        run.build()
    with pytest.raises(VitreousError, match="split"):
        build_report(tmp_path, run.scene, run.labels, Roles(np.zeros((3, 3), np.uint8)))


def test_errors_are_counted_at_test_pixels_only(tmp_path):
    run = make_run(tmp_path)
    codes = [entry["value"] for entry in run.metrics["classes"]]
    outcomes = pictures.read_outcomes(
        tmp_path / "map.tif", run.labels.values, run.split.roles, codes
    )
    matrix = np.array(run.metrics["systems"][0]["test"]["confusion"])
    assert (outcomes == pictures.CORRECT).sum() == np.trace(matrix)
    assert (outcomes == pictures.WRONG).sum() == matrix.sum() - np.trace(matrix)
    assert not outcomes[run.split.roles != pictures.TEST].any()


def test_outcomes_do_not_depend_on_the_strips(tmp_path, monkeypatch):
    run = make_run(tmp_path)
    codes = [entry["value"] for entry in run.metrics["classes"]]
    arguments = (tmp_path / "map.tif", run.labels.values, run.split.roles, codes)
    whole = pictures.read_outcomes(*arguments)
    monkeypatch.setattr(pictures, "STRIP_BYTES", 1)
    np.testing.assert_array_equal(pictures.read_outcomes(*arguments), whole)
    monkeypatch.setattr(pictures, "MAX_PIXELS", 7)
    narrow = pictures.read_outcomes(*arguments)
    step = pictures.stride_for(*run.labels.shape)
    np.testing.assert_array_equal(narrow, pictures.thin(whole, step))


def test_thinning_keeps_a_scattered_pixel_of_every_cell():
    random = np.random.default_rng(1)
    image = np.zeros((53, 31), np.uint8)
    image.ravel()[random.choice(image.size, 40, replace=False)] = random.integers(1, 9, 40)
    thinned = pictures.thin(image, 5)
    assert thinned.shape == (11, 7)
    for row in range(11):
        for column in range(7):
            cell = image[5 * row : 5 * row + 5, 5 * column : 5 * column + 5]
            assert (thinned[row, column] > 0) == cell.any()
            assert thinned[row, column] in cell or not cell.any()
    assert pictures.thin(image, 1) is image


def test_large_scene_is_read_in_bounded_pieces():
    read = []

    def synthetic(window):
        shape = tuple(len(range(s.start, s.stop, s.step)) for s in window)
        read.append(int(np.prod(shape)))
        return np.full(shape, 7, np.uint16)

    side = 40_000
    scene = make_scene(
        LazyCube((50, side, side), np.uint16, synthetic), wavelengths=np.linspace(400, 900, 50)
    )
    picture = pictures.scene_picture(scene)
    assert max(picture.shape[:2]) <= pictures.MAX_PIXELS
    assert sum(read) <= 3 * pictures.MAX_PIXELS**2
    read.clear()
    labels = np.zeros((4000, 4000), np.uint8)
    labels[::9, ::9] = 3
    (spectrum,) = class_spectra(scene, labels, labels > 0, [3])
    assert sum(read) <= 12 * 32 * 32 * 50
    np.testing.assert_allclose(spectrum.mean, 7)
    np.testing.assert_allclose(spectrum.deviation, 0)


def test_spectra_equal_plain_means(tmp_path):
    run = make_run(tmp_path, classes=3)
    truth, chosen = run.labels.values, run.split.roles == 1
    spectra = class_spectra(run.scene, truth, chosen, [3, 1])
    assert [spectrum.value for spectrum in spectra] == [3, 1]
    for spectrum in spectra:
        pixels = run.scene.values[:, chosen & (truth == spectrum.value)].astype(np.float64)
        assert spectrum.pixels == pixels.shape[1]
        np.testing.assert_allclose(spectrum.mean, pixels.mean(axis=1))
        np.testing.assert_allclose(spectrum.deviation, pixels.std(axis=1), rtol=1e-6)


def test_pictures_do_not_depend_on_gain_and_offset(tmp_path):
    scene = make_run(tmp_path).scene
    brighter = make_scene(scene.values * 4 + 512, wavelengths=scene["wavelength"].values)
    np.testing.assert_allclose(
        pictures.scene_picture(brighter).astype(int), pictures.scene_picture(scene), atol=1
    )


def test_class_picture_paints_exactly_the_classes():
    values = np.array([[0, 1, 2], [3, 70, 65535]])
    picture = pictures.class_picture(values, {1: "#ff0000", 2: "#0000ff", 70: "#00ff00"})
    expected = [
        [(0, 0, 0, 0), (255, 0, 0, 255), (0, 0, 255, 255)],
        [(0,) * 4, (0, 255, 0, 255), (0,) * 4],
    ]
    np.testing.assert_array_equal(picture, expected)


def test_lines_break_at_unused_and_removed_bands():
    centres = np.concatenate([np.arange(400, 700, 10), [695.0], np.arange(900, 1000, 10)])
    used = np.ones(len(centres), bool)
    used[5] = False
    values = np.arange(len(centres), dtype=float)[None]
    position, columns = figures.with_gaps(centres, values, used)
    assert (np.diff(position) >= 0).all()
    gaps = position[np.isnan(columns[0])]
    np.testing.assert_allclose(gaps, [450, (695 + 900) / 2])
    assert set(columns[0][np.isfinite(columns[0])]) == set(values[0][used])


def test_markup_escapes_what_is_not_markup():
    assert (
        tag("p", "a<b", Markup("<i>"), None, title='"&') == '<p title="&quot;&amp;">a&lt;b<i></p>'
    )
    assert join("<", Markup(">")) == "&lt;>"


def test_svg_follows_the_theme_and_keeps_ids_apart(tmp_path):
    run = make_run(tmp_path)
    system = read_record(run.folder).metrics.systems
    first, second = (
        inline_svg(figures.systems_figure(system), prefix, "x < y", figures.THEME)
        for prefix in ("a-", "b-")
    )
    assert "var(--blue)" in first and figures.BLUE not in first
    assert 'aria-label="x &lt; y"' in first
    ids = [set(re.findall(r'id="([^"]*)"', svg)) for svg in (first, second)]
    assert ids[0] and not ids[0] & ids[1]
    assert (
        first.replace('"#a-', '"#b-').replace("(#a-", "(#b-").replace('id="a-', 'id="b-') == second
    )


def test_numbers_are_written_as_people_read_them():
    assert [percent(value) for value in (0.0, 1e-5, 0.9284, 0.99999, 1.0, None)] == [
        "0.0 %",
        "<0.1 %",
        "92.8 %",
        ">99.9 %",
        "100.0 %",
        "–",
    ]
    assert [quantity(n) for n in (254_640_000, 1650, 999, 7, None)] == [
        "255 M",
        "1.65 k",
        "999",
        "7",
        "–",
    ]
    assert [duration(s) for s in (0.04, 12, 83, 3720, None)] == [
        "0.0 s",
        "12 s",
        "1 min 23 s",
        "1 h 02 min",
        "–",
    ]


def test_plain_text_is_one_printable_line():
    assert plain("a\nb\x00\ud800\u202e") == "a b" + "\N{REPLACEMENT CHARACTER}" * 3
    assert plain("x" * 20, 5) == "xxxx…"


def test_log_with_holes_is_read_as_far_as_it_goes(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("epoch,val_oa\n1,0.5\n2,\n3,oops\n4\n")
    log = read_log(path)
    assert log is not None
    np.testing.assert_array_equal(log["epoch"], [1, 2, 3, 4])
    np.testing.assert_array_equal(log["val_oa"], [0.5, np.nan, np.nan, np.nan])
    path.write_text("")
    assert read_log(path) is None


@pytest.mark.parametrize(
    ("centres", "bands"),
    [
        ([443, 492, 560, 665, 705, 842], "665, 560, 492 nm (bands 4, 3, 2)"),  # Sentinel-2
        ([443, 482, 561, 655, 865], "655, 561, 482 nm (bands 4, 3, 2)"),  # Landsat 8
        ([443, 490, 531, 565, 610, 665, 705, 865], "665, 565, 490 nm (bands 6, 4, 2)"),  # SuperDove
    ],
)
def test_true_colour_takes_blue_and_not_the_coastal_band(centres, bands):
    scene = make_scene(np.zeros((len(centres), 2, 3), "uint8"), wavelengths=centres)
    assert pictures.scene_colours(scene) == f"True colour: {bands}"


def test_sizes_are_width_by_height_as_in_the_terminal():
    assert scene_facts(make_scene(np.zeros((2, 5, 7), "uint8")))[0] == "7 × 5 pixels"


def test_rows_of_the_confusion_matrix_give_a_number_once():
    pairs = [("corn", 10), ("class 40", 40), ("7201", 7201), ("class 4", 40)]
    assert [figures._row_name(name, value) for name, value in pairs] == [
        *("corn  10", "class 40", "7201", "class 4  40"),
    ]
