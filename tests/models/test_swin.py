"""Swin: equality with the authors' numbers, windows one by one, and what shifting does and costs."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from torch.utils.flop_counter import FlopCounterMode

from fixtures_reader import load_fixture
from vitreous.catalog.registry import create_model, from_reference
from vitreous.errors import ModelError
from vitreous.layers.window_blocks import PatchMerging, WindowBlock
from vitreous.layers.windows import partition, reverse, window_grid, window_mask
from vitreous.models.swin import SwinTransformer, rename, resize
from vitreous.testing import enliven, images


@pytest.fixture(scope="module")
def reference():
    return load_fixture("swin")


def small(**changes):
    torch.manual_seed(0)
    shape = {"bands": 3, "num_classes": 5, "image_size": 32, "token_size": 2, "dim": 8}
    given = {"depths": (2, 2), "heads": (2, 4), "window": 4, **shape, **changes}
    model = SwinTransformer(**given).eval()
    for stage in model.stages:
        for block in stage.blocks:
            torch.nn.init.normal_(block.attn.position.table)
    return model


def block_of(window=4, shifted=True, dim=8, heads=2):
    torch.manual_seed(0)
    block = WindowBlock(dim, heads, window, shifted, 2.0, 0.0, True, None).eval()
    torch.nn.init.normal_(block.attn.position.table)
    return block


# -- the reference ------------------------------------------------------------------------------------------


@torch.no_grad()
def test_equals_reference(reference):
    model = from_reference("swin", reference["state_dict"], reference["kwargs"]).eval()
    expected = reference["output"]
    torch.testing.assert_close(model(reference["input"]), expected["logits"], rtol=1e-5, atol=1e-6)
    first, last = model.pyramid(reference["input"])
    merged = model.stages[1].merge(first)
    torch.testing.assert_close(merged.flatten(1, 2), expected["layer0"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(last.flatten(1, 2), expected["layer1"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("number", [0, 1])
def test_mask_hides_what_the_reference_hides(reference, number):
    theirs = reference["state_dict"][f"layers.{number}.blocks.1.attn_mask"]
    side = 4 * round(len(theirs) ** 0.5)
    ours = window_mask(torch.zeros(1, side, side, 1), 4, True)[:, 0]
    assert torch.equal(ours.isinf(), theirs < -50)


def test_reference_options_are_honoured():
    kwargs = {
        "img_size": (32, 32),
        "patch_size": 4,
        "in_chans": 5,
        "num_classes": 0,
        "embed_dim": 12,
        "depths": [1, 3],
        "num_heads": [3, 6],
        "window_size": 5,
        "qkv_bias": False,
        "qk_scale": 0.7,
        "ape": True,
        "patch_norm": False,
    }
    ours = {"window": 5, "qkv_bias": False, "scale": 0.7, "absolute_positions": True}
    model = SwinTransformer(
        5, 0, 32, token_size=4, dim=12, depths=(1, 3), heads=(3, 6), stem_norm=False, **ours
    ).eval()
    theirs = dict(_their_names(model.state_dict()))
    assert theirs["layers.1.blocks.0.attn.relative_position_bias_table"].shape == (49, 6)
    again = from_reference("swin", theirs, kwargs).eval()
    x = images(2, 5, 32)
    with torch.no_grad():
        assert torch.equal(model(x), again(x))
        assert model(x).shape == (2, 24)
        assert not torch.allclose(
            model(x), from_reference("swin", theirs, {**kwargs, "qk_scale": None}).eval()(x)
        )


def _their_names(state):
    for key, value in state.items():
        if key.startswith("stages.1.merge"):
            key = key.replace("stages.1.merge", "layers.0.downsample")
        for ours, theirs in {
            "stages.": "layers.",
            "position.table": "relative_position_bias_table",
            "pos_embed": "absolute_pos_embed",
            "patch_embed.": "patch_embed.proj.",
        }.items():
            key = key.replace(ours, theirs)
        yield key, value


OBLONG = [
    ((16, 32), 4),  # both axes are longer than a window in the first stage, one in the second
    ((32, 8), 4),  # one axis is as long as a window, then half as long
    ((8, 24), 7),  # shorter in both stages: square windows of 4 and of 2
    ((17, 33), 4),  # the last row and column of pixels make no token
]


def reference_weights(image, window, square):
    """Return weights under the names of the authors (``square``) or of timm for oblong images, and the arguments."""
    kwargs = {
        "img_size": image, "patch_size": 2, "embed_dim": 8, "depths": [2, 2], "num_heads": [2, 4],
        "num_classes": 5, "window_size": window, "mlp_ratio": 2.0,
    }  # fmt: skip
    windows = [_theirs(image, window, stage, square)[0] for stage in range(2)]
    ours = SwinTransformer(
        3, 5, (64, 64), token_size=2, dim=8, depths=(2, 2), heads=(2, 4), window=windows, mlp_ratio=2.0
    )  # fmt: skip
    enliven(ours)
    names = dict(_their_names(ours.state_dict()))
    if square:
        return names, kwargs
    timm = {"layers.0.downsample": "layers.1.downsample", "head.": "head.fc."}
    for old, new in timm.items():
        names = {key.replace(old, new): value for key, value in names.items()}
    return names, kwargs


def _theirs(image, window, stage, square):
    """Return the windows of a stage and by how much they move, as the two references say."""
    cells = [side // 2 // 2**stage for side in image]
    if square:
        whole = min(cells) <= window
        side = min(cells) if whole else window
        return (side, side), (0, 0) if whole else (side // 2,) * 2
    moves = [0 if length <= window else window // 2 for length in cells]
    return tuple(min(length, window) for length in cells), tuple(moves)


def reference_scores(names, kwargs, x, square):
    """Compute what the references say, token by token: rolled maps, windows, -100 between the parts of a window."""
    weights = {key.replace("head.fc.", "head."): value for key, value in names.items()}

    def linear(x, name):
        return F.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"])

    x = F.conv2d(x, weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"], 2)
    x = norm(x.permute(0, 2, 3, 1), "patch_norm")
    for stage in range(2):
        window, moves = _theirs(kwargs["img_size"], kwargs["window_size"], stage, square)
        for number in range(2):
            at = f"layers.{stage}.blocks.{number}"
            mixed = _windows_one_by_one(
                norm(x, f"{at}.norm1"), weights, at, window, moves if number else (0, 0), linear
            )
            x = x + mixed
            hidden = F.gelu(linear(norm(x, f"{at}.norm2"), f"{at}.mlp.fc1"))
            x = x + linear(hidden, f"{at}.mlp.fc2")
        if stage == 0:
            at = "layers.0.downsample" if square else "layers.1.downsample"
            four = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
            x = linear(norm(torch.cat(four, -1), f"{at}.norm"), f"{at}.reduction")
    return linear(norm(x, "norm").mean((1, 2)), "head")


def _windows_one_by_one(x, weights, at, window, moves, linear):
    heads = weights[f"{at}.attn.relative_position_bias_table"].shape[1]
    (real_height, real_width), dim = x.shape[1:3], x.shape[-1] // heads
    x = x.roll((-moves[0], -moves[1]), (1, 2))
    x = F.pad(x, (0, 0, 0, -real_width % window[1], 0, -real_height % window[0]))  # timm
    height, width = x.shape[1:3]
    out = torch.empty_like(x)
    for top in range(0, height, window[0]):
        for left in range(0, width, window[1]):
            places = list(itertools.product(range(window[0]), range(window[1])))
            part = x[:, top : top + window[0], left : left + window[1]].flatten(1, 2)
            query, key, value = (
                linear(part, f"{at}.attn.qkv").unflatten(-1, (3, heads, dim)).unbind(2)
            )
            scores = torch.einsum("bthd,bshd->bhts", query, key) * dim**-0.5
            for t, (row, column) in enumerate(places):
                for s, (other_row, other_column) in enumerate(places):
                    down = row - other_row + window[0] - 1
                    across = column - other_column + window[1] - 1
                    table = weights[f"{at}.attn.relative_position_bias_table"]
                    scores[:, :, t, s] += table[down * (2 * window[1] - 1) + across]
                    wrapped = [
                        (offset + one >= length - move) != (offset + two >= length - move)
                        for offset, one, two, length, move in (
                            (top, row, other_row, height, moves[0]),
                            (left, column, other_column, width, moves[1]),
                        )
                    ]
                    if any(wrapped):
                        scores[:, :, t, s] -= 100
            mixed = torch.einsum("bhts,bshd->bthd", scores.softmax(-1), value).flatten(2)
            out[:, top : top + window[0], left : left + window[1]] = linear(
                mixed, f"{at}.attn.proj"
            ).unflatten(1, window)
    return out[:, :real_height, :real_width].roll(moves, (1, 2))


@pytest.mark.parametrize(("image", "window"), OBLONG)
@pytest.mark.parametrize("square", [True, False], ids=["authors", "timm"])
@torch.no_grad()
def test_oblong_images_are_cut_as_the_references_do(image, window, square):
    names, kwargs = reference_weights(image, window, square)
    x = images(2, 3, image)
    expected = reference_scores(names, kwargs, x, square)
    found = from_reference("swin", names, kwargs).eval()(x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_an_axis_that_timm_takes_for_one_window_is_not_shifted():
    """At 18 pixels of 2, timm counts 4 cells in the second stage, where merging 9 leaves 5."""
    names, kwargs = reference_weights((18, 32), 4, square=False)
    model = from_reference("swin", names, kwargs)
    block = model.stages[1].blocks[1]
    assert (block.window, block.shifted) == ((4, 4), (False, True))
    assert window_grid(5, 8, block.window, block.shifted) == ((4, 4), (0, 2))


# -- windows ------------------------------------------------------------------------------------------------


def naive_attention(block, x):
    """Attend in sub-windows one by one: cut the shifted grid's lines into the map, and nothing wraps around."""
    (rows, columns), (down, across) = window_grid(*x.shape[1:3], block.window, block.shifted)
    attn, out = block.attn, torch.empty_like(x)
    width = x.shape[-1] // attn.heads
    for r0, r1 in _cuts(x.shape[1], rows, down):
        for c0, c1 in _cuts(x.shape[2], columns, across):
            part = x[:, r0:r1, c0:c1].flatten(1, 2)
            at = [(r, c) for r in range(r1 - r0) for c in range(c1 - c0)]
            side = attn.position.window[0]
            index = torch.tensor(
                [
                    [(r - s + side - 1) * (2 * side - 1) + (c - d + side - 1) for s, d in at]
                    for r, c in at
                ]
            )
            mixed = []
            for head, (q, k, v) in enumerate(
                zip(*(p.split(width, -1) for p in attn.qkv(part).chunk(3, -1)), strict=True)
            ):
                scores = q @ k.transpose(1, 2) / width**0.5 + attn.position.table[index, head]
                mixed.append(scores.softmax(-1) @ v)
            result = attn.proj(torch.cat(mixed, -1))
            out[:, r0:r1, c0:c1] = result.unflatten(1, (r1 - r0, c1 - c0))
    return out


