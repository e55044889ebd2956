"""Windows: cutting and joining, and attention of which half the heads see moved windows."""

import itertools

import pytest
import torch

from vitreous.layers.window_blocks import PairedWindowAttention, WindowBlock
from vitreous.layers.windows import padding_bias, partition, reverse, window_mask

SIZES = [(8, 8), (9, 13), (5, 12), (3, 3), (2, 20)]


@pytest.mark.parametrize("shift", [(0, 0), (2, 3), (0, 1)])
@pytest.mark.parametrize("size", SIZES)
def test_moved_windows_join_to_the_map(size, shift):
    x = torch.randn(2, *size, 3)
    windows = partition(x, (4, 6), shift)
    assert windows.shape == (2, -(-size[0] // 4) * -(-size[1] // 6), 24, 3)
    assert torch.equal(reverse(windows, (4, 6), *size, shift), x)


def cuts(length, window, moved):
    """Return where an axis is cut; nothing moves along an axis that is no longer than a window."""
    first = window // 2 if moved and length > window else window
    return list(itertools.pairwise(sorted({0, *range(first, length, window), length})))


def one_by_one(qkv, table, window, largest, moved, heads):
    """Attend in the windows of a map one by one; the table is for windows of ``largest``."""
    out = torch.empty_like(qkv[..., : qkv.shape[-1] // 3])
    for (top, bottom), (left, right) in itertools.product(
        cuts(qkv.shape[1], window[0], moved), cuts(qkv.shape[2], window[1], moved)
    ):
        part = qkv[:, top:bottom, left:right].flatten(1, 2)
        query, key, value = part.unflatten(-1, (3, heads, -1)).unbind(2)
        places = list(itertools.product(range(bottom - top), range(right - left)))
        index = torch.tensor(
            [
                [
                    (r - s + largest[0] - 1) * (2 * largest[1] - 1) + (c - d + largest[1] - 1)
                    for s, d in places
                ]
                for r, c in places
            ]
        )
        scores = torch.einsum("bqhd,bkhd->bhqk", query, key) * query.shape[-1] ** -0.5
        weights = (scores + table[index].permute(2, 0, 1)).softmax(-1)
        mixed = torch.einsum("bhqk,bkhd->bqhd", weights, value).flatten(2)
        out[:, top:bottom, left:right] = mixed.unflatten(1, (bottom - top, right - left))
    return out


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_oblong_windows_one_by_one(size, shifted):
    torch.manual_seed(0)
    block, x = WindowBlock(8, 2, (4, 6), shifted, 2.0, 0.0).eval(), torch.randn(2, *size, 8)
    torch.nn.init.normal_(block.attn.position.table)
    mask = window_mask(x, (4, 6), shifted)
    window = (min(4, size[0]), min(6, size[1]))
    # The projection's channels lie as (query, key, value), heads, width, as one_by_one reads them.
    expected = one_by_one(block.attn.qkv(x), block.attn.position.table, window, (4, 6), shifted, 2)
    torch.testing.assert_close(
        block.attend(x, mask), block.attn.proj(expected), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_halves_of_the_heads_see_their_own_windows(size):
    torch.manual_seed(0)
    layer, x = PairedWindowAttention(12, 4, (4, 6)).eval(), torch.randn(2, *size, 12)
    for position in layer.positions:
        torch.nn.init.normal_(position.table)
    window = (min(4, size[0]), min(6, size[1]))
    halves = layer.qkv(x).unflatten(-1, (3, 2, 6))
    mixed = [
        one_by_one(
            halves[..., half, :].flatten(-2), layer.positions[half].table, window, (4, 6), half, 2
        )
        for half in range(2)
    ]
    expected = layer.proj(torch.cat(mixed, -1))
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)


# -- windows of cells that are an interval apart ---------------------------------------------------------------


@pytest.mark.parametrize("interval", [(1, 1), (2, 3), (4, 1)])
@pytest.mark.parametrize("size", [(16, 18), (7, 20), (5, 5)])
def test_dilated_windows_hold_cells_of_equal_residues(size, interval):
    window, x = (3, 2), torch.randn(2, *size, 4)
    places = (
        torch.cartesian_prod(*(torch.arange(1, side + 1) for side in size))
        .float()
        .view(1, *size, 2)
    )
    members = partition(places, window, interval=interval)[0]
    for axis, (side, step) in enumerate(zip(window, interval, strict=True)):
        for group in members[..., axis]:
            real = group[group > 0] - 1
            assert len({*(real % step).tolist()}) <= 1
            assert len({*(real // (side * step)).tolist()}) <= 1
    assert (
        members.prod(-1).count_nonzero() == size[0] * size[1]
    )  # each cell once, the rest is padding
    windows = partition(x, window, interval=interval)
    assert torch.equal(reverse(windows, window, *size, interval=interval), x)
    if interval == (1, 1):
        assert torch.equal(windows, partition(x, window))


def test_padding_is_told_from_cells_and_windows_of_padding_alone_are_not():
    bias = padding_bias(5, 4, (3, 2), torch.zeros(1), interval=(4, 2))
    windows = partition(torch.ones(1, 5, 4, 1), (3, 2), interval=(4, 2))[0, :, None, None, :, 0]
    alone = windows.amax(-1) == 0
    assert not alone.any()  # 5 rows reach every residue of 4
    assert torch.equal(bias == 0, windows == 1)
    bias = padding_bias(3, 4, (3, 2), torch.zeros(1), interval=(4, 2))
    windows = partition(torch.ones(1, 3, 4, 1), (3, 2), interval=(4, 2))[0, :, None, None, :, 0]
    alone = windows.amax(-1, keepdim=True) == 0
    assert alone.any()
    assert torch.equal(bias == 0, (windows == 1) | alone)
