"""EViT and random dropping: the authors' numbers, which tokens stay, what they cost, and the schedule."""

import copy
import math

import pytest
import torch

import vitreous
from fixtures_reader import load_fixture
from vitreous.errors import ModelError
from vitreous.inference.cost import count_cost
from vitreous.layers.tokens import gather_tokens
from vitreous.layers.transformer import Block
from vitreous.methods.reduce import evit


@pytest.fixture(scope="module")
def fixture():
    return load_fixture("evit")


def model(**arguments):
    """Return a small network whose attention is far from even."""
    torch.manual_seed(0)
    shape = {"bands": 3, "num_classes": 4, "image_size": 18, "depth": 4}
    plain = vitreous.create_model("vit_test", **{**shape, **arguments})
    for parameter in plain.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return plain.eval()


def images(n=3, size=18):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(1))


def tokens_behind(network, x):
    """Run a network and return what leaves each block."""
    seen = []
    hooks = [
        block.register_forward_hook(lambda *call: seen.append(call[-1][0]))
        for block in network.blocks
    ]
    with torch.no_grad():
        network(x)
    for hook in hooks:
        hook.remove()
    return seen


# -- the reference ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "logits"),
        ({"keep_rate": [1]}, "logits_keep_rate_1"),
        ({"fuse_token": False}, "logits_no_fuse"),
    ],
)
@torch.no_grad()
def test_equals_reference(fixture, changes, expected):
    network = vitreous.from_reference(
        "evit", fixture["state_dict"], {**fixture["kwargs"], **changes}
    )
    scores = network.eval()(fixture["input"])
    torch.testing.assert_close(scores, fixture["output"][expected], rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_keeps_the_tokens_that_the_reference_keeps(fixture, monkeypatch):
    chosen = []

    def spy(x, places):
        chosen.append(places - 1)  # behind the class token
        return gather_tokens(x, places)

    network = vitreous.from_reference("evit", fixture["state_dict"], fixture["kwargs"]).eval()
    monkeypatch.setattr(evit, "gather_tokens", spy)
    behind = tokens_behind(network, fixture["input"])
    for ours, theirs in zip(chosen, fixture["output"]["idx"], strict=True):
        assert torch.equal(ours, theirs)
    assert [len(x[0]) - 1 for x in behind] == fixture["output"]["left_tokens"]


# -- identities ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["evit", "random_drop"])
@pytest.mark.parametrize("settings", [{"keep_rate": 1}, {"tokens": 36}])
@torch.no_grad()
def test_keeping_everything_is_the_plain_model(name, settings):
    plain = model()
    assert torch.equal(vitreous.apply(plain, name, **settings).model(images()), plain(images()))


@torch.no_grad()
def test_kept_and_fused_make_up_all_tokens():
    """Against a plain transcription: what is kept, in order, and the weighted sum of everything else."""
    network, x = model(), torch.randn(2, 37, 16)
    block = network.blocks[1]
    trace = block.attn.project(block.norm1(x))
    row = block.attn.core.weights(trace.query, trace.key)[:, :, 0, 1:].mean(1)
    attended = block.attend(x)
    out, _ = evit.AttentiveTokens(0.7, prefix=1)(x, block, None)
    for image in range(2):
        order = sorted(range(36), key=lambda place: -float(row[image, place]))
        kept, dropped = order[:26], order[26:]
        assert sorted(kept + dropped) == list(range(36))
        fused = sum(row[image, place] * attended[image, 1 + place] for place in dropped)
        expected = torch.stack(
            [attended[image, 0], *(attended[image, 1 + place] for place in kept), fused]
        )
        torch.testing.assert_close(out[image], expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_with_even_attention_the_fused_token_is_the_sum_of_the_dropped_over_all():
    block = Block(16, 2, 2.0, 0.0, None).eval()
    torch.nn.init.zeros_(block.attn.qkv.weight)  # all scores 0
    x = torch.randn(2, 11, 16)
    out, _ = evit.AttentiveTokens(0.5, prefix=1)(x, block, None)
    assert out.shape[1] == 1 + 5 + 1
    total = block.attend(x)[:, 1:].sum(1)
    torch.testing.assert_close(out[:, -1] * 11, total - out[:, 1:-1].sum(1), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_order_of_the_patches_does_not_matter():
    x, order = torch.randn(2, 37, 16), torch.randperm(36) + 1
    block, reducer = model().blocks[0], evit.AttentiveTokens(0.6, prefix=1)
    shuffled = torch.cat([x[:, :1], x[:, order]], 1)
    torch.testing.assert_close(
        reducer(shuffled, block, None)[0], reducer(x, block, None)[0], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("name", ["evit", "random_drop"])
def test_tokens_in_front_are_never_dropped(name):
    """Distillation and register tokens: their rows behind a reducing block are what attention made of them."""
    plain = model(distilled=True, registers=2)
    reduced = vitreous.apply(plain, name, keep_rate=0.1, blocks=[0]).model
    front = tokens_behind(plain, images())[0][:, :4]
    torch.testing.assert_close(tokens_behind(reduced, images())[0][:, :4], front)


# -- budgets ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keep_rate", "counts"),
    [
        (0.9, (178, 162, 147)),
        (0.8, (158, 128, 104)),
        (0.7, (139, 99, 71)),
        (0.6, (119, 73, 45)),
        (0.5, (99, 51, 27)),
    ],
)
def test_counts_and_cost_are_the_papers(keep_rate, counts):
    with torch.device("meta"):
        plain = vitreous.create_model("vit_small", bands=3, num_classes=1000, image_size=224)
    reduced, report = vitreous.apply(plain, "evit", keep_rate=keep_rate)
    assert [row["layer"] for row in report.rows] == ["blocks.3", "blocks.6", "blocks.9"]
    assert tuple(row["tokens after"] - 1 for row in report.rows) == counts
    published = next(row for row in evit.CARD.published if row["keep_rate"] == keep_rate)
    cost = count_cost(reduced, 3, 224)
    assert cost.macs / 1e9 == pytest.approx(published["gmacs"], rel=0.005)
    assert cost.parameters == sum(p.numel() for p in plain.parameters())


@pytest.mark.parametrize(
    ("depth", "expected"), [(12, [3, 6, 9]), (24, [6, 12, 18]), (6, [1, 3, 4]), (2, [1]), (1, [0])]
)
def test_default_blocks(depth, expected):
    rows = vitreous.apply(model(depth=depth), "evit").report.rows
    assert [row["layer"] for row in rows] == [f"blocks.{number}" for number in expected]


def test_exact_counts_and_no_fusion():
    reduced, report = vitreous.apply(
        model(), "evit", tokens=[20, 7], blocks=[0, 2], keep_rate=0.9, fuse=False
    )
    assert [x.shape[1] - 1 for x in tokens_behind(reduced, images())] == [20, 20, 7, 7]
    assert [row["tokens after"] for row in report.rows] == [21, 8]


def test_another_image_size_has_its_own_counts():
    reduced = vitreous.apply(model(), "evit", keep_rate=0.5, blocks=[1]).model
    assert [x.shape[1] for x in tokens_behind(reduced, images(size=12))] == [17, 1 + 8 + 1, 10, 10]


# -- training -----------------------------------------------------------------------------------------------


def followed(network, done, **schedule):
    """Tell the reducers how much of the training is done; return their keep rates."""
    for reducer in evit.reducers(network):
        for name, value in schedule.items():
            setattr(reducer, name, value)
        reducer.progress(done)
    return [reducer.rate for reducer in evit.reducers(network)]


def test_the_schedule_falls_along_half_a_cosine_and_only_in_training():
    network = vitreous.apply(model(), "evit", keep_rate=[0.5, 0.8], blocks=[0, 1]).model

    def rates(done):
        return followed(network, done, start=0.1, shrink=0.4)

    assert rates(0.0) == rates(0.1) == [1.0, 1.0]
    assert rates(0.2) == pytest.approx([0.75 + 0.25 * math.sqrt(0.5), 0.9 + 0.1 * math.sqrt(0.5)])
    assert rates(0.3) == pytest.approx([0.75, 0.9])
    assert rates(0.5) == rates(1.0) == [0.5, 0.8]
    followed(network, 0.0)
    assert len(tokens_behind(network, images())[0][0]) == 1 + 18 + 1
    assert len(tokens_behind(network.train(), images())[0][0]) == 37


def test_the_schedule_is_followed_at_once_where_it_takes_no_time():
    network = vitreous.apply(model(), "evit", keep_rate=0.5, blocks=[0]).model
    assert followed(network, 0.0, start=0.0, shrink=0.0) == [0.5]


def test_gradients_reach_what_the_dropped_tokens_came_from():
    """The fused token is weighted by attention, so that queries and keys learn from it."""
    block, x = model().blocks[0], torch.randn(1, 10, 16, requires_grad=True)
    out, _ = evit.AttentiveTokens(0.5, prefix=1)(x, block, None)
    out[:, -1].sum().backward()
    assert x.grad.abs().sum(-1).min() > 0
    assert block.attn.qkv.weight.grad[:16].abs().max() > 0  # of the queries


@pytest.mark.parametrize("name", ["evit", "random_drop"])
def test_checkpointing_changes_no_gradient(name):
    found = []
    for on in (False, True):
        network = vitreous.apply(model(), name, keep_rate=0.6).model.train()
        network.checkpointing = on
        torch.manual_seed(0)
        network(images()).square().sum().backward()
        found.append([p.grad for p in network.parameters()])
    for plain, again in zip(*found, strict=True):
        torch.testing.assert_close(plain, again)


# -- random dropping ----------------------------------------------------------------------------------------


@torch.no_grad()
def test_random_dropping_is_repeatable_in_evaluation_and_not_in_training():
    plain, x = model(), images()
    first = vitreous.apply(plain, "random_drop", keep_rate=0.3).model
    scores = first(x)
    assert torch.equal(first(x), scores)
    assert torch.equal(copy.deepcopy(first)(x), scores)
    torch.testing.assert_close(first(x[1:2]), scores[1:2])
    assert not torch.allclose(vitreous.apply(plain, "random_drop", keep_rate=0.3, seed=1).model(x), scores)  # fmt: skip
    first.train()
    assert not torch.allclose(first(x), first(x))


@torch.no_grad()
def test_random_dropping_keeps_each_place_alike():
    """A place stays with the probability of the keep rate, and nothing stays twice."""
    reducer = vitreous.apply(model(), "random_drop").model.blocks[1].reducer.train()
    x = torch.arange(37.0).expand(400, 37)[..., None].repeat(1, 1, 16)
    block = model().blocks[1]
    torch.nn.init.zeros_(block.attn.proj.weight)
    torch.nn.init.zeros_(
        block.attn.proj.bias
    )  # attention adds nothing: tokens show where they were
    kept = reducer(x, block, None)[0][:, 1:, 0].long()
    assert all(len(set(row)) == 26 for row in kept.tolist())
    share = torch.bincount(kept.flatten(), minlength=37)[1:] / 400
    assert share.min() > 0.6
    assert share.max() < 0.85


# -- refusals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["evit", "random_drop"])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keep_rate": 0}, "cannot keep the fraction 0 of"),
        ({"keep_rate": 1.2}, "cannot keep the fraction 1.2 of"),
        ({"keep_rate": [0.5, 0.6]}, "2 values of 'keep_rate' for 3 blocks"),
        ({"tokens": 0}, "keep 0 tokens"),
        ({"blocks": [4]}, "0 to 3"),
        ({"blocks": [2, 1]}, "increasing"),
        ({"blocks": []}, "increasing"),
    ],
)
def test_bad_settings_are_refused(name, settings, message):
    with pytest.raises(ModelError, match=message):
        vitreous.apply(model(), name, **settings)


@pytest.mark.parametrize("name", ["evit", "random_drop"])
def test_other_networks_are_refused(name):
    with pytest.raises(ModelError, match="plain Vision Transformer"):
        vitreous.apply(
            vitreous.create_model("swin_test", bands=3, num_classes=4, image_size=15), name
        )
    with pytest.raises(ModelError, match="rotary"):
        vitreous.apply(model(positions="rotary"), name)


def test_a_network_without_class_token_is_refused():
    with pytest.raises(ModelError, match="pools by 'mean'"):
        vitreous.apply(model(pool="mean"), "evit")
