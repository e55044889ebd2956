"""GTP-ViT: the authors' numbers, the graph, what leaves and who receives it, and what that costs."""

import copy

import pytest
import torch
import torch.nn.functional as F

import vitreous
from fixtures_reader import load_fixture
from vitreous.errors import ModelError
from vitreous.inference.cost import count_cost
from vitreous.methods.reduce import gtp_vit
from vitreous.methods.reduce.gtp_vit import SELECTIONS, adjacent, kth_smallest, largest, normalised

# The options of the reference that each set of its outputs changes.
OPTIONS = {
    "default": {},
    "dense": {"sparsity": 1.0},
    "spatial": {"graph_type": "Spatial"},
    "semantic": {"graph_type": "Semantic"},
    "cls_mean": {"selection": "CLSAttnMean"},
    "prune_only": {"propagation": "None"},
    "no_scale": {"token_scale": False},
}


@pytest.fixture(scope="module")
def fixture():
    return load_fixture("gtp_vit")


def model(**arguments):
    """Return a small network whose attention is far from even."""
    torch.manual_seed(0)
    shape = {"bands": 3, "num_classes": 4, "image_size": 18, "depth": 3}
    plain = vitreous.create_model("vit_test", **{**shape, **arguments})
    for parameter in plain.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return plain.eval()


def images(n=3, size=18):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(1))


def reduced(plain=None, **settings):
    return vitreous.apply(plain or model(), "gtp_vit", **{"leaving": 4, **settings}).model


def watch(network, x):
    """Run a network and return what each reducer hands on: tokens and the rest."""
    seen = []
    hooks = [
        block.reducer.register_forward_hook(lambda *call: seen.append(call[-1]))
        for block in network.blocks
    ]
    with torch.no_grad():
        network(x)
    for hook in hooks:
        hook.remove()
    return seen


# -- the reference ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", OPTIONS)
def test_equals_reference(fixture, case):
    arguments = {**fixture["kwargs"], **OPTIONS[case]}
    network = vitreous.from_reference("gtp_vit", fixture["state_dict"], arguments).eval()
    expected = fixture["output"][case]
    with torch.no_grad():
        scores = network(fixture["input"])
    torch.testing.assert_close(scores, expected["logits"], rtol=1e-5, atol=1e-6)
    # With gradients the weights are computed in another way.
    torch.testing.assert_close(
        network(fixture["input"]).detach(), expected["logits"], rtol=1e-5, atol=1e-6
    )
    behind = watch(network, fixture["input"])
    assert [x.shape[1] for x, _ in behind] == expected["tokens"]


def test_scales_and_graph_are_the_references(fixture):
    network = vitreous.from_reference("gtp_vit", fixture["state_dict"], fixture["kwargs"]).eval()
    behind = watch(network, fixture["input"])
    expected = fixture["output"]["default"]
    for (_, carry), scale in zip(behind, expected["token_scales"], strict=True):
        torch.testing.assert_close(carry["scale"], scale)
    carry = behind[-1][1]
    for graph, places, theirs in zip(
        carry["graph"], carry["places"], expected["graph_last"], strict=True
    ):
        left = graph[places[1:]][:, places[1:]].T / fixture["kwargs"]["alpha"]
        torch.testing.assert_close(left, theirs)


# -- identities ---------------------------------------------------------------------------------------------


@torch.no_grad()
def test_letting_nobody_leave_is_the_plain_model():
    plain = model()
    network = reduced(plain, leaving=0, theta=1.0)
    assert torch.equal(network(images()), plain(images()))


@torch.no_grad()
def test_theta_1_leaves_attention_as_it_is():
    weights = torch.rand(2, 3, 5, 5).softmax(-1)
    assert torch.equal(largest(weights.clone(), 1.0), weights)
    plain = model()
    torch.testing.assert_close(reduced(plain, leaving=0, theta=0.999999)(images()), plain(images()))
    assert not torch.allclose(reduced(plain, leaving=0, theta=0.2)(images()), plain(images()))


