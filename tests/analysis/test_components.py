import numpy as np
import pytest
import spectral

from mixed_scene import mixed_cube, mixed_scene, rows, smooth_spectra
from vitreous.analysis import statistics
from vitreous.analysis.ica import ica
from vitreous.analysis.mnf import mnf
from vitreous.analysis.pca import pca
from vitreous.errors import ConfigError, SceneError
from vitreous.scenes.cube import make_scene

pytestmark = pytest.mark.filterwarnings("error::UserWarning")


@pytest.fixture(scope="module")
def large():
    """A scene of several tiles in both directions, whose sizes are no multiples of theirs."""
    return mixed_scene(14, 150, 139, count=6)


def same(ours, theirs, tolerance=1e-5):
    """Equal up to the sign of each component, relative to the largest value."""
    theirs = theirs * np.sign((ours * theirs).sum(axis=(1, 2), keepdims=True))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * np.abs(theirs).max())


def test_pca_is_that_of_spectral_python(large):
    reference = spectral.principal_components(rows(large))
    result = pca(large, components=5)
    same(result.image.values, reference.transform(rows(large))[..., :5].transpose(2, 0, 1))
    np.testing.assert_allclose(result.facts["variances"], reference.eigenvalues[:5], rtol=1e-5)


def test_mnf_is_that_of_spectral_python(large):
    image = rows(large)
    reference = spectral.mnf(spectral.calc_stats(image), spectral.noise_from_diffs(image))
    result = mnf(large, components=6)
    same(result.image.values, reference.reduce(image, num=6).transpose(2, 0, 1))
    expected = reference.napc.eigenvalues[:6] - 1
    np.testing.assert_allclose(result.facts["signal_to_noise"], expected, rtol=1e-5)


def test_components_are_in_the_scenes_own_files_terms(large):
    result = pca(large, components=3)
    assert list(result.image["band_name"].values) == ["PC 1", "PC 2", "PC 3"]
    np.testing.assert_allclose(result.spectra.wavelengths, large["wavelength"].values)
    centred = rows(large) - rows(large).mean(axis=(0, 1))
    np.testing.assert_allclose(
        centred @ result.spectra.values.T, result.image.values.transpose(1, 2, 0), atol=1e-5
    )


def test_independent_sources_are_found():
    rng = np.random.default_rng(0)
    sources = np.stack([rng.laplace(size=(60, 70)), rng.uniform(-1, 1, (60, 70))])
    mixing = smooth_spectra(2, 8)
    cube = np.einsum("kyx,kb->byx", sources, mixing) + rng.normal(0, 1e-4, (8, 60, 70))
    found = ica(mixed_scene(cube=cube.astype(np.float32)), components=2).image.values
    match = np.abs(np.corrcoef(found.reshape(2, -1), sources.reshape(2, -1))[:2, 2:])
    assert match.max(axis=1).min() > 0.99
    assert match[0, 0] > 0.99  # the Laplacian source has the larger kurtosis


@pytest.mark.parametrize("analysis", [pca, mnf, ica])
def test_the_order_of_the_bands_does_not_matter(analysis):
    scene = mixed_scene(9)
    order = np.random.default_rng(1).permutation(9)
    ours = analysis(scene, components=3).image.values
    np.testing.assert_allclose(
        analysis(scene[order], components=3).image.values, ours, atol=2e-3 * np.abs(ours).max()
    )


@pytest.mark.parametrize(("analysis", "factor"), [(pca, 10_000), (mnf, 1), (ica, 1)])
def test_a_change_of_units_scales_pca_and_nothing_else(analysis, factor):
    scene = mixed_scene(9)
    scaled = mixed_scene(cube=(scene.values.astype(np.float64) * 10_000).astype(np.float32))
    ours = analysis(scene, components=3).image.values * factor
    theirs = analysis(scaled, components=3).image.values
    np.testing.assert_allclose(theirs, ours, atol=2e-3 * np.abs(ours).max())


