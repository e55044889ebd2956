"""Token reduction where maps are asked for: tokens return to the full grid, and who can be reduced says so."""

import pytest
import torch

import vitreous
from vitreous.errors import ModelError
from vitreous.layers.decoders import DenseNet
from vitreous.layers.matching import match
from vitreous.layers.tokens import keep_left, keep_merged, returned, unmerged
from vitreous.methods._apply import reinstall
from vitreous.testing import images, make

REDUCED = {
    "tome": {"r": 3},
    "mctf": {"r": 3},
    "evit": {"keep_rate": 0.6},
    "random_drop": {"keep_rate": 0.6},
    "gtp_vit": {"leaving": 2},
}
TRUNKS = ["vit_test", "t2t_vit_test", "channelvit_test", "satmae_pp_test"]


@pytest.mark.parametrize("name", REDUCED)
@pytest.mark.parametrize("model", TRUNKS)
@torch.no_grad()
def test_maps_are_of_the_full_grid_and_near_those_of_all_tokens(name, model):
    plain, x = make(model, image_size=(18, 27)).eval(), images(2, 4, (18, 27))
    expected = plain.forward_levels(x)
    found = vitreous.apply(plain, name, **REDUCED[name]).model.eval().forward_levels(x)
    assert [level.shape for level in found] == [level.shape for level in expected]
    last, truth = found[-1], expected[-1]
    same = torch.corrcoef(torch.stack([last.flatten(), truth.flatten()]))[0, 1]
    assert not torch.equal(last, truth)
    assert same > 0.5  # cells lie where they lay: any shuffling of them makes this about 0


@torch.no_grad()
def test_asking_for_maps_changes_no_score():
    for name, settings in REDUCED.items():
        network = vitreous.apply(
            make("vit_test", image_size=(18, 27)).eval(), name, **settings
        ).model
        given = network.embed(images(2, 4, (18, 27)))
        whole = network.run_to(given, [2])[0]
        assert torch.equal(network.run_blocks(given)[:, 0], whole[:, 0]), name
        assert whole.shape == given.tokens.shape


@torch.no_grad()
def test_cells_that_left_come_back_as_they_left():
    """Of a network of one block that drops, nothing is done to those that it drops but its attention."""
    plain = make("vit_test", image_size=(9, 15)).eval()
    network = vitreous.apply(plain, "evit", keep_rate=0.4, blocks=[1]).model
    given = network.embed(images(2, 4, (9, 15)))
    before = network.run_to(given, [1])[0]
    after = network.run_to(given, [2])[0]
    attended = plain.blocks[1].attend(before)
    fed = plain.blocks[1].feed(attended)
    weights = plain.blocks[1].attn.core.weights(
        *plain.blocks[1].attn.project(plain.blocks[1].norm1(before))[:2]
    )
    kept = weights[:, :, 0, 1:].mean(1).topk(6, 1).indices + 1
    for image in range(2):
        stays = {0, *kept[image].tolist()}
        for place in range(16):
            wanted = fed if place in stays else attended
            torch.testing.assert_close(
                after[image, place], wanted[image, place], rtol=1e-4, atol=1e-5
            )