def _cuts(length, window, shift):
    lines = [0, *range(shift or window, length, window), length]
    return list(itertools.pairwise(lines))


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("size", [(8, 8), (12, 8), (9, 9), (5, 11), (4, 10), (3, 3), (7, 2)])
@torch.no_grad()
def test_equals_attention_in_sub_windows_one_by_one(size, shifted):
    block, x = block_of(shifted=shifted), torch.randn(2, *size, 8)
    mask = window_mask(x, block.window, shifted)
    expected = naive_attention(block, x)
    torch.testing.assert_close(block.attend(x, mask), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (9, 13)])
def test_masked_pairs_get_no_weight_and_rows_sum_to_one(height, width):
    x = torch.randn(1, height, width, 8)
    mask = window_mask(x, 4, True)
    scores = 10 * torch.randn(len(mask), 2, 16, 16) + mask
    weights = scores.softmax(-1)
    assert weights[mask.isinf().expand_as(weights)].max() < 1e-30
    torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))


def test_one_window_is_global_attention_without_shift():
    x = torch.randn(2, 4, 4, 8)
    assert window_grid(4, 4, 7, True) == ((4, 4), (0, 0))
    assert window_mask(x, 4, True) is None
    still, shifted = block_of(shifted=False), block_of(shifted=True)
    with torch.no_grad():
        torch.testing.assert_close(shifted(x, None), still(x, None))
        mixed = shifted.attn(x.flatten(1, 2)[:, None], (4, 4), None)[:, 0].unflatten(1, (4, 4))
        torch.testing.assert_close(shifted.attend(x, None), mixed)


