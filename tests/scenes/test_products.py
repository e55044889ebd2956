"""The table of products in the documentation says what is read: each is written as its maker does, and opened."""

import h5py
import numpy as np
import pytest
import test_dlr
import test_emit
import test_hyperion
import test_landsat
import test_makers
import test_pace
import test_planet
import test_prisma
import test_sentinel1
import test_sentinel2
import test_tanager

from vitreous import open_scene
from vitreous.scenes.products import PRODUCTS, products_table


def sentinel_2(folder):
    product = folder / "S2B_MSIL2A_20230216T102101_N0509_R065_T33UUU_20230216T130000.SAFE"
    test_sentinel2.put_product(product)
    return product


def landsat(folder):
    test_landsat.put_product(folder)
    return folder


def enmap(folder):
    xml = test_dlr.enmap_xml(test_dlr.CENTRES, [1e-4] * 8, [0] * 8)
    test_dlr.put(folder, test_dlr.ENMAP, xml)
    return folder


def desis(folder):
    xml = test_dlr.desis_xml([401.3 + 2.55 * k for k in range(8)], [1e-4] * 8, [0] * 8)
    test_dlr.put(folder, test_dlr.DESIS, xml, nodata=-32768)
    return folder


def prisma(level):
    def make(folder):
        test_prisma.write(folder / "PRS.he5", level)
        return folder / "PRS.he5"

    return make


def emit(folder):
    test_emit.write_emit(folder / "EMIT.nc")
    return folder / "EMIT.nc"


def tanager(kind):
    def make(folder):
        test_tanager.write(
            folder / "a.h5", kind, framing=test_tanager.json.dumps(test_tanager.FRAMING)
        )
        return folder / "a.h5"

    return make


def pace(write):
    def make(folder):
        write(folder / "PACE.nc")
        return folder / "PACE.nc"

    return make


def planet(folder):
    test_planet.put_scene(folder)
    return folder


def hyperion(folder):
    test_hyperion.put_product(folder)
    return folder


def neon(folder):
    with h5py.File(folder / "NEON.h5", "w") as file:
        cube = np.random.default_rng(0).integers(0, 9000, (20, 24, 12)).astype("i2")
        values = file.create_dataset("SITE/Reflectance/Reflectance_Data", data=cube)
        values.attrs["Data_Ignore_Value"], values.attrs["Scale_Factor"] = -9999.0, 10000.0
        spectra = file.create_group("SITE/Reflectance/Metadata/Spectral_Data")
        spectra["Wavelength"], spectra["FWHM"] = np.linspace(380, 2500, 12), np.full(12, 5.0)
        for name in ("Wavelength", "FWHM"):
            spectra[name].attrs["Units"] = "nanometers"
        place = file.create_group("SITE/Reflectance/Metadata/Coordinate_System")
        place["Map_Info"] = (
            "UTM,  1.000,  1.000,  257000.00,  4112000.00,1.0,1.0,11,North,WGS-84,units=Meters, 0"
        )
        place["EPSG Code"] = "32611"
    return folder / "NEON.h5"


def envi(name):
    def make(folder):
        return test_makers.write_envi(folder, name)

    return make


def aviris_3(folder):
    test_makers.write_aviris_3(folder / "AV3.nc", "reflectance")
    return folder / "AV3.nc"


def sentinel_1(name, nodata, place):
    def make(folder):
        for polarisation in ("vv", "vh"):
            values = np.ones((5, 6), "f4" if place else "u2")
            test_sentinel1.put(folder / name.format(polarisation), values, place, nodata)
        return folder

    return make


MAKERS = {
    "Sentinel-2 L1C, L2A": sentinel_2,
    "Landsat 1-9 Collection 2, L1, L2": landsat,
    "EnMAP L1C, L2A": enmap,
    "DESIS L1C, L2A": desis,
    "PRISMA L1, L2B, L2C": prisma("1"),
    "PRISMA L2D": prisma("2D"),
    "EMIT L1B, L2A": emit,
    "Tanager, basic": tanager("SWATHS"),
    "Tanager, ortho": tanager("GRIDS"),
    "PACE OCI L1B": pace(test_pace.write_level_1b),
    "PACE OCI L2 (SFREFL, AOP)": pace(test_pace.write_level_2),
    "PlanetScope, 4 and 8 bands": planet,
    "Hyperion L1T": hyperion,
    "NEON AOP": neon,
    "AVIRIS-NG": envi("ang20180814t224053_corr_v2r2_img"),
    "AVIRIS-3, orthorectified": aviris_3,
    "HySpex, Headwall": envi("HySpex_SWIR_384_SN3127_raw.hyspex"),
    "Specim IQ": envi("REFLECTANCE_2018-09-11_001.dat"),
    "Sentinel-1 GRD": sentinel_1("measurement/s1a-iw-grd-{}-001.tiff", None, None),
    "Sentinel-1 RTC": sentinel_1("S1A_RTC30_{}.tif", 0, test_sentinel1.PLACE),
}


@pytest.mark.parametrize("product", PRODUCTS, ids=lambda product: product.name)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_the_table_says_is_read(tmp_path, product):
    scene = open_scene(MAKERS[product.name](tmp_path))
    found = {name for name in ("wavelength", "fwhm", "good_band") if name in scene.coords}
    found |= {"nodata"} if scene.attrs["nodata"] is not None else set()
    found |= {"place"} if scene.rio.crs is not None else set()
    assert found == set(product.facts)
    unit = scene.attrs["unit"]
    assert unit in product.values if unit != "dn" else product.values == "as stored"


def test_every_product_has_a_row():
    assert sorted(MAKERS) == sorted(product.name for product in PRODUCTS)
    assert len(products_table().splitlines()) == len(PRODUCTS) + 2
