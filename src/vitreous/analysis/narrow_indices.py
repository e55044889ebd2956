"""Indices of narrow bands, each by its formula and source; ``R531`` is the reflectance at 531 nm.

The list of the package spyndex has those of broad bands; these need a spectrometer.
"""

from __future__ import annotations

from typing import NamedTuple


class Narrow(NamedTuple):
    """An index of narrow bands.

    Attributes:
        title: in words.
        formula: of reflectances at wavelengths in nm.
        source: where it was published.
    """

    title: str
    formula: str
    source: str


NARROW = {
    "PRI": Narrow(
        "Photochemical Reflectance Index",
        "(R531 - R570) / (R531 + R570)",
        "J. A. Gamon, J. Penuelas, C. B. Field (1992), Remote Sensing of Environment 41",
    ),
    "REIP": Narrow(
        "Red Edge Inflection Point, in nm",
        "700 + 40 * ((R670 + R780) / 2 - R700) / (R740 - R700)",
        "G. Guyot, F. Baret (1988), Spectral Signatures of Objects in Remote Sensing, ESA SP-287",
    ),
    "VOG1": Narrow(
        "Vogelmann Red Edge Index 1",
        "R740 / R720",
        "J. E. Vogelmann, B. N. Rock, D. M. Moss (1993), International Journal of Remote Sensing 14(8)",
    ),
    "PSSRa": Narrow(
        "Pigment Specific Simple Ratio for chlorophyll a",
        "R800 / R680",
        "G. A. Blackburn (1998), International Journal of Remote Sensing 19(4)",
    ),
    "CRI1": Narrow(
        "Carotenoid Reflectance Index 1",
        "1 / R510 - 1 / R550",
        "A. A. Gitelson et al. (2002), Photochemistry and Photobiology 75(3)",
    ),
    "CRI2": Narrow(
        "Carotenoid Reflectance Index 2",
        "1 / R510 - 1 / R700",
        "A. A. Gitelson et al. (2002), Photochemistry and Photobiology 75(3)",
    ),
    "ARI1": Narrow(
        "Anthocyanin Reflectance Index 1",
        "1 / R550 - 1 / R700",
        "A. A. Gitelson, M. N. Merzlyak, O. B. Chivkunova (2001), Photochemistry and Photobiology 74(1)",
    ),
    "NPQI": Narrow(
        "Normalized Phaeophytinization Index",
        "(R415 - R435) / (R415 + R435)",
        "J. D. Barnes et al. (1992), Environmental and Experimental Botany 32(2)",
    ),
    "WBI": Narrow(
        "Water Band Index",
        "R900 / R970",
        "J. Penuelas et al. (1997), International Journal of Remote Sensing 18(13)",
    ),
    "NDWI1240": Narrow(
        "Normalized Difference Water Index of vegetation",
        "(R860 - R1240) / (R860 + R1240)",
        "B.-C. Gao (1996), Remote Sensing of Environment 58",
    ),
    "CAI": Narrow(
        "Cellulose Absorption Index",
        "0.5 * (R2000 + R2200) - R2100",
        "P. L. Nagler et al. (2003), Remote Sensing of Environment 87",
    ),
    "NDNI": Narrow(
        "Normalized Difference Nitrogen Index",
        "(log(1 / R1510) - log(1 / R1680)) / (log(1 / R1510) + log(1 / R1680))",
        "L. Serrano, J. Penuelas, S. L. Ustin (2002), Remote Sensing of Environment 81",
    ),
    "NDLI": Narrow(
        "Normalized Difference Lignin Index",
        "(log(1 / R1754) - log(1 / R1680)) / (log(1 / R1754) + log(1 / R1680))",
        "L. Serrano, J. Penuelas, S. L. Ustin (2002), Remote Sensing of Environment 81",
    ),
}
