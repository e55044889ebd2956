import numpy as np
import pytest
import rasterio
from rasterio import Affine

from vitreous import open_scene
from vitreous.errors import SceneError
from vitreous.scenes.cube import read_window

PLACE = Affine(30, 0, 300000, 0, -30, 5200000)
ENMAP = "ENMAP01-____L2A-DT0000001867_20220724T104526Z_008_V010302_20230628T165614Z"
DESIS = "DESIS-HSI-L2A-DT0483531728_002-20200707T104526-V0210"
CENTRES = [418.4, 700.0, 940.0, 990.0, 910.0, 970.0, 1600.0, 2445.5]  # VNIR, then SWIR


def enmap_xml(centres, gains, offsets, background="-32768"):
    bands = "".join(
        f'<bandID number="{k + 1}"><wavelengthCenterOfBand>{c}</wavelengthCenterOfBand>'
        f"<FWHMOfBand>{6.5 + k}</FWHMOfBand><GainOfBand>{g}</GainOfBand>"
        f"<OffsetOfBand>{o}</OffsetOfBand></bandID>"
        for k, (c, g, o) in enumerate(zip(centres, gains, offsets, strict=True))
    )
    return (
        '<?xml version="1.0" encoding="UTF-8"?><level_X xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">'
        f"<specific><bandCharacterisation>{bands}</bandCharacterisation></specific>"
        f"<product><image><merge><backgroundValue>{background}</backgroundValue></merge></image></product>"
        "</level_X>"
    )


def desis_xml(centres, gains, offsets):
    bands = "".join(
        f"<band><bandNumber>{k + 1}</bandNumber>"
        f'<wavelengthCenterOfBand unit="nm">{c}</wavelengthCenterOfBand>'
        f'<wavelengthWidthOfBand unit="nm">3.5</wavelengthWidthOfBand><gainOfBand>{g}</gainOfBand>'
        f"<offsetOfBand>{o}</offsetOfBand><wavelengths>1,2,3</wavelengths><response>0,1,0</response></band>"
        for k, (c, g, o) in enumerate(zip(centres, gains, offsets, strict=True))
    )
    return (
        "<hsi_doc><specific><interiorOrientation><band><bandNumber>1</bandNumber></band></interiorOrientation>"
        f"<bandCharacterisation>{bands}</bandCharacterisation></specific></hsi_doc>"
    )


def put(folder, name, xml, count=8, nodata=None, ending="TIF"):
    """A product of 20 x 24 pixels with one that holds nothing; returns the counts."""
    folder.mkdir(exist_ok=True)
    cube = np.random.default_rng(0).integers(1, 9000, (count, 20, 24)).astype("int16")
    cube[:, 3, 4] = -32768
    with rasterio.open(
        folder / f"{name}-SPECTRAL_IMAGE.{ending}",
        "w",
        driver="GTiff",
        count=count,
        height=20,
        width=24,
        dtype="int16",
        nodata=nodata,
        crs="EPSG:32632",
        transform=PLACE,
    ) as dataset:
        dataset.write(cube)
    (folder / f"{name}-METADATA.XML").write_text(xml)
    return cube


@pytest.mark.parametrize("asked", ["", f"{ENMAP}-METADATA.XML", f"{ENMAP}-SPECTRAL_IMAGE.TIF"])
def test_enmap_level_2a(tmp_path, asked):
    cube = put(tmp_path, ENMAP, enmap_xml(CENTRES, [1e-4] * 8, [0] * 8))
    scene = open_scene(tmp_path / asked)
    order = [0, 1, 4, 2, 5, 3, 6, 7]
    np.testing.assert_allclose(scene.wavelength, np.array(CENTRES)[order])
    np.testing.assert_allclose(scene.fwhm, 6.5 + np.array(order))
    # The overlap is 910 to 990 nm.
    assert scene.good_band.values.tolist() == [1, 1, 0, 1, 1, 0, 1, 1]
    assert (scene.attrs["unit"], scene.attrs["scale"]) == ("reflectance", 1e-4)
    assert scene.attrs["nodata"] == -32768
    assert scene.rio.crs.to_epsg() == 32632
    assert scene.rio.transform(recalc=False) == PLACE
    np.testing.assert_array_equal(scene.values, cube[order])
    assert np.isnan(read_window(scene, slice(3, 4), slice(4, 5))).all()
    assert open_scene(scene.attrs["source"]).sizes["band"] == 8


def test_enmap_level_1c_is_radiance_with_a_gain_per_band(tmp_path):
    gains, offsets = [1e-5 * (k + 1) for k in range(8)], [0.01 * k for k in range(8)]
    cube = put(tmp_path, ENMAP.replace("L2A", "L1C"), enmap_xml(CENTRES, gains, offsets))
    scene = open_scene(tmp_path)
    assert scene.attrs["unit"] == "radiance"
    np.testing.assert_allclose(scene.values[2, 5, 6], cube[4, 5, 6] * 5e-5 + 0.04, rtol=1e-5)
    assert np.isnan(scene.values[:, 3, 4]).all()


def test_desis_level_2a(tmp_path):
    centres = [401.3 + 2.55 * k for k in range(8)]
    cube = put(
        tmp_path, DESIS, desis_xml(centres, [1e-4] * 8, [0] * 8), nodata=-32768, ending="tif"
    )
    scene = open_scene(tmp_path)
    np.testing.assert_allclose(scene.wavelength, centres)
    np.testing.assert_allclose(scene.fwhm, 3.5)
    assert scene.good_band.values.all()
    assert (scene.attrs["unit"], scene.attrs["scale"]) == ("reflectance", 1e-4)
    np.testing.assert_array_equal(scene.values, cube)


def test_hints_win(tmp_path):
    put(tmp_path, ENMAP, enmap_xml(CENTRES, [1e-4] * 8, [0] * 8))
    scene = open_scene(tmp_path, scale=0.5, unit="dn", nodata="none", bands="1-2")
    assert scene.attrs["nodata"] is None
    assert (scene.attrs["unit"], scene.attrs["scale"], scene.sizes["band"]) == ("dn", 0.5, 2)


@pytest.mark.parametrize(
    ("xml", "complaint"),
    [
        (enmap_xml(CENTRES[:7], [1e-4] * 7, [0] * 7), "has 8 bands, .* describes 7"),
        (enmap_xml(CENTRES, ["nan"] * 8, [0] * 8), "cannot be read"),
        ("<level_X/>", "describes no bands"),
        ("<level_X", "cannot be read"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><level_X/>', "cannot be read"),
    ],
)
def test_damaged_metadata_are_said(tmp_path, xml, complaint):
    put(tmp_path, ENMAP, xml)
    with pytest.raises(SceneError, match=complaint):
        open_scene(tmp_path)


def test_level_1b_is_refused_in_words(tmp_path):
    name = ENMAP.replace("L2A", "L1B")
    put(tmp_path, name, enmap_xml(CENTRES, [1e-4] * 8, [0] * 8))
    image = tmp_path / f"{name}-SPECTRAL_IMAGE.TIF"
    image.rename(tmp_path / f"{name}-SPECTRAL_IMAGE_VNIR.TIF")
    with pytest.raises(SceneError, match="Level 1B"):
        open_scene(tmp_path)


def test_an_image_without_its_metadata_stays_a_geotiff(tmp_path):
    put(tmp_path, ENMAP, "<level_X/>")
    (tmp_path / f"{ENMAP}-METADATA.XML").unlink()
    scene = open_scene(tmp_path / f"{ENMAP}-SPECTRAL_IMAGE.TIF")
    assert scene.attrs["unit"] == "dn"
