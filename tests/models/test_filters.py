"""Classical restorers: what they must keep, and that they take noise away."""

import sys

import pytest
import torch

from smooth_scene import smooth_cube
from vitreous.catalog.registry import create_model, list_models
from vitreous.errors import ModelError

IMAGE_FILTERS = ["wavelet", "wavelet_pca", "total_variation"]
SIGMA = 0.1


def cubes(bands=12, side=48):
    return torch.from_numpy(smooth_cube(bands, side, side))[None]


def noisy(clean, sigma=SIGMA):
    return clean + sigma * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))


def psnr(a, b):
    return float(-10 * (a - b).square().mean().log10())


def run(name, x, **arguments):
    with torch.no_grad():
        return create_model(name, bands=x.shape[1], **arguments)(x)


@pytest.mark.parametrize("name", list_models(kind="filter"))
@pytest.mark.parametrize("bands", [1, 2, 31])
def test_every_filter_takes_any_bands_and_any_size(name, bands):
    x = noisy(cubes(bands)[:, :, :21, :33], 0.02)
    net = create_model(name, bands=5)
    assert net.any_bands
    restored = net(x)
    assert restored.shape == (1, bands, 21 * net.scale, 33 * net.scale)
    assert torch.isfinite(restored).all()
    assert restored.std() > 0.5 * x.std()  # it is no constant
    assert not list(net.parameters())


@pytest.mark.parametrize("name", list_models(kind="filter"))
def test_every_filter_keeps_a_constant_cube_and_treats_cubes_alone(name):
    flat = torch.full((1, 4, 32, 32), 0.3) + torch.arange(4.0)[:, None, None]
    torch.testing.assert_close(run(name, flat).amax((2, 3)), flat[..., 0, 0], atol=1e-4, rtol=0)
    x = torch.cat([noisy(cubes(4)), 3 * cubes(4)])
    together, alone = run(name, x), run(name, x[:1])
    torch.testing.assert_close(together[:1], alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["low_rank", *IMAGE_FILTERS])
def test_noise_is_taken_away(name):
    clean = cubes(31)
    x = noisy(clean)
    gain = psnr(run(name, x), clean) - psnr(x, clean)
    assert gain > {"low_rank": 8, "wavelet_pca": 5}.get(name, 4)


@pytest.mark.parametrize("name", ["low_rank", *IMAGE_FILTERS])
def test_gain_and_offset_do_not_matter(name):
    x = noisy(cubes())
    torch.testing.assert_close(run(name, 7 * x + 3), 7 * run(name, x) + 3, atol=5e-3, rtol=1e-3)


def test_low_rank_keeps_a_cube_of_low_rank():
    clean = cubes(31)
    torch.testing.assert_close(run("low_rank", clean), clean, atol=1e-5, rtol=0)
    torch.testing.assert_close(run("low_rank", clean, rank=3), clean, atol=1e-5, rtol=0)
    assert psnr(run("low_rank", clean, rank=1), clean) < 40


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_low_rank_keeps_as_many_components_as_it_is_told(rank):
    x = noisy(cubes())
    restored = run("low_rank", x, rank=rank).flatten(2)[0].T
    values = torch.linalg.svdvals(restored - restored.mean(0))
    assert int((values > 1e-4 * values[0]).sum()) == rank


def test_low_rank_finds_the_rank_and_the_order_of_bands_is_nothing_to_it():
    x = noisy(cubes(31), 0.03)
    found = run("low_rank", x)
    torch.testing.assert_close(found, run("low_rank", x, rank=3), atol=1e-5, rtol=0)
    order = torch.randperm(31, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(run("low_rank", x[:, order]), found[:, order], atol=1e-5, rtol=0)


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_bicubic_continues_a_ramp(scale):
    ramp = torch.arange(24.0).expand(1, 3, 24, 24) * torch.tensor([1.0, -2, 5])[:, None, None]
    fine = run("bicubic", ramp, scale=scale)
    assert fine.shape == (1, 3, 24 * scale, 24 * scale)
    places = (torch.arange(24 * scale) + 0.5) / scale - 0.5
    expected = places * torch.tensor([1.0, -2, 5])[:, None]
    inner = slice(3 * scale, -3 * scale)
    torch.testing.assert_close(fine[0, :, 7, inner], expected[:, inner], atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(fine.mT, run("bicubic", ramp.mT, scale=scale))


@pytest.mark.parametrize(
    "name, arguments",
    [("low_rank", {"rank": 0}), ("low_rank", {"rank": "all"}), ("bicubic", {"scale": 0}),
     ("bicubic", {"scale": 1.5}), ("bicubic", {"scale": "2"}), ("total_variation", {"strength": -1}),
     ("total_variation", {"strength": "much"}), ("low_rank", {"ranks": 3})],
)  # fmt: skip
def test_arguments_that_make_no_filter_are_refused(name, arguments):
    with pytest.raises(ModelError, match=next(iter(arguments))):
        create_model(name, bands=3, **arguments)


@pytest.mark.parametrize("package", ["skimage", "pywt"])
@pytest.mark.parametrize("name", IMAGE_FILTERS)
def test_a_missing_package_is_named_with_the_way_to_get_it(monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModelError, match="not installed") as caught:
        create_model(name, bands=3)
    assert "vitreous[filters]" in caught.value.fix
    create_model("low_rank", bands=3)
