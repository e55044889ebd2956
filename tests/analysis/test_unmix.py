import itertools

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment, nnls

from mixed_scene import mixed_cube, mixed_scene, smooth_spectra
from vitreous.analysis.abundances import fcls
from vitreous.analysis.endmembers import signal_dimensions
from vitreous.analysis.unmix import unmix
from vitreous.errors import ConfigError, SceneError
from vitreous.scenes.spectra import Spectra, write_spectra


def naive(spectra, endmembers, weight=1e4):
    """Non-negative least squares with a row that says that shares sum to one."""
    stacked = np.vstack([endmembers.T, weight * np.ones(len(endmembers))])
    return np.stack([nnls(stacked, np.append(one, weight))[0] for one in spectra])


@pytest.mark.parametrize(("count", "bands"), [(2, 5), (3, 10), (6, 40), (9, 9)])
@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_abundances_are_those_of_a_naive_solver(count, bands, noise):
    rng = np.random.default_rng(count)
    endmembers = rng.uniform(0.1, 0.9, (count, bands))
    shares = rng.dirichlet(np.full(count, 0.4), 300)
    spectra = shares @ endmembers + rng.normal(0, noise, (300, bands))
    found = fcls(spectra, endmembers)
    np.testing.assert_allclose(found, naive(spectra, endmembers), atol=1e-5)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-12)
    assert found.min() >= 0
    if not noise:
        np.testing.assert_allclose(found, shares, atol=1e-6)


@pytest.mark.parametrize("factor", [1e-4, 1e4])
def test_abundances_do_not_depend_on_units(factor):
    rng = np.random.default_rng(0)
    endmembers, spectra = rng.random((4, 9)), rng.random((200, 9))
    np.testing.assert_allclose(
        fcls(spectra * factor, endmembers * factor), fcls(spectra, endmembers), atol=1e-9
    )


def test_endmembers_at_the_spectra_themselves_are_whole():
    endmembers = smooth_spectra(5, 12)
    np.testing.assert_allclose(fcls(endmembers, endmembers), np.eye(5), atol=1e-9)


@pytest.mark.parametrize("count", [2, 3, 5, 8])
@pytest.mark.parametrize("noise", [0.0, 1e-4, 1e-2])
def test_the_number_of_endmembers_is_told(count, noise):
    rng = np.random.default_rng(count)
    spectra = rng.dirichlet(np.ones(count), 5000) @ smooth_spectra(count, 60)
    spectra = (spectra + rng.normal(0, noise, spectra.shape)).astype(np.float32).astype(float)
    assert signal_dimensions(spectra.T @ spectra / len(spectra)) == count
    order, scaled = rng.permutation(60), spectra * 1e4
    assert signal_dimensions(scaled[:, order].T @ scaled[:, order] / len(spectra)) == count


@pytest.mark.parametrize(("noise", "near"), [(0.0, 1e-4), (0.02, 0.15)])
@pytest.mark.parametrize("count", [3, 5])
@pytest.mark.parametrize("method", ["nfindr", "vca"])
def test_pure_pixels_and_their_shares_are_found(noise, near, count, method):
    truth = smooth_spectra(count, 40)
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.ones(count), 3000)
    places = rng.permutation(3000)[:count]
    shares[places] = np.eye(count)
    values = shares @ truth + rng.normal(0, noise, (3000, 40))
    scene = mixed_scene(cube=values.T.reshape(40, 50, 60).astype(np.float32))
    result = unmix(scene, endmembers=count, method=method)
    found = result.spectra.values
    distance = np.abs(found[:, None] - truth[None]).max(axis=2)
    ours, theirs = linear_sum_assignment(distance)
    assert distance[ours, theirs].max() < near
    maps = result.image.values[:count].reshape(count, -1)
    assert np.sqrt(((maps[ours] - shares.T[theirs]) ** 2).mean()) < near
    if not noise:
        pixels = np.array(result.facts["pixels"])
        assert set(pixels[:, 0] * 60 + pixels[:, 1]) == set(places)
        assert result.facts["endmembers_told_apart"] == count


def test_the_largest_volume_is_that_of_a_naive_search():
    scene = mixed_scene(20, 6, 7, count=3)
    values = scene.values.reshape(20, -1).T.astype(float)
    centred = values - values.mean(axis=0)
    flat = centred @ np.linalg.eigh(centred.T @ centred)[1][:, :-3:-1]
    places = np.array(list(itertools.combinations(range(42), 3)))
    corners = flat[places]
    volumes = np.abs(np.linalg.det(corners[:, 1:] - corners[:, :1]))
    found = np.array(unmix(scene, endmembers=3).facts["pixels"])
    assert set(found[:, 0] * 7 + found[:, 1]) == set(places[volumes.argmax()])


