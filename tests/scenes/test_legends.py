import json

import numpy as np
import pytest
import rasterio

from vitreous import open_labels
from vitreous.errors import ConfigError, SceneError
from vitreous.recipe import make_recipe
from vitreous.scenes.cube import class_palette
from vitreous.scenes.legends import colors_of_names, legend, schemes
from vitreous.tasks.labelled import open_labelled

QML = """<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>
<qgis version="3.28"><pipe><rasterrenderer type="paletted"><colorPalette>
<paletteEntry value="10" label="Wald" color="#006400" alpha="255"/>
<paletteEntry value="80" label="Wasser" color="#0064c8" alpha="255"/>
</colorPalette></rasterrenderer></pipe></qgis>
"""
CSV = "value;name;color\n10;Wald;#006400\n80;Wasser;#0064c8ff\n"
JSON = json.dumps(
    {"10": {"name": "Wald", "color": "#006400"}, "80": {"name": "Wasser", "color": "#0064C8"}}
)


def put_labels(path):
    values = np.full((6, 7), 10, "uint8")
    values[:, 4:] = 80
    with rasterio.open(
        path, "w", driver="GTiff", count=1, height=6, width=7, dtype="uint8", crs="EPSG:32632",
        transform=rasterio.Affine(10, 0, 0, 0, -10, 0),
    ) as dataset:  # fmt: skip
        dataset.write(values, 1)


@pytest.mark.parametrize(("ending", "text"), [("qml", QML), ("csv", CSV), ("json", JSON)])
@pytest.mark.parametrize("beside", [True, False])
def test_legends_of_every_kind(tmp_path, ending, text, beside):
    put_labels(tmp_path / "map.tif")
    name = tmp_path / f"{'map' if beside else 'other'}.{ending}"
    name.write_text(text)
    labels = open_labels(tmp_path / "map.tif", classes=None if beside else name)
    assert labels.attrs["class_names"] == ["Wald", "Wasser"]
    assert labels.attrs["class_colors"] == ["#006400", "#0064c8"]


def test_known_schemes(tmp_path):
    put_labels(tmp_path / "map.tif")
    labels = open_labels(tmp_path / "map.tif", classes="WorldCover")
    assert labels.attrs["class_names"] == ["Tree cover", "Permanent water bodies"]
    assert {name: len(scheme.names) for name, scheme in schemes().items()} == {
        "worldcover": 11,
        "corine": 44,
        "corine_grid": 44,
        "nlcd": 20,
        "dynamic_world": 9,
    }
    assert legend("corine").names[312] == legend("corine_grid").names[24] == "Coniferous forest"
    for scheme in schemes().values():
        assert scheme.names.keys() == scheme.colors.keys()


def test_dynamic_world_has_a_class_0(tmp_path):
    values = np.array([[0, 1], [6, 6]], "uint8")
    with rasterio.open(
        tmp_path / "dw.tif", "w", driver="GTiff", count=1, height=2, width=2, dtype="uint8"
    ) as dataset:
        dataset.write(values, 1)
    labels = open_labels(tmp_path / "dw.tif", classes="dynamic_world")
    assert labels.attrs["class_names"] == ["Water", "Trees", "Built area"]


def test_other_files_beside_labels_are_no_legend(tmp_path):
    put_labels(tmp_path / "map.tif")
    (tmp_path / "map.csv").write_text("x,y\n1,2\n")
    (tmp_path / "map.json").write_text('{"type": "Feature"}')
    labels = open_labels(tmp_path / "map.tif")
    assert labels.attrs["class_names"] == ["class 10", "class 80"]


def test_colours_suit_names():
    names = ["Forest", "Water", "Built-up", "xyz", "mixed forest"]
    palette = class_palette(5)
    forest, water, built, other, mixed = colors_of_names(names, palette)
    assert (forest, water, built, other) == ("#1b5e20", "#1f63b5", "#c62828", palette[3])
    assert mixed != forest


@pytest.mark.parametrize("given", ["worldcovr", "a.csv"])
def test_what_is_no_legend_is_said(tmp_path, monkeypatch, given):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.csv").write_text("x,y\n1,2\n")
    with pytest.raises(SceneError, match=r"(no|such) legend"):
        legend(given)


def test_features_take_no_legend(tmp_path):
    (tmp_path / "a.geojson").write_text('{"type": "FeatureCollection", "features": []}')
    with pytest.raises(SceneError, match="class_names instead"):
        open_labels(tmp_path / "a.geojson", classes="corine")


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("classes", ["worldcover", "names.csv"])
def test_a_recipe_names_the_classes(tmp_path, classes, apart):
    put_labels(tmp_path / "map.tif")
    (tmp_path / "names.csv").write_text(CSV)
    places = {"scene": str(tmp_path / "map.tif"), "labels": str(tmp_path / "map.tif")}
    named = classes if classes == "worldcover" else str(tmp_path / classes)
    data = open_labelled(make_recipe({**places, "classes": named, "untrusted": apart}))
    names = (
        ["Tree cover", "Permanent water bodies"] if classes == "worldcover" else ["Wald", "Wasser"]
    )
    assert (data.class_names, data.class_codes) == (names, [10, 80])
    with pytest.raises(ConfigError, match="have names already"):
        open_labelled(make_recipe({"classes": named}))
