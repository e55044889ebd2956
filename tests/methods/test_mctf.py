import math

import pytest
import torch
import torch.nn.functional as F

import vitreous
from fixtures_reader import load_fixture
from vitreous.errors import ModelError
from vitreous.inference.cost import count_cost
from vitreous.layers.matching import Grouping, cosines, match
from vitreous.methods.reduce import mctf

# The options of the reference's ``mctf_type`` that each set of its outputs changes, by their place in the list.
OPTIONS = {
    "default": {},
    "unidirectional": {8: 0},
    "precise": {4: 2},
    "size_pool": {9: 0},
    "sim_only": {6: 0, 7: 0, 9: 0},
    "r0": {0: 0},
}


def model(**arguments):
    torch.manual_seed(0)
    built = vitreous.create_model(
        "vit_test", bands=4, num_classes=5, image_size=15, depth=4, **arguments
    )
    for (
        parameter
    ) in built.parameters():  # far from the small first weights, so that attention is no mere mean
        torch.nn.init.normal_(parameter, std=0.4)
    return built.eval()


def images(count=3, size=15):
    return torch.randn(count, 4, size, size, generator=torch.Generator().manual_seed(1))


def reduced(plain, **settings):
    return vitreous.apply(plain, "mctf", **settings).model


def watch(network):
    """Return a list that gets (tokens after a block, sizes or None) as ``network`` runs."""
    seen = []
    for block in network.blocks:
        block.register_forward_hook(
            lambda _, __, out: seen.append((out[0].shape[1], (out[1] or {}).get("size")))
        )
    return seen