def test_windows_cut_and_joined_are_the_map():
    x = torch.randn(2, 9, 14, 3)
    assert torch.equal(reverse(partition(x, (4, 7)), (4, 7), 9, 14), x)


def test_merging_takes_neighbours_down_first():
    layer = PatchMerging(1)
    layer.norm = torch.nn.Identity()
    layer.reduction = torch.nn.Identity()
    x = torch.arange(16.0).reshape(1, 4, 4, 1)
    assert layer(x)[0, 0, 0].tolist() == [0, 4, 1, 5]
    assert layer(x)[0, 1, 1].tolist() == [10, 14, 11, 15]
    assert PatchMerging(6)(torch.randn(2, 7, 10, 6)).shape == (2, 4, 5, 12)


# -- the whole ----------------------------------------------------------------------------------------------


@torch.no_grad()
def test_unshifted_features_move_with_the_image():
    model = small(shift=False)
    step = 2 * 4 * 2  # one window of the last stage, in pixels of the image
    x = images(2, 3, 32)
    features = model.forward_levels(x)[-1]
    moved = model.forward_levels(x.roll((step, step), (2, 3)))[-1]
    torch.testing.assert_close(moved, features.roll((4, 4), (2, 3)), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(
        model.forward_levels(x.roll(4, 3))[-1], features.roll(1, 3), atol=1e-3
    )


def reach(model):
    """Return the pixels that the first stage's first token depends on."""
    x = images(1, 3, 32).requires_grad_()
    model.forward_levels(x)[0][0, :, 3, 3].sum().backward()
    touched = x.grad[0].abs().sum(0).nonzero()
    return touched.amin(0).tolist(), touched.amax(0).tolist()


def test_only_shifted_windows_see_beyond_their_own():
    assert reach(small(shift=False)) == ([0, 0], [7, 7])
    assert reach(small()) == ([0, 0], [15, 15])


@torch.no_grad()
def test_padding_is_never_attended_to():
    model = small()
    x = images(1, 3, 29)  # 15 tokens per side, the last of which has a padded pixel
    features = model.forward_levels(x)[0]
    assert features.shape[2:] == (15, 15)
    naive = model.embed(x)
    for block in model.stages[0].blocks:
        naive = naive + naive_attention(block, block.norm1(naive))
        naive = naive + block.mlp(block.norm2(naive))
    torch.testing.assert_close(
        features, rearrange(naive, "b h w d -> b d h w"), rtol=1e-4, atol=1e-5
    )


def attention_macs(side, window, dim=32, heads=4):
    attn = WindowBlock(dim, heads, window, False, 4.0, 0.0, True, None).attn.to("meta")
    x = torch.empty(1, side, side, dim, device="meta")
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        attn(partition(x, (window, window)), (window, window), None)
    return counter.get_total_flops() // 2


def test_cost_is_that_of_the_paper():
    side, window, dim = 28, 7, 32  # eq. 2
    tokens = side**2
    assert attention_macs(side, window) == 4 * tokens * dim**2 + 2 * window**2 * tokens * dim
    assert attention_macs(2 * side, window) == 4 * attention_macs(side, window)
    products = 2 * tokens**2 * dim
    assert attention_macs(2 * side, 2 * side) - 16 * tokens * dim**2 == 16 * products  # eq. 1


def test_stem_is_as_published_at_224_and_finer_below():
    sizes = {224: 4, 384: 4, 128: 4, 100: 2, 33: 1, 15: 1}
    with torch.device("meta"):
        found = {
            s: create_model("swin_tiny", bands=3, num_classes=2, image_size=s).token_size
            for s in sizes
        }
    assert found == sizes


@pytest.mark.parametrize("size", [(9, 40), (64, 64), (33, 17)])
@torch.no_grad()
def test_takes_other_sizes_than_it_was_built_for(size):
    model = small(absolute_positions=True)
    maps = model.forward_levels(torch.randn(1, 3, *size))
    assert maps[0].shape[2:] == tuple(-(-n // 2) for n in size)
    assert all(torch.isfinite(m).all() for m in maps)


@torch.no_grad()
def test_resize_moves_weights_to_other_windows_and_sizes():
    old = small(absolute_positions=True)
    same = resize(old.state_dict(), old)
    assert all(torch.equal(same[k], v) for k, v in old.state_dict().items())
    new = small(absolute_positions=True, window=3, image_size=48)
    new.load_state_dict(resize(old.state_dict(), new))
    assert new.pos_embed.shape == (1, 24**2, 8)
    tables = [m.stages[0].blocks[0].attn.position.table for m in (old, new)]
    # 7 x 7 offsets become 5 x 5; the one in the middle, no offset, stays where it is.
    torch.testing.assert_close(tables[1][12], tables[0][24])


def test_no_decay_on_positions():
    spared = small(absolute_positions=True).no_weight_decay()
    assert "pos_embed" in spared
    assert "stages.0.blocks.0.attn.position.table" in spared
    assert "stages.0.blocks.0.attn.qkv.weight" not in spared


def test_rename_leaves_out_what_follows_from_the_size(reference):
    names = rename(reference["state_dict"])
    assert not any("mask" in name or "index" in name for name in names)
    assert names["stages.1.merge.reduction.weight"].shape == (24, 48)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"heads": (2, 3)}, "not divisible"), ({"heads": (2,)}, "stages"), ({"window": 0}, "windows")],
)
def test_refuses_in_words(change, message):
    with pytest.raises(ModelError, match=message):
        small(**change)
