"""Analyses where the truth is known: Jasper Ridge's abundances and two Landsat pairs."""

import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import roc_auc_score

import vitreous
from vitreous.analysis.abundances import fcls
from vitreous.scenes.cube import make_scene

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning")]
PAIRS = {
    "Taizhou": ("2000TM", "2003TM", 0.98),
    "Nanjing": ("LT51200382000124BJC00_Nanjing", "LT51200382002193BJC00_Nanjing", 0.94),
}


@pytest.fixture(scope="module")
def jasper(shared_data):
    stored = loadmat(shared_data / "jasper_ridge" / "jasperRidge2_R198_with_gt.mat")
    return stored["Y"] / 5000.0, stored["A"], stored["M"].T


def test_published_endmembers_give_nearly_the_published_abundances(jasper):
    values, truth, pure = jasper
    found = fcls(values.T, pure)
    assert np.sqrt(((found.T - truth) ** 2).mean()) < 0.09


@pytest.mark.parametrize("seed", [0, 1])
def test_endmembers_of_jasper_ridge_are_found(jasper, seed):
    values, truth, _ = jasper
    cube = values.astype(np.float32).reshape(198, 100, 100, order="F")
    result = vitreous.analyse(
        "unmix", make_scene(cube, unit="reflectance"), endmembers=4, seed=seed
    )
    maps = result.image.values[:4].transpose(0, 2, 1).reshape(4, -1)
    error = ((maps[:, None] - truth[None]) ** 2).mean(axis=2)
    assert np.sqrt(error[linear_sum_assignment(error)].mean()) < 0.17
    match = np.corrcoef(maps, truth)[:4, 4:]
    assert match[linear_sum_assignment(-match)].min() > 0.85
    assert 4 <= result.facts["endmembers_told_apart"] <= 30


@pytest.mark.parametrize("place", PAIRS)
def test_changes_of_landsat_pairs_are_found(place, shared_data):
    *dates, least = PAIRS[place]
    home = shared_data / "landsat_change" / place
    changed, same = (
        np.asarray(Image.open(home / f"{name}.bmp").convert("L")) > 0
        for name in ("change", "unchanged")
    )
    known = changed | same
    result = vitreous.analyse("cva", *(vitreous.open_scene(home / date) for date in dates))
    magnitude = result.image.values[0]
    assert roc_auc_score(changed[known], magnitude[known]) > least
    above = magnitude > result.facts["threshold_otsu"]
    assert (above == changed)[known].mean() > 0.85