@pytest.mark.parametrize("analysis", [pca, mnf, ica])
def test_invalid_pixels_and_bad_bands_take_no_part(analysis):
    whole = mixed_scene(9, 40, 50)
    cube = np.concatenate([whole.values, np.full((1, 40, 50), 1e6, np.float32)])
    cube[:, 30:] = -9999
    good = [True] * 9 + [False]
    centres = [*whole["wavelength"].values, 2400]
    scene = mixed_scene(cube=cube, nodata=-9999, good_band=good, wavelengths=centres)
    result = analysis(scene, components=3)
    expected = analysis(whole[:, :30], components=3).image.values
    np.testing.assert_allclose(result.image.values[:, :30], expected, rtol=1e-4, atol=1e-5)
    assert np.isnan(result.image.values[:, 30:]).all()
    assert result.facts["valid_pixels"] == 1500
    assert result.spectra.wavelengths.max() < 2301


def test_the_sample_of_ica_does_not_depend_on_tiles(monkeypatch):
    scene = mixed_scene(6, 40, 50)
    monkeypatch.setattr("vitreous.analysis.ica.SAMPLE", 700)
    whole = ica(scene, components=3)
    monkeypatch.setattr("vitreous.analysis.streams.SIDE", 7)
    parts = ica(scene, components=3)
    np.testing.assert_allclose(parts.image.values, whole.image.values, atol=1e-3)
    assert whole.facts["sample"] == 700


def test_samples_are_drawn_evenly():
    sample = statistics.Sample(500, 100, seed=3)
    places = np.argwhere(np.ones((100, 100)))
    sample.add(places.astype(float), places)
    assert len(sample.spectra) == 500
    np.testing.assert_allclose(sample.spectra.mean(axis=0), [49.5, 49.5], atol=5)


@pytest.mark.parametrize("analysis", [pca, mnf, ica])
@pytest.mark.parametrize("components", [0, 13])
def test_impossible_numbers_of_components_are_refused(analysis, components):
    with pytest.raises(ConfigError, match=r"Choose 1 to 12\."):
        analysis(mixed_scene(12), components=components)


@pytest.mark.parametrize("analysis", [pca, mnf, ica])
def test_scenes_that_say_nothing_are_refused(analysis):
    with pytest.raises(SceneError, match="no valid pixel"):
        analysis(make_scene(np.full((4, 9, 9), np.nan, np.float32)))
    with pytest.raises(SceneError, match="same spectrum"):
        analysis(make_scene(np.ones((4, 9, 9), np.float32)))
    with pytest.raises(SceneError, match="too few for the covariance"):
        analysis(make_scene(np.random.default_rng(0).random((12, 3, 4))))


@pytest.mark.parametrize("kind", ["twice", "flat"])
def test_mnf_leaves_out_directions_without_noise(kind):
    cube = mixed_cube(smooth_spectra(4, 8))
    more = cube[:1] if kind == "twice" else np.ones((1, *cube.shape[1:]), np.float32)
    alone = mnf(mixed_scene(cube=cube))
    with pytest.warns(UserWarning, match=r"1 of 9 directions .* no noise"):
        found = mnf(mixed_scene(cube=np.concatenate([cube, more])))
    assert found.image.shape == alone.image.shape
    np.testing.assert_allclose(
        found.facts["signal_to_noise"], alone.facts["signal_to_noise"], rtol=1e-6
    )
    assert found.summary == alone.summary
    with pytest.warns(UserWarning), pytest.raises(ConfigError, match=r"Choose 1 to 8\."):
        mnf(mixed_scene(cube=np.concatenate([cube, more])), components=9)


def test_mnf_of_a_scene_without_any_noise_is_refused():
    rows, columns = np.indices((12, 12))
    stripes = np.stack([rows - columns, 2.0 * (rows - columns)])
    with pytest.raises(SceneError, match="have no noise"):
        mnf(make_scene(stripes.astype(np.float32)))


def test_mnf_warns_where_chance_alone_shows_signal(recwarn):
    rng = np.random.default_rng(0)
    with pytest.warns(UserWarning, match=r"400 valid pixels for 60 bands; with fewer than 10"):
        found = mnf(make_scene(rng.normal(size=(60, 20, 20)).astype(np.float32)))
    assert found.facts["above_noise"] > 0  # of white noise
    recwarn.clear()
    assert (
        mnf(make_scene(rng.normal(size=(4, 20, 20)).astype(np.float32))).facts["above_noise"] == 0
    )
    assert not recwarn.list


def test_ica_refuses_more_components_than_the_scene_varies_in():
    cube = mixed_cube(smooth_spectra(3, 8), noise=0)
    with pytest.raises(ConfigError, match="varies in 2 directions"):
        ica(mixed_scene(cube=cube), components=4)