def test_as_many_endmembers_as_the_scene_tells_apart_are_found():
    result = unmix(mixed_scene(30, count=4))
    assert len(result.spectra.values) == 4
    assert list(result.image["band_name"].values)[-1] == "RMSE"
    assert result.facts["endmembers_told_apart"] == 4


def test_maps_sum_to_one_and_their_error_is_that_of_the_mixture():
    scene = mixed_scene(20, count=4)
    result = unmix(scene, endmembers=3)
    maps = result.image.values
    np.testing.assert_allclose(maps[:3].sum(axis=0), 1, atol=1e-5)
    again = np.einsum("kyx,kb->byx", maps[:3], result.spectra.values)
    error = np.sqrt(((scene.values - again) ** 2).mean(axis=0))
    np.testing.assert_allclose(maps[3], error, atol=1e-5)


def test_tiles_seeds_and_shuffled_bands_give_the_same_pixels(monkeypatch):
    scene = mixed_scene(20, count=4)
    whole = unmix(scene, endmembers=4)
    order = np.random.default_rng(0).permutation(20)
    shuffled = unmix(scene[order], endmembers=4)
    monkeypatch.setattr("vitreous.analysis.streams.SIDE", 13)
    parts = unmix(scene, endmembers=4)
    assert parts.facts["pixels"] == whole.facts["pixels"]
    np.testing.assert_allclose(parts.image.values, whole.image.values, atol=1e-5)
    assert sorted(shuffled.facts["pixels"]) == sorted(whole.facts["pixels"])


def test_invalid_pixels_and_bad_bands_take_no_part():
    whole = mixed_scene(20, count=3)
    cube = np.concatenate([whole.values, np.full((1, 40, 50), 7e4, np.float32)])
    cube[:, 30:] = -9999
    scene = mixed_scene(
        cube=cube, nodata=-9999, good_band=[True] * 20 + [False],
        wavelengths=[*whole["wavelength"].values, 2400],
    )  # fmt: skip
    result = unmix(scene, endmembers=3)
    expected = unmix(whole[:, :30], endmembers=3)
    np.testing.assert_allclose(result.image.values[:, :30], expected.image.values, atol=1e-5)
    assert np.isnan(result.image.values[:, 30:]).all()


def test_given_endmembers_are_used(tmp_path):
    truth = smooth_spectra(3, 20)
    scene = mixed_scene(cube=mixed_cube(truth, noise=0))
    centres = scene["wavelength"].values
    write_spectra(Spectra(truth, centres, ["soil", "grass", "shade"]), tmp_path / "lib.csv")
    by_library = unmix(scene, library=tmp_path / "lib.csv")
    by_pixels = unmix(scene, pixels=[(0, 0), (0, 1), (0, 2)])
    np.testing.assert_allclose(by_library.image.values, by_pixels.image.values, atol=1e-4)
    np.testing.assert_allclose(by_library.image.values[:3, 0, :3], np.eye(3), atol=1e-4)
    assert by_library.facts["endmembers"] == ["soil", "grass", "shade"]


def test_more_endmembers_than_the_scene_tells_apart_are_refused():
    scene = mixed_scene(30, count=4)
    with pytest.raises(ConfigError, match=r"9 endmembers are more than mixed tells apart: 4"):
        unmix(scene, endmembers=9)
    with pytest.raises(ConfigError, match="Unknown method: ppi"):
        unmix(scene, endmembers=3, method="ppi")
    with pytest.raises(ConfigError, match=r"Choose two or more"):
        unmix(scene, endmembers=1)
    flat = np.random.default_rng(0).normal(0, 1, (6, 40, 50))
    with pytest.raises(SceneError, match="nothing to unmix"):
        unmix(mixed_scene(cube=flat))


def test_endmembers_that_are_mixtures_of_others_are_refused(tmp_path):
    truth = smooth_spectra(3, 20)
    scene = mixed_scene(cube=mixed_cube(truth))
    both = np.concatenate([truth, truth[:2].mean(axis=0, keepdims=True)])
    names = ["a", "b", "c", "half a, half b"]
    write_spectra(Spectra(both, scene["wavelength"].values, names), tmp_path / "lib.csv")
    with (
        pytest.warns(UserWarning, match="4 endmembers are more than mixed tells apart"),
        pytest.raises(ConfigError, match="weighted mean of others"),
    ):
        unmix(scene, library=tmp_path / "lib.csv")
    with pytest.raises(ConfigError, match="two spectra or more"):
        unmix(scene, pixels=[(0, 0)])
    with pytest.raises(ConfigError, match="follows from the spectra"):
        unmix(scene, endmembers=3, pixels=[(0, 0), (0, 1)])