@pytest.mark.parametrize("share", [0.1, 0.37, 0.6, 0.99])
@pytest.mark.parametrize("gradients", [False, True])
def test_the_largest_share_of_the_weights_is_left(share, gradients):
    weights = torch.randn(2, 3, 13, 13).softmax(-1)
    with torch.set_grad_enabled(gradients):
        left = largest(weights.clone(), share)
    for ours, all_of_them in zip(
        left.flatten(0, 1).flatten(1), weights.flatten(0, 1).flatten(1), strict=True
    ):
        smaller = int(169 * (1 - share))
        expected = all_of_them.sort().values[max(smaller - 1, 0) :]
        assert torch.equal(ours[ours > 0].sort().values, expected)


def test_both_ways_to_find_the_threshold_agree():
    values = torch.randn(2, 3, 500)
    for k in (1, 77, 500):
        expected = values.sort(-1).values[..., k - 1]
        assert torch.equal(kth_smallest(values, k), expected)
        assert torch.equal(kth_smallest(values.double(), k), expected.double())


@torch.no_grad()
def test_alpha_0_only_prunes():
    plain = model()
    assert torch.equal(
        reduced(plain, alpha=0)(images()), reduced(plain, propagation="none")(images())
    )
    assert not torch.allclose(
        reduced(plain, alpha=0.5)(images()), reduced(plain, alpha=0)(images())
    )


@pytest.mark.parametrize("settings", [{}, {"graph": "semantic"}, {"propagation": "mean"}])
def test_scales_never_fall_below_1(settings):
    handed = [carry["scale"] for _, carry in watch(reduced(**settings), images())]
    assert all((scale >= 1).all() for scale in handed)
    assert all(torch.equal(scale[:, 0], torch.ones(3)) for scale in handed)  # the class token
    assert handed[-1].max() > 1


# -- the graph ----------------------------------------------------------------------------------------------


def test_neighbours_in_place():
    links = adjacent((6, 6), torch.device("cpu"))
    degree = links.sum(1).view(6, 6)
    assert degree[0, 0] == degree[0, 5] == degree[5, 0] == degree[5, 5] == 3
    assert (degree[1:-1, 1:-1] == 8).all()
    assert (degree[0, 1:-1] == 5).all()
    assert torch.equal(links, links.T)
    weights = normalised(links[None].float())
    torch.testing.assert_close(weights, weights.mT)
    assert weights[0, 0, 1] == pytest.approx((3 * 5) ** -0.5)
    # The symmetric norm: its largest eigenvalue is 1.
    assert torch.linalg.eigvalsh(weights[0]).max() == pytest.approx(1, abs=1e-5)


def test_neighbours_in_content():
    angle = torch.tensor([0.0, 0.1, 0.15, 1.5, 1.6, 3.1])
    patches = torch.stack([angle.cos(), angle.sin()], -1)[None] * torch.arange(1, 7)[:, None]
    links = gtp_vit.similar(patches, 1)[0].int()
    assert links.argmax(1).tolist() == [1, 2, 1, 4, 3, 4]
    assert (links.sum(1) == 1).all()
    assert torch.equal(gtp_vit.similar(patches, 9)[0], ~torch.eye(6, dtype=torch.bool))


def test_equal_patches_do_not_link_with_themselves():
    links = gtp_vit.similar(torch.ones(1, 9, 4), 2)
    assert not links.diagonal(dim1=1, dim2=2).any()
    assert torch.isfinite(normalised(links.float())).all()


