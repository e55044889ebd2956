import math

import pytest
import torch

import vitreous
from vitreous.errors import ModelError
from vitreous.inference.cost import count_cost
from vitreous.methods.reduce import tome


def model(**arguments):
    torch.manual_seed(0)
    built = vitreous.create_model(
        "vit_test", bands=4, num_classes=5, image_size=15, depth=3, **arguments
    )
    for parameter in built.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return built.eval()


def images(count=3):
    return torch.randn(count, 4, 15, 15, generator=torch.Generator().manual_seed(1))


def reduced(plain, **settings):
    return vitreous.apply(plain, "tome", **settings).model


def step_by_step(tokens, keys, size, merged):
    """Merge one image's tokens as the paper's figure tells it; one token in front."""
    keys = keys / keys.norm(dim=-1, keepdim=True)
    likeness = keys[2::2] @ keys[1::2].T
    members = {k: [k] for k in range(len(tokens))}
    for i in likeness.amax(1).argsort(descending=True)[:merged].tolist():
        members[2 * int(likeness[i].argmax()) + 1] += members.pop(2 * i + 2)
    order = [k for k in members if k % 2 == 0] + [k for k in members if k % 2]
    sizes = torch.stack([size[members[k]].sum() for k in order])
    sums = torch.stack([(tokens * size[:, None])[members[k]].sum(0) for k in order])
    return sums / sizes[:, None], sizes


def test_a_block_step_by_step():
    block, merging = model().blocks[1], tome.Merging(5, 1)
    generator = torch.Generator().manual_seed(0)
    x, size = (
        torch.randn(2, 18, 16, generator=generator),
        1 + 3 * torch.rand(2, 18, generator=generator),
    )
    with torch.no_grad():
        found, carry = merging(x, block, {"size": size})
        trace = block.attn.project(block.norm1(x))
        scores = trace.query @ trace.key.mT / math.sqrt(8) + size.log()[:, None, None]
        attended = x + block.attn.join(scores.softmax(-1) @ trace.value)
        for image in range(2):
            tokens, sizes = step_by_step(
                attended[image], trace.key[image].mean(0), size[image], merged=5
            )
            torch.testing.assert_close(found[image], tokens, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(carry["size"][image], sizes)


@pytest.mark.parametrize("arguments", [{}, {"distilled": True, "registers": 2}, {"pool": "mean"}])
def test_nothing_merged_is_the_plain_model(arguments):
    plain = model(**arguments)
    with torch.no_grad():
        assert torch.equal(reduced(plain, r=0)(images()), plain(images()))


def test_tokens_in_front_stay_alone_and_sizes_add_up():
    network, seen = reduced(model(distilled=True, registers=2), r=[9, 0, 20]), []
    for block in network.blocks:
        block.register_forward_hook(lambda _, __, out: seen.append(out[1]["size"]))
    network(images())
    assert [size.shape[1] for size in seen] == [20, 20, 12]  # at most half of 16 patches
    for size in seen:
        assert (size[:, :4] == 1).all()
        assert (size.sum(1) == 29).all()


def test_tokens_and_cost_of_the_paper():
    with torch.device("meta"):
        plain = vitreous.create_model("vit_small", bands=3, num_classes=1000, image_size=224)
    network, report = vitreous.apply(plain, "tome")
    assert [row["tokens after"] for row in report.rows] == [*range(184, 40, -13)]
    cost = count_cost(network, 3, 224)
    assert cost.macs / 1e9 == pytest.approx(2.7, rel=0.02)  # as published for DeiT-S, r = 13
    assert cost.parameters == sum(p.numel() for p in plain.parameters())


def test_checkpointing_changes_no_gradient():
    found = []
    for on in (False, True):
        network = reduced(model(), r=5).train()
        network.checkpointing = on
        network(images()).square().sum().backward()
        found.append([p.grad for p in network.parameters()])
    for plain, again in zip(*found, strict=True):
        torch.testing.assert_close(plain, again)


@pytest.mark.parametrize("r", [-1, 0.5, [1, 2]])
def test_settings_out_of_range_are_refused(r):
    with pytest.raises(ModelError):
        reduced(model(), r=r)


def test_rotary_positions_are_refused():
    with pytest.raises(ModelError, match="rotary"):
        reduced(model(positions="rotary"))
