"""Cross-scale embedding and position biases by a network."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from vitreous.layers.cross_scale import CrossScaleEmbed, DynamicPositionBias, scale_widths


@pytest.mark.parametrize("kernels", [1, 2, 3, 4, 6])
def test_widths_halve_and_sum_to_the_whole(kernels):
    widths = scale_widths(96, kernels)
    assert sum(widths) == 96
    assert widths[-2:] in ([96], [widths[-1]] * 2)
    assert all(a == 2 * b for a, b in itertools.pairwise(widths[:-1]))


@pytest.mark.parametrize("size", [(16, 24), (15, 9), (3, 5)])
@torch.no_grad()
def test_every_kernel_is_centred_on_its_cell(size):
    embed, x = CrossScaleEmbed(3, 8, (2, 4, 5), 2), torch.randn(2, 3, *size)
    found = embed(x)
    assert found.shape == (2, -(-size[0] // 2), -(-size[1] // 2), 8)
    wide = F.pad(x, (8, 8, 8, 8))
    for row, column in ((0, 0), (found.shape[1] - 1, found.shape[2] - 1)):
        parts = []
        for conv, before in zip(embed.projs, (0, 1, 1), strict=True):
            top, left = (8 + 2 * at - before for at in (row, column))
            side = conv.kernel_size[0]
            patch = wide[:, :, top : top + side, left : left + side]
            parts.append(torch.einsum("bcij,dcij->bd", patch, conv.weight) + conv.bias)
        torch.testing.assert_close(found[:, row, column], torch.cat(parts, 1))


def test_what_is_left_of_a_map_may_be_left_out():
    whole = CrossScaleEmbed(3, 8, (4, 8), 4, partial=False)
    assert whole(torch.randn(1, 3, 18, 11)).shape == (1, 4, 2, 8)


@torch.no_grad()
def test_bias_depends_on_the_offset_alone_whatever_the_window():
    torch.manual_seed(0)
    bias = DynamicPositionBias((5, 5), 3, 6)
    large = bias(5, 5).view(3, 5, 5, 5, 5)
    for rows, columns in ((3, 3), (2, 5), (7, 4)):
        other = bias(rows, columns).view(3, rows, columns, rows, columns)
        r, c = min(rows, 5), min(columns, 5)
        torch.testing.assert_close(other[:, :r, :c, :r, :c], large[:, :r, :c, :r, :c])
    torch.testing.assert_close(large[:, 1, 1, 3, 2], large[:, 2, 0, 4, 1])
    assert not torch.allclose(large[:, 1, 1, 3, 2], large[:, 3, 2, 1, 1])
