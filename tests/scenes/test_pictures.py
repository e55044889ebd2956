import warnings

import numpy as np
import pytest
import rasterio
from rasterio.crs import CRS
from rasterio.errors import NotGeoreferencedWarning

from vitreous import open_labels, open_scene
from vitreous.errors import SceneError
from vitreous.scenes.cube import georeference, make_scene, read_window, rgb_bands

RNG = np.random.default_rng(0)
PHOTO = RNG.integers(0, 256, (3, 20, 24)).astype("uint8")


def put(path, values, driver="PNG", palette=None, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(
            path,
            "w",
            driver=driver,
            count=values.shape[0],
            height=values.shape[1],
            width=values.shape[2],
            dtype=values.dtype,
            **options,
        ) as dataset:
            if palette:
                dataset.write_colormap(1, palette)
            dataset.write(values)
    path.with_name(path.name + ".aux.xml").unlink(missing_ok=True)


def test_a_photograph_with_its_place(tmp_path):
    put(tmp_path / "a.png", PHOTO)
    # A world file gives the centre of the first pixel.
    (tmp_path / "a.pgw").write_text("0.5\n0\n0\n-0.5\n500000.25\n4999999.75\n")
    (tmp_path / "a.prj").write_text(CRS.from_epsg(32632).to_wkt())
    scene = open_scene(tmp_path / "a.png")
    np.testing.assert_array_equal(scene.values, PHOTO)
    assert list(scene.band_name.values) == ["red", "green", "blue"]
    assert rgb_bands(scene) == (0, 1, 2)
    crs, transform = georeference(scene)
    assert crs.to_epsg() == 32632
    assert tuple(transform)[:6] == (0.5, 0, 500000, 0, -0.5, 5000000)
    np.testing.assert_array_equal(scene[1, 3:9, 2:7].values, PHOTO[1, 3:9, 2:7])


def test_a_jpeg(tmp_path):
    smooth = np.tile(np.linspace(0, 250, 24, dtype="uint8"), (3, 20, 1))
    put(tmp_path / "a.jpg", smooth, "JPEG", quality=100)
    scene = open_scene(tmp_path / "a.jpg", unit="dn", wavelengths=[650, 550, 450])
    np.testing.assert_allclose(scene.values.astype(int), smooth, atol=3)
    assert scene.wavelength.values[0] == 650


def test_transparency_hides_pixels(tmp_path):
    alpha = np.full((1, 20, 24), 255, "uint8")
    alpha[0, 2, 3] = 0
    put(tmp_path / "a.png", np.concatenate([PHOTO, alpha]))
    window = read_window(open_scene(tmp_path / "a.png"), slice(0, 20), slice(0, 24))
    assert window.shape[0] == 3
    assert np.argwhere(np.isnan(window[0])).tolist() == [[2, 3]]


def test_sixteen_bits(tmp_path):
    values = RNG.integers(0, 65536, (1, 20, 24)).astype("uint16")
    put(tmp_path / "a.png", values)
    np.testing.assert_array_equal(open_scene(tmp_path / "a.png").values, values)


def test_a_palette_is_colours_in_a_scene_and_classes_in_labels(tmp_path):
    values = RNG.integers(0, 4, (1, 20, 24)).astype("uint8")
    palette = {0: (0, 0, 0), 1: (200, 10, 20), 2: (0, 128, 0), 3: (0, 0, 255)}
    put(tmp_path / "a.png", values, palette=palette)
    scene = open_scene(tmp_path / "a.png")
    np.testing.assert_array_equal(
        scene.values, np.array([palette[k] for k in range(4)]).T[:, values[0]]
    )
    labels = open_labels(tmp_path / "a.png")
    np.testing.assert_array_equal(labels, values[0])
    assert labels.attrs["class_colors"] == ["#c80a14", "#008000", "#0000ff"]
    assert labels.attrs["class_codes"] == [1, 2, 3]


def test_one_class_per_colour(tmp_path):
    index = RNG.integers(0, 3, (20, 24))
    colors = np.array([(0, 0, 0), (0, 0, 255), (255, 0, 0)], "uint8")
    put(tmp_path / "a.png", colors[index].transpose(2, 0, 1))
    with pytest.warns(UserWarning, match="2 colours are numbered"):
        labels = open_labels(tmp_path / "a.png")
    np.testing.assert_array_equal(labels, index)
    assert labels.attrs["class_names"] == ["#0000ff", "#ff0000"]
    assert labels.attrs["class_colors"] == ["#0000ff", "#ff0000"]


def test_grey_in_three_bands_is_numbers(tmp_path):
    values = RNG.integers(1, 5, (1, 20, 24)).astype("uint8")
    put(tmp_path / "a.png", values.repeat(3, axis=0))
    assert open_labels(tmp_path / "a.png").attrs["class_codes"] == [1, 2, 3, 4]


def test_a_mask_of_0_and_255(tmp_path):
    values = np.where(RNG.random((1, 20, 24)) > 0.5, 255, 0).astype("uint8")
    put(tmp_path / "a.png", values)
    labels = open_labels(tmp_path / "a.png", zero_class=True)
    assert labels.attrs["class_codes"] == [0, 255]
    assert open_labels(tmp_path / "a.png").attrs["class_codes"] == [255]


def test_labels_on_the_grid_of_a_scene(tmp_path):
    put(tmp_path / "a.png", np.full((1, 20, 24), 2, "uint8"))
    like = make_scene(PHOTO)
    assert open_labels(tmp_path / "a.png", like=like).shape == (20, 24)


@pytest.mark.parametrize(("driver", "complaint"), [("JPEG", "compression"), ("PNG", "photograph")])
def test_photographs_are_no_labels(tmp_path, driver, complaint):
    put(tmp_path / "a.png", PHOTO, driver)
    with pytest.raises(SceneError, match=complaint):
        open_labels(tmp_path / "a.png")


@pytest.mark.parametrize("driver", ["PNG", "JPEG"])
def test_a_truncated_file_is_refused(tmp_path, driver):
    put(tmp_path / "a.png", PHOTO.repeat(5, axis=2).repeat(5, axis=1), driver)
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(SceneError, match="truncated"):
        open_scene(tmp_path / "a.png").values  # noqa: B018