def rand(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


# -- against the reference ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fixture():
    return load_fixture("mctf")


@pytest.mark.parametrize("name", OPTIONS)
def test_equals_the_reference(fixture, name):
    options = list(fixture["kwargs"]["mctf_type"])
    for place, value in OPTIONS[name].items():
        options[place] = value
    network = vitreous.from_reference(
        "mctf", fixture["state_dict"], {**fixture["kwargs"], "mctf_type": options}
    ).eval()
    seen, expected = watch(network), fixture["output"][name]
    with torch.no_grad():
        torch.testing.assert_close(
            network(fixture["input"]), expected["logits"], rtol=1e-5, atol=1e-6
        )
    assert [tokens for tokens, _ in seen] == expected["tokens"]
    if expected["size"] is not None:
        torch.testing.assert_close(seen[-1][1], expected["size"][..., 0])


def test_one_step_equals_the_reference(fixture):
    unit = fixture["output"]["unit"]
    x, attention, size = unit["x"], unit["attn"], unit["size"][..., 0]
    groups, shares, sizes = mctf.Fusion(5, 1).fuse(
        x, mctf.mean_attention(attention), size, unit["r"]
    )
    torch.testing.assert_close(groups.sum(x * shares), unit["x_out"])
    torch.testing.assert_close(sizes, unit["size_out"][..., 0])
    rows = merged_attention(attention, groups, shares)
    torch.testing.assert_close(rows, unit["attn_out"])
    torch.testing.assert_close(rows.sum(-1), torch.ones(rows.shape[:-1]))


def merged_attention(attention, groups, shares):
    """Return the attention among groups: columns added, rows averaged."""
    one = torch.eye(groups.kept).expand(len(attention), -1, -1)
    columns = attention @ groups.spread(one)[:, None]
    return torch.stack([groups.sum(head * shares) for head in columns.unbind(1)], 1)


# -- matching -------------------------------------------------------------------------------------------------


def merge_by_hand(scores, merged, prefix, both_ways):
    """Return the members of each group of one image, in order, told step by step."""
    sources, targets = scores.shape
    source = {i: {prefix + 1 + 2 * i} for i in range(sources)}
    target = {j: {prefix + 2 * j} for j in range(targets)}
    first = merged // 2 if both_ways else merged
    for i in scores.amax(1).argsort(descending=True)[:first].tolist():
        target[int(scores[i].argmax())] |= source.pop(i)
    if both_ways:
        left = sorted(source)
        best = scores[left].amax(0)
        order = best.argsort(descending=True).tolist()
        target = {j: target[j] for j in order}
        for j in order[: merged - first]:
            source[left[int(scores[left][:, j].argmax())]] |= target.pop(j)
    return [{k} for k in range(prefix)] + [source[i] for i in sorted(source)] + [*target.values()]


@pytest.mark.parametrize("both_ways", [False, True])
@pytest.mark.parametrize("prefix", [0, 1, 3])
@pytest.mark.parametrize(("patches", "merged"), [(2, 1), (9, 1), (9, 4), (16, 5), (16, 8)])
def test_matching_step_by_step(patches, merged, prefix, both_ways):
    scores = rand(3, patches // 2, patches - patches // 2)
    groups = match(scores, merged, prefix, both_ways=both_ways)
    assert groups.kept == prefix + patches - merged
    rows = groups.rows.view(3, -1) - torch.arange(3)[:, None] * groups.kept
    for image, own in zip(scores, rows, strict=True):
        found = [set((own == k).nonzero().flatten().tolist()) for k in range(groups.kept)]
        assert found == merge_by_hand(image, merged, prefix, both_ways)


def test_sums_and_shares_of_groups():
    groups = Grouping(torch.tensor([0, 1, 0, 2, 2, 3]), 2)
    x, weight = rand(2, 3, 4), rand(2, 3, seed=1) + 0.1
    summed, shares = groups.sum(x), groups.shares(weight)
    torch.testing.assert_close(summed[0], torch.stack([x[0, 0] + x[0, 2], x[0, 1]]))
    torch.testing.assert_close(summed[1], torch.stack([x[1, 0] + x[1, 1], x[1, 2]]))
    torch.testing.assert_close(groups.spread(summed)[1], summed[1, [0, 0, 1]])
    torch.testing.assert_close(shares[0, 0, 0], weight[0, 0] / (weight[0, 0] + weight[0, 2]))
    assert shares[0, 1] == 1


def test_cosines_stand_a_vector_of_zeros():
    x = torch.cat([torch.zeros(1, 2, 3), rand(1, 3, 3)], 1)
    assert torch.isfinite(cosines(x, 1)).all()


# -- identities -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", mctf.WAYS)
@pytest.mark.parametrize("arguments", [{}, {"distilled": True, "registers": 2}, {"pool": "mean"}])
def test_nothing_merged_is_the_plain_model(attention, arguments):
    plain, x = model(**arguments), images()
    with torch.no_grad():
        assert torch.equal(reduced(plain, r=0, attention=attention)(x), plain(x))


def test_tokens_in_front_stay_alone():
    network = reduced(model(distilled=True, registers=2), r=4)
    seen = watch(network)
    network(images())
    for tokens, size in seen[1:]:
        assert (size[:, :4] == 1).all()
        assert size.shape[1] == tokens
        assert (size.sum(1) == 29).all()
    assert [tokens for tokens, _ in seen] == [29, 25, 21, 17]


def test_equal_tokens_stay_what_they_are():
    x = rand(1, 1, 16).expand(2, 14, -1)
    groups, shares, _ = mctf.Fusion(4, 1).fuse(x, rand(2, 14) + 0.1, None, 4)
    torch.testing.assert_close(groups.sum(x * shares), x[:, :10])


def test_the_attention_that_is_reused():
    block = model().blocks[1]
    fusion, x, size = mctf.Fusion(6, 1), rand(2, 21, 16) - 0.5, 1 + 3 * rand(2, 21, seed=1)
    found, carry = fusion(x, block, {"size": size})
    trace = block.attn.project(block.norm1(x))
    scores = trace.query @ trace.key.mT / math.sqrt(8) + size.log()[:, None, None]
    attention = scores.softmax(-1)
    groups, shares, sizes = fusion.fuse(x, mctf.mean_attention(attention), size, 6)
    merged = groups.sum(x * shares)
    value = block.attn.project(block.norm1(merged)).value
    mixed = merged_attention(attention, groups, shares) @ value
    torch.testing.assert_close(found, merged + block.attn.join(mixed), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(carry["size"], sizes)


def test_merging_behind_goes_by_the_block_before():
    plain, x = model(), images()
    network = reduced(plain, r=5, blocks=[1, 2], attention="behind")
    seen = watch(network)
    with torch.no_grad():
        network(x)
        tokens = plain.embed(x).tokens
        for block in plain.blocks[:2]:
            before, (tokens, _) = tokens, block(tokens)
        trace = plain.blocks[1].attn.project(plain.blocks[1].norm1(before))
        attention = (trace.query @ trace.key.mT / math.sqrt(8)).softmax(-1)
        _, _, sizes = mctf.Fusion(5, 1).fuse(tokens, mctf.mean_attention(attention), None, 5)
    assert [count for count, _ in seen] == [26, 26, 21, 16]
    torch.testing.assert_close(seen[2][1], sizes)


def test_a_temperature_of_zero_leaves_its_criterion_out():
    x, other = rand(2, 21, 16), rand(2, 21, 16, seed=1)
    mass, size = rand(2, 21, seed=2) + 0.01, 1 + 5 * rand(2, 21, seed=3)
    flat = torch.ones_like(size)

    def rows(tau, *inputs):
        return mctf.Fusion(6, 1, tau=tau, pooling="mean").fuse(*inputs, 6)[0].rows

    full = (1.0, 20.0, 40.0)
    assert torch.equal(rows((0, *full[1:]), x, mass, size), rows((0, *full[1:]), other, mass, size))
    assert torch.equal(rows((1, 0, 40), x, mass, size), rows((1, 0, 40), x, flat, size))
    assert torch.equal(rows((1, 20, 0), x, mass, size), rows((1, 20, 0), x, mass, flat))
    for inputs in ((other, mass, size), (x, flat, size), (x, mass, flat)):
        assert not torch.equal(rows((1, 2, 2), x, mass, size), rows((1, 2, 2), *inputs))


# -- how many -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("r", "tokens", "merged"),
    [
        (16, 197, 16),
        (16, 21, 10),  # half of the patches
        (16, 17, 7),  # ten tokens are left
        (16, 10, 0),
        (3, 6, 0),
        (0.35, 197, 68),
        (0.35, 129, 44),
        (0.9, 101, 50),
        (0.35, 10, 0),
        (0, 197, 0),
    ],
)
def test_how_many_are_merged(r, tokens, merged):
    assert mctf.Fusion(r, 1).after(tokens - 1) == tokens - 1 - merged


@pytest.mark.parametrize(
    ("name", "method", "tokens", "gmacs"),
    [
        ("vit_small", "mctf", [*range(197, 20, -16)], 2.594),
        ("vit_tiny", "mctf_fast", [197, 129, 85, 56], 0.745),
    ],
)
def test_published_tokens_and_cost(name, method, tokens, gmacs):
    with torch.device("meta"):
        plain = vitreous.create_model(name, bands=3, num_classes=1000, image_size=224)
    network, report = vitreous.apply(plain, method)
    found = [report.rows[0]["tokens before"], *(row["tokens after"] for row in report.rows)]
    assert list(dict.fromkeys(found)) == tokens
    cost = count_cost(network, 3, 224)
    assert cost.macs / 1e9 == pytest.approx(gmacs, rel=0.02)
    assert cost.parameters == sum(p.numel() for p in plain.parameters())


def test_r_of_each_block():
    network = reduced(model(), r=[2, 0, 0.25], blocks=[0, 2, 3])
    seen = watch(network)
    network(images())
    assert [tokens for tokens, _ in seen] == [24, 24, 24, 19]


# -- in company -----------------------------------------------------------------------------------------------


def test_adapters_beside_it_change_nothing_at_first():
    plain, x = model(), images()
    adapted = vitreous.apply(plain, "lora", rank=2).model
    with torch.no_grad():
        torch.testing.assert_close(reduced(adapted, r=4)(x), reduced(plain, r=4)(x))


@pytest.mark.parametrize("attention", mctf.WAYS)
def test_checkpointing_changes_no_gradient(attention):
    found = []
    for on in (False, True):
        network = reduced(model(), r=4, attention=attention).train()
        network.checkpointing = on
        network(images()).square().sum().backward()
        found.append([p.grad for p in network.parameters()])
    assert all(grad.abs().any() for grad in found[0])
    for plain, again in zip(*found, strict=True):
        torch.testing.assert_close(plain, again)


# -- training -------------------------------------------------------------------------------------------------


def test_consistency_is_the_sum_of_its_parts():
    network, x, classes = reduced(model(), r=4).train(), images(8), torch.arange(8) % 5
    loss = mctf.Consistency(network, 6, confidence=0.1)
    torch.manual_seed(0)
    found = loss(network, x, classes)
    torch.manual_seed(0)
    r = int(6 * torch.rand(()))
    teacher = reduced(model(), r=r).train()
    student, guide = network.forward_features(x), teacher.forward_features(x)
    scores = network.forward_head(student)
    sure = scores.softmax(1)[torch.arange(8), classes] > 0.1
    assert 0 < r != 4
    assert 0 < sure.sum() < 8
    apart = (student[:, 0] - guide[:, 0])[sure].square().mean()
    expected = F.cross_entropy(scores, classes) + F.cross_entropy(teacher(x), classes) + 3 * apart
    torch.testing.assert_close(found, expected)
    shares = F.one_hot(classes, 5).float()
    torch.manual_seed(0)
    torch.testing.assert_close(loss(network, x, shares), expected)


def test_consistency_trains_one_set_of_weights():
    network, x, classes = reduced(model(), r=4).train(), images(8), torch.arange(8) % 5
    loss = mctf.Consistency(network, 0.5)
    before = loss(network, x, classes).item()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.003)
    for _ in range(20):
        optimizer.zero_grad()
        loss(network, x, classes).backward()
        optimizer.step()
    torch.manual_seed(3)
    after = loss(network, x, classes)
    assert after < before
    torch.manual_seed(3)  # the loss of a teacher made now, of the trained weights, is the same
    torch.testing.assert_close(mctf.Consistency(network, 0.5)(network, x, classes), after)
    assert [block.reducer.r for block in network.blocks[1:]] == [4, 4, 4]


def test_consistency_with_checkpointing():
    found = []
    for on in (False, True):
        network = reduced(model(), r=4).train()
        network.checkpointing = on
        loss = mctf.Consistency(network, 9)
        torch.manual_seed(3)
        first, second = (loss(network, images(4), torch.arange(4)) for _ in range(2))
        (first + second).backward()  # the second teacher merged another number
        found.append([p.grad for p in network.parameters()])
    for plain, again in zip(*found, strict=True):
        torch.testing.assert_close(plain, again)


def test_consistency_without_a_sure_student():
    network, x, classes = reduced(model(), r=4).train(), images(), torch.arange(3)
    losses = []
    for weight in (0.0, 3.0):
        torch.manual_seed(3)
        loss = mctf.Consistency(network, 6, weight=weight, confidence=1.0)
        losses.append(loss(network, x, classes))
    assert torch.equal(*losses)


# -- refusals -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"r": -1}, "-1"),
        ({"r": 1.5}, "1.5"),
        ({"r": [1, 2]}, "2 values"),
        ({"blocks": [7]}, "7"),
        ({"blocks": "some"}, "some"),
        ({"tau_info": -2.0}, "temperature"),
        ({"pooling": "max"}, "pooling"),
        ({"attention": "later"}, "attention"),
    ],
)
def test_settings_out_of_range_are_refused(settings, word):
    plain = model()
    with pytest.raises(ModelError, match=word):
        mctf.install(plain, **settings)
    assert all(block.reducer is None for block in plain.blocks)


def test_models_it_cannot_serve_are_refused():
    with pytest.raises(ModelError, match="rotary"):
        reduced(model(positions="rotary"))
    with pytest.raises(ModelError, match="merges no tokens"):
        mctf.Consistency(model(), 6)
    with pytest.raises(ModelError, match="0"):
        mctf.Consistency(reduced(model()), 0)


def test_pooling_by_the_maximum_is_refused(fixture):
    options = list(fixture["kwargs"]["mctf_type"])
    options[9] = 2
    with pytest.raises(ModelError, match="Max pooling"):
        vitreous.from_reference(
            "mctf", fixture["state_dict"], {**fixture["kwargs"], "mctf_type": options}
        )
