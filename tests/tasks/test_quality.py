"""Figures of restored cubes against their definitions."""

import math

import numpy as np
import pytest
import torch

from smooth_scene import smooth_cube
from vitreous.errors import VitreousError
from vitreous.layers.ranges import BandRange
from vitreous.tasks.quality import FEWEST, quality


@pytest.fixture
def clean():
    return torch.from_numpy(100 * smooth_cube(5, 40, 50) + 20)


@pytest.fixture
def ranges(clean):
    return BandRange.fit(clean.flatten(1).T.numpy())


def noise(like, seed=0):
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(seed))


def test_an_exact_copy_is_perfect(clean, ranges):
    found = quality(clean.clone(), clean, ranges)
    assert found["psnr"] == pytest.approx(100, abs=1e-4)
    assert found["psnr_per_band"] == pytest.approx([100.0] * 5, abs=1e-3)
    assert found["ssim"] == pytest.approx(1, abs=1e-6)
    assert found["sam"] == pytest.approx(0, abs=1e-5)
    assert found["ergas"] == 0


@pytest.mark.parametrize("sigma", [0.01, 0.1])
def test_known_noise_has_its_psnr(clean, ranges, sigma):
    spoilt = ranges.inverse(ranges(clean) + sigma * noise(clean))
    found = quality(spoilt, clean, ranges)
    assert found["psnr"] == pytest.approx(-20 * math.log10(sigma), abs=0.1)
    assert found["psnr"] == pytest.approx(np.mean(found["psnr_per_band"]), abs=1e-3)


def test_a_constant_error_has_its_psnr_in_each_band(clean, ranges):
    offsets = torch.tensor([0.1, 0.01, 0.5, 1.0, 0.001])
    spoilt = ranges.inverse(ranges(clean) + offsets[:, None, None])
    expected = (-20 * offsets.log10()).tolist()
    assert quality(spoilt, clean, ranges)["psnr_per_band"] == pytest.approx(expected, abs=0.02)


def test_more_noise_is_worse_by_every_figure(clean, ranges):
    found = [quality(clean + s * noise(clean), clean, ranges) for s in (0.5, 1, 2, 4)]
    for name, better in (("psnr", -1), ("ssim", -1), ("sam", 1), ("ergas", 1)):
        values = [better * one[name] for one in found]
        assert values == sorted(values)
        assert len(set(values)) == 4


def test_angles_do_not_see_brightness(clean, ranges):
    spoilt = clean + noise(clean)
    gain = 0.5 + torch.rand(clean.shape[1:], generator=torch.Generator().manual_seed(1))
    plain, brighter = (quality(cube, clean, ranges) for cube in (spoilt, spoilt * gain))
    assert brighter["sam"] == pytest.approx(plain["sam"], rel=1e-5)
    assert brighter["psnr"] < plain["psnr"] - 3
    assert quality(clean * gain, clean, ranges)["sam"] == pytest.approx(0, abs=1e-3)


def test_the_angle_between_spectra_by_hand():
    clean = torch.zeros(2, FEWEST, FEWEST)
    clean[0] = 1
    clean[0, 0, 0] = 2  # else the band would be constant
    restored = clean.clone()
    restored[1] = clean[0]
    assert quality(restored, clean, BandRange(2))["sam"] == pytest.approx(45)


@pytest.mark.parametrize("scale", [1, 4])
def test_ergas_by_its_formula(clean, ranges, scale):
    spoilt = clean + 3 * noise(clean)
    rmse = (spoilt - clean).double().square().mean((1, 2)).sqrt()
    expected = 100 / scale * ((rmse / clean.double().mean((1, 2))) ** 2).mean().sqrt()
    assert quality(spoilt, clean, ranges, scale)["ergas"] == pytest.approx(float(expected), rel=1e-5)  # fmt: skip


def test_invalid_pixels_do_not_count(clean, ranges):
    spoilt = clean + noise(clean)
    holed = clean.clone()
    holed[:, 5:9] = torch.nan
    holed[2, 30, 7] = torch.nan
    first = quality(spoilt, holed, ranges)
    worse = spoilt.clone()
    worse[:, 5:9], worse[:, 30, 7] = 1e6, torch.nan
    assert quality(worse, holed, ranges) == first
    valid = torch.isfinite(holed).all(0)
    errors = (ranges(spoilt) - ranges(clean))[:, valid].square().mean(1)
    assert first["psnr"] == pytest.approx(float(-10 * errors.log10().mean()), abs=1e-3)


def test_dark_pixels_and_bands_are_left_out_of_what_is_not_defined_there(clean, ranges):
    """A spectrum of zeros has no direction, and a band of zeros no relative error."""
    spoilt = clean + noise(clean)
    dark, also = clean.clone(), spoilt.clone()
    dark[:, 3, 4], also[:, 3, 4] = 0, 1
    found = quality(also, dark, ranges)
    assert found["sam"] == pytest.approx(quality(spoilt, clean, ranges)["sam"], rel=0.01)
    dark[1] = 0
    found = quality(also, dark, ranges)
    assert all(math.isfinite(found[name]) for name in ("psnr", "ssim", "sam", "ergas"))
    assert found["ergas"] < 20
    nothing = quality(torch.ones_like(clean), torch.zeros_like(clean), ranges)
    assert (nothing["sam"], nothing["ergas"]) == (None, None)


def test_what_cannot_be_compared_is_refused(clean, ranges):
    with pytest.raises(VitreousError, match=r"\(5, 40, 49\), the reference \(5, 40, 50\)"):
        quality(clean[:, :, 1:], clean, ranges)
    with pytest.raises(VitreousError, match="15 x 50 pixels are too few"):
        quality(clean[:, :15], clean[:, :15], ranges)
    with pytest.raises(VitreousError, match="no valid pixel"):
        quality(clean, torch.full_like(clean, torch.nan), ranges)
