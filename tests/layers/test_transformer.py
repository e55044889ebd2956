"""The transformer block's seams: scores that a method changes, parts that a variation of ViT passes in."""

import itertools

import pytest
import torch
from torch import nn

import vitreous
from vitreous.catalog.registry import list_models
from vitreous.errors import ModelError
from vitreous.layers.attention import AttentionCore
from vitreous.layers.positions import Positions
from vitreous.layers.transformer import Block
from vitreous.testing import images, make


class Recorded(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor, self.seen = factor, []

    def forward(self, scores, grid):
        self.seen.append((tuple(scores.shape), grid))
        return self.factor * scores


@torch.no_grad()
def test_scores_are_changed_between_bias_and_softmax():
    core = AttentionCore()
    query, key, value = torch.randn(3, 2, 2, 6, 4)
    bias = torch.randn(1, 1, 6, 6)
    assert core.fused
    plain = core(query, key, value, bias)
    core.set_submodule("scores", Recorded(0.5))
    assert not core.fused
    expected = (0.5 * (query @ key.mT / 2 + bias)).softmax(-1) @ value
    torch.testing.assert_close(core(query, key, value, bias, (2, 3)), expected)
    assert core.scores.seen == [((2, 2, 6, 6), (2, 3))]
    assert not torch.allclose(plain, expected)
    core.set_submodule("scores", Recorded(1))
    torch.testing.assert_close(core(query, key, value, bias), plain)


@pytest.mark.parametrize(
    "name",
    [
        "vit_test",
        "t2t_vit_test",
        "crossvit_test",
        "tnt_test",
        "spectformer_test",
        "satmae_pp_test",
        "channelvit_test",
    ],
)
@torch.no_grad()
def test_every_core_over_a_grid_tells_its_sizes(name):
    """The grid's cells are the last keys; those in front of them are few."""
    size = (18, 27)
    network = make(name, image_size=size).eval()
    cores = {n: m for n, m in network.named_modules() if isinstance(m, AttentionCore)}
    for core in cores.values():
        core.set_submodule("scores", Recorded(1))
    plain = make(name, image_size=size).eval()
    x = images(2, 4, size)
    torch.testing.assert_close(network(x), plain(x), rtol=1e-3, atol=1e-4)
    for at, core in cores.items():
        assert core.scores.seen, f"{at} is not called"
        for shape, grid in core.scores.seen:
            assert grid is not None, f"{at} does not tell its grid"
            cells = grid[0] * grid[1] * getattr(network, "stacked", 1)
            assert shape[-1] - cells in (0, 1), (at, shape, grid)
            assert grid[0] < grid[1] or ".inner" in at, (at, grid)


@pytest.mark.parametrize("name", list_models("*_test", kind="model"))
@torch.no_grad()
def test_every_core_of_every_architecture_tells_its_sizes(name):
    network, x = make(name).eval(), images(1, 4, 15)
    cores = [m for m in network.modules() if isinstance(m, AttentionCore)]
    for core in cores:
        core.set_submodule("scores", Recorded(1))
    network(x)
    for core in cores:
        for shape, (rows, columns) in core.scores.seen:
            per_head = shape[1] if name == "dhvt_test" else 0  # further tokens
            tokens = {*shape, shape[-1] - 1, shape[-1] - 1 - per_head}
            assert rows * columns * getattr(network, "stacked", 1) in tokens


@torch.no_grad()
def test_a_mask_by_distance_knows_rows_from_columns():
    """Attention to one's own row alone, by the grid that is handed over, equals attention within each row."""

    class OwnRow(nn.Module):
        def forward(self, scores, grid):
            row = torch.arange(grid[0]).repeat_interleave(grid[1])
            return scores.masked_fill(row[:, None] != row, -torch.inf)

    network = make("vit_test", image_size=(9, 15)).eval()
    block = network.blocks[0]
    x = torch.randn(1, 15, 16)
    block.attn.core.set_submodule("scores", OwnRow())
    found = block(x, None, None, (3, 5))[0]
    block.attn.core.set_submodule("scores", AttentionCore().scores)
    rows = [block(part)[0] for part in x.split(5, 1)]
    torch.testing.assert_close(found, torch.cat(rows, 1))


@torch.no_grad()
def test_methods_see_changed_scores_too():
    for name in ("evit", "gtp_vit", "mctf"):
        found = []
        for factor in (1.0, 0.0):
            network = vitreous.apply(make("vit_test").eval(), name).model
            for block in network.blocks:
                block.attn.core.set_submodule("scores", Recorded(factor))
            found.append(network(images(2, 4, 15)))
            assert all(block.attn.core.scores.seen for block in network.blocks)
        assert not torch.allclose(*found)


@torch.no_grad()
def test_the_trunks_sum_is_a_part():
    """Running sums: the tokens, then behind each branch; their differences are the paths."""

    class Weighted(nn.Module):
        def forward(self, paths):
            self.paths = list(paths)
            parts = [paths[0], *(b - a for a, b in itertools.pairwise(paths))]
            return sum(0.5 * part for part in parts)

    plain, x = make("vit_test").eval(), images(2, 4, 15)
    given = plain.embed(x)
    total = plain.run_blocks(given)
    join = Weighted()
    varied = make("vit_test").with_parts(join=join).eval()
    torch.testing.assert_close(varied.run_blocks(given), total / 2)
    assert len(join.paths) == 1 + 2 * 2
    torch.testing.assert_close(join.paths[1], plain.blocks[0].attend(given.tokens))
    torch.testing.assert_close(join.paths[2], plain.blocks[0](given.tokens)[0])
    torch.testing.assert_close(join.paths[4], total)
    levels, before = varied.forward_levels(x), plain.forward_levels(x)
    torch.testing.assert_close(
        levels[0], before[0]
    )  # behind the first block: no output of the trunk yet
    cells = plain.norm(total / 2)[:, 1:].mT.unflatten(2, plain.grid)
    torch.testing.assert_close(levels[1], cells)


@torch.no_grad()
def test_positions_are_a_part():
    class Convolved(Positions):
        """Depth-wise convolution of the cells, as conditional positions have it."""

        def __init__(self, dim):
            super().__init__()
            self.conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

        def embed(self, tokens, grid):
            front = tokens.shape[1] - grid[0] * grid[1]
            cells = tokens[:, front:].mT.unflatten(2, grid)
            return torch.cat([tokens[:, :front], (cells + self.conv(cells)).flatten(2).mT], 1)

    network = make("vit_test", image_size=(9, 15)).with_parts(positions=Convolved(16)).eval()
    names = network.state_dict()
    assert "pos_embed" not in names
    assert "positions.conv.weight" in names
    x = images(2, 4, (12, 18))
    patches = network.patch_embed(x)
    cells = patches + network.positions.conv(patches)
    given = network.embed(x)
    torch.testing.assert_close(given.tokens[:, 1:], cells.flatten(2).mT)
    torch.testing.assert_close(given.tokens[:, :1], network.class_token.expand(2, -1, -1))
    assert given.grid == (4, 6)
    assert network(x).shape == (2, 5)


@torch.no_grad()
def test_rotary_positions_turn_with_row_and_column():
    """Scores depend on differences of places only, on both axes, with registers in front."""
    network = make_vit(positions="rotary", registers=2, image_size=(12, 18))
    assert not network.reducible
    turn = network.embed(images(1, 4, (12, 18))).turn
    assert turn.shape == (3 + 4 * 6, 4)
    assert (turn[:3] == 0).all()
    angles = turn[3:].view(4, 6, 4)
    steps = torch.arange(4.0)[:, None] * angles[1, 0, :2]
    torch.testing.assert_close(angles[:, 0, :2], steps)
    assert torch.equal(angles[..., :2], angles[:, :1, :2].expand(4, 6, 2))  # the first half: rows
    assert torch.equal(angles[..., 2:], angles[:1, :, 2:].expand(4, 6, 2))
    with pytest.raises(ModelError, match="rotary positions"):
        vitreous.apply(network, "tome")


def make_vit(**arguments):
    torch.manual_seed(0)
    sizes = {"bands": 4, "num_classes": 5, "image_size": 15}
    return vitreous.create_model("vit_test", **{**sizes, **arguments}).eval()


@torch.no_grad()
def test_without_positions_patches_may_be_shuffled():
    network = make_vit(positions="none", pool="mean")
    x = images(2, 4, (6, 9))
    patches = x.unfold(2, 3, 3).unfold(3, 3, 3)  # batch, band, 2, 3, 3, 3
    shuffled = patches.flip(2, 3).permute(0, 1, 2, 4, 3, 5).reshape(x.shape)
    torch.testing.assert_close(network(shuffled), network(x), rtol=1e-4, atol=1e-5)


def test_gradients_flow_through_checkpointed_seams():
    block = Block(8, 2, 2.0)
    x = torch.randn(2, 6, 8, requires_grad=True)
    out, carry = block(x, None, {"middle": x}, (2, 3))
    torch.testing.assert_close(carry["middle"], block.attend(x))
    out.sum().backward()
    assert x.grad is not None
