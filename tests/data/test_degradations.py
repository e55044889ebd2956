import math

import pytest
import torch

from vitreous.data.degradations import KINDS, degradation, gaussian_blur, spoil
from vitreous.errors import ConfigError


def cube(bands=60, side=64, value=0.5):
    return torch.full((bands, side, side), value)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", KINDS)
def test_the_seed_decides_and_the_cube_stays_as_it_was(name):
    clean = torch.rand(12, 16, 16, generator=seeded(9))
    before = clean.clone()
    first, again, other = (degradation(name)(clean, seeded(s)) for s in (3, 3, 4))
    assert torch.equal(clean, before)
    assert torch.equal(first, again)
    assert name == "downsample" or not torch.equal(first, other)
    factor = degradation(name).factor
    assert first.shape == (12, 16 // factor, 16 // factor)


@pytest.mark.parametrize("sigma", [10, 50])
def test_gaussian_noise_has_its_level(sigma):
    noise = degradation("gaussian", {"sigma": sigma})(cube(), seeded()) - 0.5
    assert noise.std() * 255 == pytest.approx(sigma, rel=0.01)
    assert abs(noise.mean()) < 3 * sigma / 255 / math.sqrt(noise.numel())


def test_blind_noise_draws_one_of_its_levels_for_each_cube():
    blind = degradation("blind")
    levels = spoil(blind, cube(8).expand(64, -1, -1, -1), seeded()).std((1, 2, 3)) * 255
    nearest = (levels[:, None] - torch.tensor([10.0, 30, 50, 70])).abs()
    assert nearest.min(1).values.max() < 2
    assert nearest.argmin(1).unique().numel() == 4


def test_band_noise_covers_its_range():
    levels = degradation("band_noise")(cube(300), seeded()).flatten(1).std(1) * 255
    assert 9 < levels.min() < 15
    assert 65 < levels.max() < 72
    assert levels.mean() == pytest.approx(40, abs=3)


def without_noise(name, **settings):
    return degradation(name, {"low": 0, "high": 0, **settings})


def test_stripes_shift_whole_columns_of_a_third_of_the_bands():
    change = without_noise("stripes")(cube(), seeded()) - 0.5
    struck = change.abs().amax((1, 2)) > 0
    assert struck.sum() == 20
    columns = (change[struck].abs().amax(1) > 0).float().mean(1)
    assert columns.min() >= 0.05
    assert columns.max() <= 0.16
    assert (change[struck] - change[struck][:, :1]).abs().max() == 0  # the same all along a column
    assert 0.2 < change.abs().max() <= 0.25


def test_dead_columns_are_zero_and_all_else_is_untouched():
    spoilt = without_noise("deadlines")(cube(), seeded())
    dead = spoilt == 0
    assert dead.any((1, 2)).sum() == 20
    assert torch.equal(dead.all(1), dead.any(1))
    assert (spoilt[~dead] == 0.5).all()


def test_impulses_come_in_equal_numbers_and_known_shares():
    spoilt = without_noise("impulse")(cube(), seeded())
    low, high = (spoilt == 0).float().mean((1, 2)), (spoilt == 1).float().mean((1, 2))
    struck = low > 0
    assert struck.sum() == 20
    torch.testing.assert_close(low[struck], high[struck], atol=0.03, rtol=0)
    nearest = ((low + high)[struck][:, None] - torch.tensor([0.1, 0.3, 0.5, 0.7])).abs()
    assert nearest.min(1).values.max() < 0.03


def test_a_mixture_has_everything():
    change = without_noise("mixture")(cube(), seeded()) - 0.5
    assert (change == -0.5).all(1).any()  # dead columns
    assert (change == 0.5).any()  # impulses
    assert ((change.abs() < 0.25) & (change != 0)).any()  # stripes


def test_missing_bands():
    spoilt = degradation("missing", {"bands": 0.25})(cube(), seeded())
    assert (spoilt == 0).all((1, 2)).sum() == 15
    assert (spoilt[(spoilt != 0).any(2).any(1)] == 0.5).all()


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_downsampling_keeps_constant_and_linear_images(scale):
    flat = degradation("downsample", {"scale": scale, "blur": 1.0})(cube(3, 48), seeded())
    torch.testing.assert_close(flat, torch.full_like(flat, 0.5))
    ramp = torch.arange(48.0).expand(1, 48, 48) / 48
    coarse = degradation("downsample", {"scale": scale})(ramp, seeded())
    inner = coarse[0, 0].diff()[2:-2]
    torch.testing.assert_close(inner, torch.full_like(inner, scale / 48), atol=1e-4, rtol=1e-3)


def test_a_blur_keeps_the_sum_and_has_its_width():
    point = torch.zeros(1, 1, 41, 41)
    point[0, 0, 20, 20] = 1
    blurred = gaussian_blur(point, 2.0)[0, 0]
    assert blurred.sum() == pytest.approx(1, rel=1e-4)
    away = torch.arange(41.0) - 20
    assert (blurred.sum(0) * away**2).sum() == pytest.approx(4, rel=0.05)
    assert torch.equal(gaussian_blur(point, 0.0), point)


def test_every_cube_of_a_batch_has_faults_of_its_own():
    first, second = spoil(without_noise("stripes"), cube(9).expand(2, -1, -1, -1), seeded())
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("gausian", {}, "gaussian"),
        ("gaussian", {"sigmas": 3}, "sigma"),
        ("gaussian", {"sigma": -1}, "negative"),
        ("gaussian", {"sigma": "much"}, "not a number"),
        ("gaussian", {"sigma": [1, 2]}, "not a number"),
        ("blind", {"sigmas": []}, "at least 1"),
        ("band_noise", {"low": 9, "high": 3}, "above"),
        ("downsample", {"scale": 5}, "one of"),
    ],
)
def test_what_makes_no_sense_is_refused(name, settings, words):
    with pytest.raises(ConfigError, match=words):
        degradation(name, settings)


def test_an_image_smaller_than_the_scale_is_refused():
    with pytest.raises(ConfigError, match="coarser"):
        degradation("downsample")(cube(1, 3), seeded())