def test_merged_tokens_return_to_all_that_they_stand_for():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 11, 3, generator=generator)
    carry, tokens = {"origin": torch.arange(11).expand(2, -1)}, x
    members = [[{k} for k in range(11)] for _ in range(2)]
    for merged, ways in ((3, False), (2, True)):
        count = tokens.shape[1] - 1
        scores = torch.randn(2, count // 2, count - count // 2, generator=generator)
        groups = match(scores, merged, 1, both_ways=ways)
        carry = keep_merged(carry, groups)
        numbers = groups.numbers(2)
        members = [
            [
                set().union(*(own[k] for k in range(len(own)) if numbers[image, k] == group))
                for group in range(groups.kept)
            ]
            for image, own in enumerate(members)
        ]
        tokens = groups.sum(tokens)
        back = unmerged(tokens, carry)
        for image in range(2):
            for group, those in enumerate(members[image]):
                for place in those:
                    assert torch.equal(back[image, place], tokens[image, group])
                    torch.testing.assert_close(back[image, place], x[image, sorted(those)].sum(0))


def test_tokens_without_a_place_do_not_return():
    x = torch.arange(12.0).view(1, 6, 2)
    carry = keep_left({"origin": torch.arange(6)[None]}, x, torch.tensor([[0, 4, 2]]), added=1)
    handed = torch.cat([x[:, [0, 4, 2]] + 100, x.new_full((1, 1, 2), -1)], 1)
    carry = keep_left(
        carry, handed, torch.tensor([[0, 3, 1]])
    )  # the added one stays, the third leaves
    back = returned(handed[:, [0, 3, 1]] + 100, carry)
    expected = x.clone()
    expected[:, [0, 4]] += 200
    expected[:, 2] += 100
    assert torch.equal(back, expected)
    assert keep_left({}, x, torch.tensor([[0]])) == {}


def test_maps_with_a_reducer_that_knows_no_way_back_are_refused():
    network = make("vit_test").eval()

    class Halving(torch.nn.Module):
        def forward(self, x, block, carry, grid):
            return x[:, ::2], carry

    network.blocks[0].after = Halving()
    with torch.no_grad():
        assert network(images(1, 4, 15)).shape == (1, 5)
        with pytest.raises(ModelError, match="Halving does not bring tokens back"):
            network.forward_levels(images(1, 4, 15))


@pytest.mark.parametrize("seam", ["before", "reducer", "after"])
@torch.no_grad()
def test_a_reducer_stands_before_inside_or_after_a_block(seam):
    network, seen = make("vit_test", image_size=(9, 15)).eval(), []

    class Dropping(torch.nn.Module):
        restore = staticmethod(returned)

        def forward(self, x, block, carry, grid):
            seen.append((x, grid))
            x = block.attend(x) if seam == "reducer" else x
            stay = torch.tensor([0, 1, 5, 9]).expand(len(x), -1)
            return x[:, stay[0]], keep_left(carry or {}, x, stay)

    plain = network.run_to(network.embed(images(2, 4, (9, 15))), [1])[0]
    given = network.embed(images(2, 4, (9, 15)))
    setattr(network.blocks[0], seam, Dropping())
    full = network.run_to(given, [1])[0]
    x, grid = seen[0]
    assert grid == (3, 5)
    start = plain if seam == "after" else given.tokens
    torch.testing.assert_close(x, start)
    left = network.blocks[0].attend(start) if seam == "reducer" else start
    torch.testing.assert_close(full[:, [2, 15]], left[:, [2, 15]])
    if seam != "before":  # before the block, those that are gone are missing in the attention
        torch.testing.assert_close(full[:, [0, 1, 5, 9]], plain[:, [0, 1, 5, 9]])


def test_whose_tokens_must_keep_their_places_is_refused():
    network = make("vit_test")
    assert network.reducible
    for name in REDUCED:
        with pytest.raises(ModelError, match="needs all of its own"):
            vitreous.apply(make("vit_test").with_parts(reducible=False), name)
        with pytest.raises(ModelError, match="TransformerInTransformer needs all"):
            vitreous.apply(make("tnt_test"), name)


@pytest.mark.parametrize(("name", "grids"), [("vit_test", 1), ("channelvit_test", 4)])
@torch.no_grad()
def test_spatial_graph_of_an_oblong_grid_and_of_several(name, grids):
    plain = make(name, image_size=(9, 15)).eval()
    network = vitreous.apply(plain, "gtp_vit", leaving=1, graph="spatial").model
    seen = []
    network.blocks[0].reducer.register_forward_hook(lambda *call: seen.append(call[-1][1]))
    network(images(1, 4, (9, 15)))
    rows, columns = network.grid
    assert rows < columns
    links = seen[0]["graph"][0, 1:, 1:] > 0
    for a in range(grids * rows * columns):
        for b in range(grids * rows * columns):
            (grid, at), (other, to) = (divmod(k, rows * columns) for k in (a, b))
            apart = max(abs(at // columns - to // columns), abs(at % columns - to % columns))
            assert links[a, b] == (grid == other and apart == 1)


@pytest.mark.parametrize("name", REDUCED)
def test_what_labels_every_pixel_can_be_reduced(name):
    torch.manual_seed(0)
    plain = DenseNet(make("vit_test", image_size=(18, 27)), width=8)
    dense, report = vitreous.apply(plain, name, **REDUCED[name])
    tokens = []
    for row in report.rows:
        block = dense.get_submodule(row["layer"])
        block.register_forward_hook(lambda *call: tokens.append(call[-1][0].shape[1]))
    x = images(2, 4, (18, 27))
    scores = dense.train()(x)
    assert scores.shape == (2, 5, 18, 27)
    assert tokens == [row["tokens after"] for row in report.rows]
    assert report.rows[-1]["tokens after"] < report.rows[-1]["tokens before"]
    scores.square().sum().backward()
    silent = {n for n, p in dense.trunk.blocks.named_parameters() if not p.grad.abs().any()}
    assert not silent
    with torch.device("meta"):
        bare = DenseNet(
            vitreous.create_model("vit_test", bands=4, num_classes=5, image_size=(18, 27)), width=8
        )
        back = reinstall(bare, dense.methods)
    back.load_state_dict(dense.state_dict(), assign=True)
    with torch.no_grad():
        assert torch.equal(back.eval()(x), dense.eval()(x))
