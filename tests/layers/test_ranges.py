"""Physical values to those that restorers see, and back."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from smooth_scene import smooth_cube
from vitreous.errors import ConfigError, ModelError
from vitreous.layers.ranges import BandRange, fill_invalid


def pixels(cube):
    return cube.reshape(len(cube), -1).T


@settings(max_examples=50, deadline=None)
@given(
    arrays(np.float32, (3, 4, 5), elements=st.floats(-1e4, 1e4, width=32)),
    st.sampled_from(["band", "scene"]),
)
def test_there_and_back_is_where_it_was(values, per):
    scale = 1e4 * np.arange(1, 61).reshape(3, 4, 5)
    ranges = BandRange.fit(pixels(scale), per)
    x = torch.from_numpy(values)
    torch.testing.assert_close(ranges.inverse(ranges(x)), x, rtol=1e-5, atol=1)
    torch.testing.assert_close(ranges(ranges.inverse(x / 1e4)), x / 1e4, rtol=1e-5, atol=1e-5)


def test_usual_values_lie_between_0_and_1_and_spikes_do_not_count():
    cube = 1000 * smooth_cube()
    calm = BandRange.fit(pixels(cube))
    cube[:, 3, 5] = 1e9
    spiky = BandRange.fit(pixels(cube))
    torch.testing.assert_close(spiky.span, calm.span, rtol=0.01, atol=0)
    scaled = calm(torch.from_numpy(1000 * smooth_cube()))
    for band in scaled:
        assert ((band >= 0) & (band <= 1)).float().mean() > 0.995
        assert 0.99 < band.max() - band.min() < 1.1


def test_per_band_undoes_gain_and_offset_and_per_scene_keeps_ratios():
    cube = smooth_cube()
    gain, offset = np.linspace(1, 9, 6)[:, None, None], np.linspace(0, 5, 6)[:, None, None]
    changed = (cube * gain + offset).astype(np.float32)
    own, other = (BandRange.fit(pixels(c))(torch.from_numpy(c)) for c in (cube, changed))
    torch.testing.assert_close(own, other, atol=1e-4, rtol=0)
    ranges = BandRange.fit(pixels(changed), "scene")
    assert ranges.span.unique().numel() == ranges.low.unique().numel() == 1
    scaled = ranges(torch.from_numpy(changed))
    assert scaled[5].mean() > 2 * scaled[0].mean()


def test_constant_bands_become_0_and_come_back():
    cube = smooth_cube()
    cube[2] = 7
    with pytest.warns(UserWarning, match="1 bands are constant"):
        ranges = BandRange.fit(pixels(cube))
    scaled = ranges(torch.from_numpy(cube))
    assert not scaled[2].any()
    torch.testing.assert_close(ranges.inverse(scaled), torch.from_numpy(cube))


@pytest.mark.parametrize(
    "spectra, said", [(np.ones((9, 3)), "same spectrum"), (np.ones((0, 3)), "no valid pixel")]
)
def test_scenes_without_a_range_are_refused(spectra, said):
    with pytest.raises(ModelError, match=said):
        BandRange.fit(spectra)


def test_a_range_per_anything_else_is_refused():
    with pytest.raises(ConfigError, match="band"):
        BandRange.fit(pixels(smooth_cube()), "bands")


def test_invalid_pixels_are_given_the_mean_spectrum_of_the_others():
    cube = torch.from_numpy(smooth_cube())
    same, valid = fill_invalid(cube)
    assert valid.all()
    assert torch.equal(same, cube)
    spoilt = cube.clone()
    spoilt[1, 3, 4], spoilt[:, 7] = torch.nan, torch.inf
    filled, valid = fill_invalid(spoilt)
    assert (~valid).sum() == 1 + cube.shape[2]
    assert torch.equal(filled[:, valid], cube[:, valid])
    mean = cube[:, valid].mean(1)
    torch.testing.assert_close(filled[:, ~valid], mean[:, None].expand(-1, int((~valid).sum())))
    nothing, valid = fill_invalid(torch.full_like(cube, torch.nan))
    assert not valid.any()
    assert not nothing.any()
