"""What is done to single spectra: invariances that define it, reference values, and exports."""

import numpy as np
import pytest
import torch
from scipy.signal import savgol_filter
from scipy.spatial import ConvexHull

from vitreous.errors import ModelError
from vitreous.layers.preprocess import Preprocess, noise_fractions
from vitreous.layers.spectra import KINDS, Spectra

BANDS = 24
CHANGING = [kind for kind in KINDS if kind != "none"]
WAVELENGTHS = np.sort(np.random.default_rng(1).uniform(400, 2400, BANDS))


def spectra(count=40, bands=BANDS, seed=0):
    """Smooth positive spectra with noise, ``(count, bands)``."""
    rng = np.random.default_rng(seed)
    waves = np.cos(np.linspace(0, 5, bands) * rng.uniform(0.5, 2, (count, 1)))
    return (0.4 + 0.2 * waves + rng.uniform(0, 0.05, (count, bands))).astype("f4")


def change(kind, x, wavelengths=WAVELENGTHS):
    module = Spectra.of(kind, x.shape[1], wavelengths)
    return module(torch.from_numpy(np.ascontiguousarray(x, dtype="f4"))[:, :, None, None])[
        ..., 0, 0
    ].numpy()


def hull_of(spectrum, wavelengths):
    """Return the upper hull at the wavelengths, from the corners that qhull finds."""
    below = min(spectrum.min(), 0) - 1
    ends = [(wavelengths.min(), below), (wavelengths.max(), below)]
    points = np.array([*zip(wavelengths, spectrum, strict=True), *ends])
    corners = [p for p in ConvexHull(points).vertices if p < len(spectrum)]
    order = sorted(corners, key=lambda p: wavelengths[p])
    return np.interp(wavelengths, wavelengths[order], spectrum[order])


def test_snv_forgets_gain_and_offset():
    x = spectra()
    found = change("snv", x)
    np.testing.assert_allclose(found.mean(1), 0, atol=1e-5)
    np.testing.assert_allclose(found.std(1), 1, atol=1e-5)
    gain, offset = np.random.default_rng(2).uniform(0.2, 5, (2, len(x), 1))
    np.testing.assert_allclose(change("snv", x * gain + offset), found, atol=2e-4)


@pytest.mark.parametrize("kind", ["snv", "continuum", "brightness"])
def test_brightness_changes_nothing(kind):
    x = spectra()
    gain = np.random.default_rng(3).uniform(1e-3, 1e4, (len(x), 1))
    np.testing.assert_allclose(change(kind, x * gain), change(kind, x), atol=2e-4)
    assert not Spectra(kind, BANDS).keeps_gain


def test_brightness_leaves_the_angle():
    found = change("brightness", spectra())
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


def test_the_continuum_is_what_qhull_finds():
    x = spectra()
    found = change("continuum", x)
    assert found.max() <= 1
    for row, own in zip(found, x, strict=True):
        hull = hull_of(own.astype(float), WAVELENGTHS)
        np.testing.assert_allclose(row, own / hull, atol=1e-5)
        corners = np.isclose(own, hull, rtol=1e-9)
        assert corners[[0, -1]].all()
        np.testing.assert_allclose(row[corners], 1, atol=1e-6)


def test_a_straight_spectrum_is_its_own_continuum():
    line = (0.2 + WAVELENGTHS[None] * 1e-4).astype("f4")
    np.testing.assert_allclose(change("continuum", line), 1, atol=1e-6)


def test_the_derivative_is_that_of_savitzky_and_golay():
    x, step = spectra(), 10.0
    found = change("derivative", x, np.arange(BANDS) * step + 400)
    expected = savgol_filter(x.astype(float), 7, 2, deriv=1, delta=step, mode="interp")
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_the_derivative_knows_the_distances_of_bands():
    """Of a parabola over irregular wavelengths with a gap it is exact; by position it would not be."""
    nm = np.sort(np.concatenate([WAVELENGTHS[:12], WAVELENGTHS[12:] + 400])) / 1000
    parabola = (0.1 + 0.3 * nm - 0.05 * nm**2)[None]
    np.testing.assert_allclose(change("derivative", parabola, nm)[0], 0.3 - 0.1 * nm, atol=2e-4)
    assert np.abs(change("derivative", parabola, None)[0] - (0.3 - 0.1 * nm)).max() > 0.1


@pytest.mark.parametrize("kind", CHANGING)
def test_bands_in_another_order_change_nothing(kind):
    x, order = spectra(), np.random.default_rng(4).permutation(BANDS)
    shuffled = change(kind, x[:, order], WAVELENGTHS[order])
    np.testing.assert_allclose(shuffled, change(kind, x)[:, order], atol=1e-5)


@pytest.mark.parametrize("kind", CHANGING)
@pytest.mark.parametrize("reduction", ["none", "pca"])
def test_another_unit_gives_the_same_channels(kind, reduction):
    x = spectra()
    fitted = [
        Preprocess.fit(
            x * scale, spectra=kind, wavelengths=WAVELENGTHS, reduction=reduction, components=4
        )
        for scale in (1, 1e4)
    ]
    ours, theirs = (
        one(torch.from_numpy(x * np.float32(scale))[:, :, None, None])
        for one, scale in zip(fitted, (1, 1e4), strict=True)
    )
    torch.testing.assert_close(ours, theirs, atol=5e-3, rtol=0)