@torch.no_grad()
def test_leaving_patches_hand_themselves_to_their_neighbours():
    """One block against a transcription by loops: a spatial graph, no sparsification."""
    network = reduced(graph="spatial", theta=1.0, alpha=0.3, selection="diagonal_mean")
    block, x = network.blocks[0], torch.randn(1, 37, 16)
    trace = block.attn.project(block.norm1(x))
    scores = trace.query @ trace.key.mT * trace.key.shape[-1] ** -0.5
    score = scores.softmax(-1).diagonal(dim1=2, dim2=3).mean(1)[0, 1:]
    attended = block.attend(x)[0]
    order = score.argsort(descending=True).tolist()
    stay, leave = order[:-4], order[-4:]

    def neighbours(place):
        near = [(place // 6 + i, place % 6 + j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
        inside = [6 * i + j for i, j in near if 0 <= i < 6 and 0 <= j < 6]
        return [other for other in inside if other != place]

    expected = [attended[0]]
    for place in stay:
        received = [
            attended[1 + gone] * (len(neighbours(place)) * len(neighbours(gone))) ** -0.5
            for gone in leave
            if gone in neighbours(place)
        ]
        expected.append(attended[1 + place] + 0.3 * sum(received))
    found, carry = block.reducer(x, block, None)
    torch.testing.assert_close(found[0], torch.stack(expected), rtol=1e-4, atol=1e-4)
    assert carry["places"][0].tolist() == [0, *(1 + place for place in stay)]


@torch.no_grad()
def test_propagating_into_a_mean():
    network = reduced(propagation="mean", theta=1.0)
    block, x = network.blocks[0], torch.randn(2, 37, 16)
    out, carry = block.reducer(x, block, None)
    assert out.shape[1] == 1 + 32 + 1
    gone = block.attend(x)[:, 1:].sum(1) - out[:, 1:-1].sum(1)
    torch.testing.assert_close(out[:, -1], gone / 4, rtol=1e-4, atol=1e-4)
    assert torch.equal(carry["scale"][:, -1], torch.full((2,), 4.0))


# -- selection ----------------------------------------------------------------------------------------------


def by_hand(weights, selection):
    """Transcribe the strategies, image by image and patch by patch; one token in front."""
    kind, _, over = selection.partition("_")
    found = torch.empty(weights.shape[0], weights.shape[2] - 1)
    for image, own in enumerate(weights):
        for patch in range(1, own.shape[1]):
            given = {
                "class": own[:, 0, patch],
                "image": own[:, :, patch].sum(1),
                "diagonal": own[:, patch, patch],
            }
            join = {key: v.mean() if over == "mean" else v.max() for key, v in given.items()}
            join["mixed"] = join["image"] * join["diagonal"]
            join["sum"] = join["image"] + join["diagonal"]
            rows = own.mean(0) if over == "mean" else own.amax(0)
            join["cosine"] = -F.cosine_similarity(rows[patch], rows[1:], dim=-1).sum()
            found[image, patch - 1] = join[kind]
    return found


@pytest.mark.parametrize("selection", [s for s in SELECTIONS if s != "random"])
@torch.no_grad()
def test_selection_is_what_it_says(selection):
    reducer = reduced(selection=selection).blocks[0].reducer
    weights = torch.randn(2, 3, 10, 10).softmax(-1)
    torch.testing.assert_close(
        reducer.score(weights), by_hand(weights, selection), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("theta", [1.0, 0.5])
@torch.no_grad()
def test_a_random_choice_is_repeatable_in_evaluation(theta):
    network, x = reduced(selection="random", theta=theta), images()
    scores = network(x)
    assert torch.equal(network(x), scores)
    torch.testing.assert_close(network(x[1:2]), scores[1:2])
    other = reduced(selection="random", theta=theta, seed=1)
    assert not torch.allclose(other(x), scores)
    network.train()
    assert not torch.allclose(network(x), network(x))


@torch.no_grad()
def test_tokens_in_front_never_leave():
    network = reduced(model(distilled=True, registers=2), leaving=10)
    for _, carry in watch(network, images()):
        assert torch.equal(carry["places"][:, :4], torch.arange(4).expand(3, 4))
        assert torch.equal(carry["scale"][:, :4], torch.ones(3, 4))
        assert all(len(set(row)) == len(row) for row in carry["places"].tolist())


@pytest.mark.parametrize("settings", [{}, {"theta": 1.0}, {"selection": "class_max", "theta": 1.0}])
@torch.no_grad()
def test_a_batch_in_turns_is_the_batch_at_once(settings, monkeypatch):
    network, x = reduced(**settings), images(7)
    scores = network(x)
    monkeypatch.setattr(gtp_vit, "CACHED", 2 * 2 * 37**2)  # two images at a time
    torch.testing.assert_close(network(x), scores)
    torch.testing.assert_close(torch.cat([network(image[None]) for image in x]), scores)


@torch.no_grad()
def test_the_order_of_the_patches_does_not_matter():
    """By content alone, and with all weights: where none are left of those that count, patches are equal."""
    network, x = reduced(graph="semantic", theta=1.0), torch.randn(2, 37, 16)
    order = torch.randperm(36) + 1
    both = []
    for tokens in (x, torch.cat([x[:, :1], x[:, order]], 1)):
        carry = None
        for block in network.blocks:
            tokens, carry = block(tokens, None, carry)
        both.append(tokens)
    torch.testing.assert_close(*both, rtol=1e-3, atol=1e-4)


# -- budgets ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "published", [row for row in gtp_vit.CARD.published if row["model"] == "vit_small"]
)
def test_cost_is_the_papers(published):
    with torch.device("meta"):
        plain = vitreous.create_model("vit_small", bands=3, num_classes=1000, image_size=224)
    changed, report = vitreous.apply(plain, "gtp_vit", leaving=published["leaving"])
    cost = count_cost(changed, 3, 224)
    assert cost.macs / 1e9 == pytest.approx(published["gmacs"], rel=0.01)
    assert cost.parameters == sum(p.numel() for p in plain.parameters())
    assert [row["tokens after"] for row in report.rows] == [
        197 - published["leaving"] * (number + 1) for number in range(12)
    ]


def test_a_share_is_of_the_patches_of_the_models_image():
    with torch.device("meta"):
        plain = vitreous.create_model("vit_small", bands=3, num_classes=10, image_size=224)
    rows = vitreous.apply(plain, "gtp_vit").report.rows
    assert [row["tokens before"] - row["tokens after"] for row in rows] == [8] * 12
    rows = vitreous.apply(model(image_size=9), "gtp_vit").report.rows
    assert [row["tokens after"] for row in rows] == [9, 8, 7]


def test_counts_may_differ_from_block_to_block():
    behind = watch(reduced(leaving=[0, 9, 0.5]), images())
    assert [x.shape[1] - 1 for x, _ in behind] == [36, 27, 9]


def test_one_patch_is_left_on_smaller_images():
    assert watch(reduced(leaving=10), images(size=12))[-1][0].shape[1] == 2


def test_checkpointing_changes_no_gradient():
    found = []
    for on in (False, True):
        network = reduced().train()
        network.checkpointing = on
        network(images()).square().sum().backward()
        found.append([p.grad for p in network.parameters()])
    for plain, again in zip(*found, strict=True):
        torch.testing.assert_close(plain, again)


def test_steps_that_a_method_replaces_are_used():
    network = reduced(theta=1.0)
    network.blocks[0].attn.core.explicit = True
    network.blocks[0].attn.core.softmax.register_forward_hook(lambda *call: torch.zeros_like(call[-1]))  # fmt: skip
    plain = copy.deepcopy(network)
    plain.blocks[0].attn.core.softmax._forward_hooks.clear()
    with torch.no_grad():
        assert not torch.allclose(network(images()), plain(images()))


# -- refusals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"leaving": -1}, "cannot remove -1 patches"),
        ({"leaving": 2.5}, "cannot remove 2.5 patches"),
        ({"leaving": 12}, "36 of 36 patches.*at most 11"),
        ({"leaving": [1, 2]}, "2 values of 'leaving' for 3 blocks"),
        ({"theta": 0}, "theta"),
        ({"theta": 1.1}, "theta"),
        ({"alpha": -0.1}, "alpha"),
        ({"neighbours": 0}, "neighbours = 0"),
        ({"selection": "mixed_maximum"}, "Did you mean 'mixed_max'"),
        ({"propagation": "graphs"}, "Did you mean 'graph'"),
        ({"graph": "spacial"}, "Did you mean 'spatial'"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ModelError, match=message):
        reduced(**settings)


def test_other_networks_are_refused():
    with pytest.raises(ModelError, match="rotary"):
        reduced(model(positions="rotary"))
    with pytest.raises(ModelError, match="pools by 'mean'"):
        reduced(model(pool="mean"), selection="class_mean")
