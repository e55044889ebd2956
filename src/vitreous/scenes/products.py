"""Products that open as they are downloaded, and what is read of each: for the documentation and for messages."""

from __future__ import annotations

from typing import NamedTuple


class Product(NamedTuple):
    """What is read of a product.

    Attributes:
        name: as people call it.
        opens: what to give: a folder, a file.
        facts: of ``wavelength``, ``fwhm``, ``good_band``, ``nodata`` and ``place`` (CRS and transform), those that are read.
        values: what they are after reading.
        masks: what hides pixels besides no-data, and the hint for it.
    """

    name: str
    opens: str
    facts: tuple[str, ...]
    values: str
    masks: str = ""


_ALL = ("wavelength", "fwhm", "good_band", "nodata", "place")
_BANDS = ("wavelength", "fwhm", "nodata", "place")
_SWATH = ("wavelength", "fwhm", "good_band", "nodata")
FACTS = {
    "wavelength": "wavelengths",
    "fwhm": "fwhm",
    "good_band": "bad bands",
    "nodata": "no-data",
    "place": "CRS",
}
PRODUCTS = (
    Product("Sentinel-2 L1C, L2A", "folder, band file", _BANDS, "reflectance", "`mask=scl`"),
    Product(
        "Landsat 1-9 Collection 2, L1, L2",
        "folder, `*_MTL.txt`, `.json`, `.xml`",
        _BANDS,
        "reflectance",
        "`mask=qa`",
    ),
    Product("EnMAP L1C, L2A", "folder, `METADATA.XML`, image", _ALL, "radiance, reflectance"),
    Product("DESIS L1C, L2A", "folder, `METADATA.xml`, image", _ALL, "radiance, reflectance"),
    Product("PRISMA L1, L2B, L2C", "`.he5`", _SWATH, "radiance, reflectance"),
    Product("PRISMA L2D", "`.he5`", _ALL, "reflectance"),
    Product("EMIT L1B, L2A", "`.nc`", _ALL, "radiance, reflectance"),
    Product("Tanager, basic", "`.h5`", _SWATH, "radiance, reflectance", "`nodata_pixels`"),
    Product("Tanager, ortho", "`.h5`", _ALL, "radiance, reflectance", "`nodata_pixels`"),
    Product("PACE OCI L1B", "`.nc`", _SWATH, "reflectance"),
    Product("PACE OCI L2 (SFREFL, AOP)", "`.nc`", ("wavelength", "fwhm", "nodata"), "reflectance"),
    Product("PlanetScope, 4 and 8 bands", "folder, image", _BANDS, "reflectance", "`mask=udm2`"),
    Product("Hyperion L1T", "folder", _ALL, "radiance"),
    Product("NEON AOP", "`.h5`", _BANDS, "reflectance"),
    Product("AVIRIS-NG", "ENVI header or image", _ALL, "radiance, reflectance"),
    Product("AVIRIS-3, orthorectified", "`.nc`", _BANDS, "radiance, reflectance"),
    Product("HySpex, Headwall", "ENVI header or image", ("wavelength",), "as stored"),
    Product("Specim IQ", "ENVI header or image", ("wavelength",), "reflectance"),
    Product("Sentinel-1 GRD", "folder", ("nodata",), "as stored"),
    Product("Sentinel-1 RTC", "folder", ("nodata", "place"), "as stored"),
)


def products_table() -> str:
    """Return the table of the documentation, in Markdown."""
    head = ["product", "opened by", *FACTS.values(), "values", "masks"]
    rows = [
        [p.name, p.opens, *("yes" if f in p.facts else "" for f in FACTS), p.values, p.masks]
        for p in PRODUCTS
    ]
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
