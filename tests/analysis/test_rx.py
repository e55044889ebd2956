import numpy as np
import pytest
import spectral
from sklearn.metrics import roc_auc_score

from mixed_scene import mixed_cube, mixed_scene, rows, smooth_spectra
from vitreous.analysis.rx import rx
from vitreous.errors import ConfigError, SceneError

pytestmark = pytest.mark.filterwarnings("error::UserWarning")


def close(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_global_scores_are_those_of_spectral_python():
    scene = mixed_scene(12, 150, 139)
    close(rx(scene).image.values[0], spectral.rx(rows(scene)))


@pytest.mark.parametrize(("window", "guard"), [(9, 1), (11, 5)])
def test_local_scores_are_those_of_spectral_python(window, guard):
    scene = mixed_scene(6, 26, 23)
    ours = rx(scene, window=window, guard=guard).image.values[0]
    close(ours, spectral.rx(rows(scene), window=(guard, window)))


@pytest.mark.parametrize(("window", "guard"), [(3, 1), (11, 5), (23, 9)])
def test_scores_by_the_local_mean_are_those_of_spectral_python(window, guard):
    scene = mixed_scene(6, 26, 23)
    covariance = spectral.calc_stats(rows(scene)).cov
    ours = rx(scene, window=window, guard=guard, covariance="global").image.values[0]
    close(ours, spectral.rx(rows(scene), window=(guard, window), cov=covariance))


@pytest.mark.parametrize("covariance", ["local", "global"])
def test_tiles_do_not_show(covariance, monkeypatch):
    scene = mixed_scene(5, 26, 23)
    settings = {"window": 7, "guard": 3, "covariance": covariance}
    whole = rx(scene, **settings).image.values
    monkeypatch.setattr("vitreous.analysis.streams.SIDE", 5)
    parts = rx(scene, **settings).image
    np.testing.assert_allclose(parts.values, whole, rtol=1e-6)
    np.testing.assert_allclose(
        parts[:, 3:20:4, 22:2:-3].values, whole[:, 3:20:4, 22:2:-3], rtol=1e-6
    )


@pytest.mark.parametrize(
    "settings", [{}, {"window": 9, "guard": 3}, {"window": 9, "guard": 3, "covariance": "global"}]
)
def test_units_and_the_order_of_bands_do_not_matter(settings):
    scene = mixed_scene(6, 20, 22)
    ours = rx(scene, **settings).image.values
    order = np.random.default_rng(0).permutation(6)
    np.testing.assert_allclose(rx(scene[order], **settings).image.values, ours, rtol=1e-5)
    scaled = mixed_scene(cube=scene.values.astype(np.float64) * 3000 + 7)
    np.testing.assert_allclose(rx(scaled, **settings).image.values, ours, rtol=1e-3)


@pytest.mark.parametrize(
    "settings", [{}, {"window": 9, "guard": 3}, {"window": 9, "guard": 3, "covariance": "global"}]
)
def test_implanted_targets_are_found(settings):
    rng = np.random.default_rng(1)
    cube = mixed_cube(smooth_spectra(4, 8), 40, 50, noise=0.01)
    truth = np.zeros((40, 50), bool)
    truth[rng.integers(5, 35, 12), rng.integers(5, 45, 12)] = True
    cube[:, truth] = 0.7 * cube[:, truth] + 0.3 * smooth_spectra(5, 8, seed=9)[4][:, None]
    scores = rx(mixed_scene(cube=cube), **settings).image.values[0]
    assert roc_auc_score(truth.ravel(), scores.ravel()) > 0.99


def test_a_guard_keeps_the_anomaly_out_of_its_own_background():
    cube = mixed_cube(smooth_spectra(4, 6), 30, 30, noise=0.01)
    cube[:, 14:17, 14:17] += 0.3
    scores = [
        rx(mixed_scene(cube=cube), window=13, guard=guard).image.values[0, 15, 15]
        for guard in (1, 5)
    ]
    assert scores[1] > 2 * scores[0]


@pytest.mark.parametrize("covariance", ["local", "global"])
def test_invalid_pixels_take_no_part(covariance):
    cube = mixed_cube(smooth_spectra(4, 5), 20, 24)
    cube[:, 4:7, 9:12] = np.nan
    found = rx(mixed_scene(cube=cube), window=7, guard=3, covariance=covariance).image.values[0]
    assert np.isnan(found[4:7, 9:12]).all()
    assert np.isfinite(found).sum() == 20 * 24 - 9
    row, column = 8, 10
    around = np.full((7, 7), True)
    around[2:5, 2:5] = False
    window = cube[:, 5:12, 7:14].astype(float)
    chosen = window[:, around & np.isfinite(window[0])].T
    apart = cube[:, row, column] - chosen.mean(0)
    valid = cube[:, np.isfinite(cube[0])].astype(float)
    spread = np.cov(chosen, rowvar=False) if covariance == "local" else np.cov(valid)
    assert found[row, column] == pytest.approx(apart @ np.linalg.solve(spread, apart), rel=1e-4)


def test_few_components_are_quick_and_near_in_what_they_find():
    scene = mixed_scene(12, 40, 50, count=3)
    reduced = rx(scene, window=9, components=2)
    assert reduced.facts["degrees_of_freedom"] == 2
    centred = rows(scene) - rows(scene).mean(axis=(0, 1))
    _, vectors = np.linalg.eigh(np.cov(centred.reshape(-1, 12), rowvar=False))
    expected = spectral.rx(centred @ vectors[:, -2:], window=(1, 9))
    close(reduced.image.values[0], expected)


def test_a_normal_background_exceeds_the_threshold_as_often_as_said():
    cube = np.random.default_rng(0).normal(size=(5, 200, 200)).astype(np.float32)
    result = rx(mixed_scene(cube=cube))
    above = (result.image.values > result.facts["threshold_of_a_normal_background"]).mean()
    assert above == pytest.approx(1e-3, abs=5e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": 4}, "window of 4 pixels with a guard of 1 is not possible"),
        ({"window": 1}, "not possible"),
        ({"window": 9, "guard": 2}, "not possible"),
        ({"window": 9, "guard": 9}, "not possible"),
        ({"window": 41}, "does not fit into mixed, which has 40 x 50"),
        ({"window": 3}, "holds 8 pixels, too few for the covariance of 12 bands"),
        ({"window": 9, "covariance": "loc"}, "Unknown covariance: loc"),
        ({"components": 13}, "13 components"),
    ],
)
def test_impossible_windows_are_refused(settings, message):
    with pytest.raises((ConfigError, SceneError), match=message):
        rx(mixed_scene(12), **settings)
