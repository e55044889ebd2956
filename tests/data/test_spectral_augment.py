"""Changes of training spectra are what they are called, in the bands of the scene."""

import numpy as np
import pytest
import torch

from vitreous.data.spectral_augment import SpectralAugment, brightened, drawn_bands
from vitreous.layers.preprocess import Preprocess

BANDS = 12


@pytest.fixture
def spectra():
    """A hundred spectra of four components, so that few channels tell all of them."""
    chance = np.random.default_rng(0)
    return 5 + chance.normal(size=(100, 4)) @ chance.normal(size=(4, BANDS))


def fitted(pixels, **settings):
    return Preprocess.fit(pixels, **settings)


def as_regions(spectra):
    """Return ``(n, bands, 1, 1)``."""
    return torch.from_numpy(np.asarray(spectra, dtype=np.float32))[:, :, None, None]


def changed(augment, preprocess, spectra):
    """Return channels of the spectra with what an augmentation draws."""
    torch.manual_seed(0)
    channels = preprocess(as_regions(spectra))
    return channels + augment.difference(channels)


REDUCED = [{"reduction": "none"}, {"reduction": "pca", "components": 4, "whiten": True}]


@pytest.mark.parametrize("settings", REDUCED)
def test_more_light_is_a_larger_spectrum(spectra, settings):
    preprocess = fitted(spectra, **settings)
    gain = torch.linspace(-0.5, 0.5, len(spectra))[:, None, None, None]
    found = brightened(preprocess(as_regions(spectra)), gain, preprocess.dark())
    expected = preprocess(as_regions(spectra) * (1 + gain))
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("settings", REDUCED)
def test_haze_is_the_same_light_in_all_bands(spectra, settings):
    preprocess = fitted(spectra, **settings)
    found = changed(SpectralAugment(preprocess, offset=0.3), preprocess, spectra)
    torch.manual_seed(0)
    light = 0.3 * torch.randn(len(spectra), 1, 1, 1) * float(np.mean(spectra))
    expected = preprocess(as_regions(spectra) + light)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
    assert float(light.std()) > 0.3


@pytest.mark.parametrize("settings", REDUCED)
def test_background_is_mixed_in_the_bands(spectra, settings):
    preprocess = fitted(spectra, **settings)
    other = spectra[:1] + 2 * (spectra[1:2] - spectra[:1])
    unlabelled = preprocess(as_regions(other)).flatten(1)
    augment = SpectralAugment(preprocess, background=0.5, unlabelled=unlabelled)
    found = changed(augment, preprocess, spectra)
    torch.manual_seed(0)
    torch.randint(1, (len(spectra),))
    share = 0.5 * torch.rand(len(spectra), 1, 1, 1)
    expected = preprocess((1 - share) * as_regions(spectra) + share * as_regions(other))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)
    assert 0.4 < float(share.max()) <= 0.5


@pytest.mark.parametrize("settings", REDUCED)
def test_missing_bands_are_their_mean(spectra, settings):
    """Exactly so where the channels tell the bands: of all of them, and of as many components as there are."""
    preprocess = fitted(spectra, **settings)
    found = changed(SpectralAugment(preprocess, missing=0.4), preprocess, spectra)
    torch.manual_seed(0)
    gone = drawn_bands(len(spectra), BANDS, 0.4, torch.device("cpu"))
    filled = torch.where(gone.bool(), preprocess.mean, as_regions(spectra)[:, :, 0, 0])
    expected = preprocess(filled[:, :, None, None])
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


def test_missing_bands_are_neighbours_and_never_all():
    runs = drawn_bands(500, 20, 0.25, torch.device("cpu"))
    lengths = runs.sum(1)
    assert set(lengths.tolist()) == {1, 2, 3, 4, 5}
    assert (runs.diff(dim=1).abs().sum(1) <= 2).all()
    assert (runs.amax(0) == 1).all()  # every band may be
    assert float(drawn_bands(50, 3, 0.99, torch.device("cpu")).sum(1).max()) == 2
    assert float(drawn_bands(5, 1, 0.5, torch.device("cpu")).sum()) == 0


@pytest.mark.parametrize("kind", ["snv", "continuum", "brightness", "derivative"])
def test_haze_is_left_out_where_spectra_do_not_keep_it(spectra, kind):
    preprocess = fitted(spectra + 20, spectra=kind, reduction="none")
    channels = preprocess(as_regions(spectra + 20))
    assert SpectralAugment(preprocess, offset=0.3).difference(channels) is None


def test_several_changes_follow_one_another(spectra):
    """What is added together is what one after the other would give."""
    preprocess = fitted(spectra, reduction="none")
    channels = preprocess(as_regions(spectra))
    unlabelled = channels.flatten(1)
    settings = {"offset": 0.2, "background": 0.5, "missing": 0.4, "noise": 0.1}
    torch.manual_seed(3)
    found = channels + SpectralAugment(preprocess, **settings, unlabelled=unlabelled).difference(
        channels
    )
    torch.manual_seed(3)
    expected = channels
    for name in ("background", "offset", "missing", "noise"):
        one = SpectralAugment(preprocess, **{name: settings[name]}, unlabelled=unlabelled)
        expected = expected + one.difference(expected)
    torch.testing.assert_close(found, expected)


def test_nothing_is_drawn_where_nothing_changes(spectra):
    preprocess = fitted(spectra, reduction="none")
    channels = preprocess(as_regions(spectra))
    state = torch.get_rng_state()
    assert SpectralAugment(preprocess).difference(channels) is None
    assert torch.equal(state, torch.get_rng_state())