@pytest.mark.parametrize("kind", CHANGING)
def test_dark_flat_and_invalid_pixels_stay_finite(kind):
    x = np.zeros((5, BANDS), "f4")
    x[1] = 0.3  # flat
    x[2] = -0.1
    x[3] = spectra(1)[0] - 0.5  # partly below zero
    x[4] = spectra(1)[0]
    found = change(kind, x)
    assert np.isfinite(found).all()
    assert np.abs(found).max() < 1e3
    fitted = Preprocess.fit(spectra(), spectra=kind, wavelengths=WAVELENGTHS, reduction="none")
    x[4, 7] = np.nan
    channels = fitted(torch.from_numpy(x)[:, :, None, None])
    assert torch.isfinite(channels).all()
    assert not channels[4].any()


@pytest.mark.parametrize("kind", ["continuum", "derivative"])
def test_detectors_that_overlap_are_no_division_by_zero(kind):
    nm = WAVELENGTHS.copy()
    nm[10] = nm[11] = nm[12]
    assert np.isfinite(change(kind, spectra(), nm)).all()


@pytest.mark.parametrize("kind", CHANGING)
def test_a_gain_in_training_does_what_it_does_to_the_light(kind):
    x = spectra()
    fitted = Preprocess.fit(x, spectra=kind, wavelengths=WAVELENGTHS, components=4)
    plain, brighter = (
        fitted(torch.from_numpy(x * np.float32(gain))[:, :, None, None]) for gain in (1, 1.2)
    )
    dark = fitted.dark()
    expected = plain if dark is None else 1.2 * plain - 0.2 * dark[:, None, None]
    torch.testing.assert_close(brighter, expected, atol=5e-3, rtol=0)


@pytest.mark.parametrize(("kind", "bands"), [("snv", 2), ("continuum", 2), ("derivative", 1)])
def test_too_few_bands_are_refused(kind, bands):
    with pytest.raises(ModelError, match=f"needs {KINDS[kind]} bands"):
        Spectra(kind, bands)


def test_unknown_kinds_are_refused():
    with pytest.raises(ModelError, match="preprocessing: log"):
        Spectra("log", 9)


def noisy_pairs(noise, count=400, seed=5):
    """Return pairs of neighbours with the same material and noise of their own."""
    rng = np.random.default_rng(seed)
    clean = rng.normal(size=(count, 1, 3)) @ rng.normal(size=(3, BANDS))
    return (clean + rng.normal(size=(count, 2, BANDS)) * noise).astype("f4")


def test_minimum_noise_fraction_puts_noisy_bands_last():
    """Where one band is all noise, the first components leave it out, and principal components do not."""
    noise = np.full(BANDS, 0.05)
    noise[5] = 30
    pairs = noisy_pairs(noise)
    shares = {}
    for reduction in ("pca", "mnf"):
        found = noise_fractions(pairs, components=3) if reduction == "mnf" else None
        fitted = Preprocess.fit(pairs[:, 0], reduction=reduction, components=3, fractions=found)
        weights = fitted.matrix.abs() * torch.from_numpy(pairs[:, 0].std(0))
        shares[reduction] = float(weights[:, 5].sum() / weights.sum())
    assert shares["mnf"] < 0.02 < 0.2 < shares["pca"]


def test_noise_of_minimum_noise_fraction_is_white():
    noise = np.random.default_rng(6).uniform(0.05, 2, BANDS)
    pairs = noisy_pairs(noise, count=4000)
    found = noise_fractions(pairs, components=BANDS, whiten=False)
    fitted = Preprocess.fit(pairs[:, 0], reduction="mnf", fractions=found)
    one, other = (fitted(torch.from_numpy(pairs[:, k])[:, :, None, None]) for k in (0, 1))
    covariance = np.cov((one - other).flatten(1).T.numpy())
    scale = covariance.diagonal().mean()
    np.testing.assert_allclose(covariance / scale, np.eye(len(covariance)), atol=0.1)


@pytest.mark.parametrize("kind", ["none", "snv"])
def test_noise_fractions_do_not_depend_on_units(kind):
    noise = np.random.default_rng(6).uniform(0.05, 2, BANDS)
    pairs = noisy_pairs(noise) + 9
    scale = np.float32(1e4) if kind == "snv" else np.geomspace(1e-3, 1e3, BANDS).astype("f4")
    ours, theirs = (
        noise_fractions(part, spectra=kind, components=3) for part in (pairs, pairs * scale)
    )
    factor = 1 if kind == "snv" else scale
    np.testing.assert_allclose(theirs * factor, ours, rtol=0.02, atol=1e-3 * np.abs(ours).max())


def test_minimum_noise_fraction_without_neighbours_is_refused():
    with pytest.raises(ModelError, match="there are 9"):
        noise_fractions(noisy_pairs(np.ones(BANDS), count=9))
