"""ESSAformer: equality with the authors' numbers, and what attention by squared correlation is and costs."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fixtures_reader import load_fixture
from vitreous.catalog.registry import create_model, from_reference
from vitreous.errors import CheckpointError, ModelError
from vitreous.models.essaformer import Attention, ESSAformer, correlate, rename, variance_shares
from vitreous.testing import images


@pytest.fixture(scope="module")
def reference():
    return load_fixture("essaformer")


def small(bands=4, **changes):
    torch.manual_seed(0)
    return ESSAformer(bands, **{"dim": 8, "scale": 2, **changes}).eval()


def tokens(count=50, dim=12):
    torch.manual_seed(1)
    return torch.randn(3, 2, count, dim, dtype=torch.float64).unbind(0)


# -- the reference ------------------------------------------------------------------------------------------


@torch.no_grad()
def test_equals_reference(reference):
    model = from_reference("essaformer", reference["state_dict"], reference["kwargs"]).eval()
    found, expected = model(reference["input"]), reference["output"]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert (found - expected).norm() / expected.norm() < 1e-5


@torch.no_grad()
def test_reference_sees_the_second_term(reference):
    model = from_reference("essaformer", reference["state_dict"], reference["kwargs"]).eval()
    expected = reference["output"]
    for unit in (model.refine_up, model.refine_down):
        nn.init.zeros_(unit.attn.qkv.weight[:16])
        nn.init.zeros_(unit.attn.qkv.bias[:16])  # no queries, no correlation
    assert (model(reference["input"]) - expected).norm() / expected.norm() > 1e-4


def test_reference_is_loaded_completely_or_not_at_all(reference):
    weights = dict(reference["state_dict"])
    assert set(rename(weights)) == set(small(6, dim=16, scale=4).state_dict())
    del weights["blockup.convup.attn.ln.bias"]
    with pytest.raises(CheckpointError, match=r"refine_up\.attn\.proj\.bias"):
        from_reference("essaformer", weights, reference["kwargs"])
    with pytest.raises(CheckpointError):
        from_reference("essaformer", reference["state_dict"], {**reference["kwargs"], "inch": 7})


# -- attention ----------------------------------------------------------------------------------------------


def naive(query, key, value):
    """The published steps, in the order that is quadratic in the tokens."""

    def shares(x):
        squares = (x - x.mean(-1, keepdim=True)) ** 2
        return squares / (squares.sum(-1, keepdim=True) + 1e-7)

    query = F.normalize(shares(query), dim=-1)
    key = F.normalize(shares(key), dim=-2)
    return (query @ key.transpose(-2, -1)) @ value / value.shape[-2] ** 0.5


@pytest.mark.parametrize("count", [5, 50])
def test_order_of_products_does_not_matter(count):
    q, k, v = tokens(count)
    torch.testing.assert_close(correlate(q, k, v), naive(q, k, v))


@pytest.mark.parametrize(
    "change", [lambda x: x + 3, lambda x: -x, lambda x: 2.5 * x, lambda x: 7 - x]
)
def test_shift_and_scale_of_queries_and_keys_change_nothing(change):
    q, k, v = tokens()
    torch.testing.assert_close(correlate(change(q), k, v), correlate(q, k, v), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(correlate(q, change(k), v), correlate(q, k, v), rtol=1e-6, atol=1e-8)


def test_each_token_has_a_shift_and_scale_of_its_own():
    q, k, v = tokens()
    shift, scale = torch.randn(2, 2, 50, 1, dtype=torch.float64)
    changed = k * (1 + scale.abs()) + shift
    torch.testing.assert_close(correlate(q, changed, v), correlate(q, k, v), rtol=1e-5, atol=1e-7)


def test_no_values_no_term_and_positive_values_a_positive_one():
    q, k, v = tokens()
    assert correlate(q, k, torch.zeros_like(v)).eq(0).all()
    assert correlate(q, k, v.abs()).min() >= 0


def test_constant_queries_leave_the_values():
    layer = Attention(4)
    nn.init.zeros_(layer.qkv.weight[:4])
    nn.init.constant_(layer.qkv.bias[:4], 2.0)
    x = torch.randn(2, 10, 4)
    torch.testing.assert_close(layer(x), layer.proj(layer.qkv(x)[..., 8:]))


def test_queries_have_unit_length_over_channels_and_keys_over_tokens():
    q, k, _ = tokens(dim=6)
    query = F.normalize(variance_shares(q), dim=-1)
    key = variance_shares(k) / variance_shares(k).norm(dim=-2, keepdim=True)
    gram = key.transpose(-2, -1) @ key
    torch.testing.assert_close(gram.diagonal(dim1=1, dim2=2), torch.ones(2, 6, dtype=torch.float64))
    torch.testing.assert_close(correlate(q, k, key), query @ gram / 50**0.5)


def test_four_copies_of_a_tile_are_attended_to_like_the_tile():
    q, k, v = tokens()
    again = correlate(*(x.repeat(1, 4, 1) for x in (q, k, v)))
    torch.testing.assert_close(again, correlate(q, k, v).repeat(1, 4, 1))


def largest(kind, count, dim=16):
    """Return the size of the largest tensor that attention makes, and its multiply-adds."""
    sizes = []

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            sizes.extend(
                r.numel()
                for r in torch.utils._pytree.tree_leaves(result)
                if isinstance(r, torch.Tensor)
            )
            return result

    layer = Attention(dim, kind).to("meta")
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter, Sizes():
        layer(torch.empty(1, count, dim, device="meta"))
    return max(sizes), counter.get_total_flops() // 2


def test_memory_and_cost_are_linear_in_tokens():
    assert largest("essa", 4000) == tuple(2 * n for n in largest("essa", 2000))
    assert largest("essa", 2000) == (2000 * 3 * 16, 2000 * (3 + 1 + 2) * 16**2)
    assert largest("softmax", 4000)[1] > 3 * largest("softmax", 2000)[1]


@torch.no_grad()
def test_value_and_softmax_attention():
    x = torch.randn(2, 10, 4)
    value = Attention(4, "value")
    torch.testing.assert_close(value(x), value.proj(value.qkv(x)))
    softmax, essa = Attention(4, "softmax"), Attention(4)
    q, k, v = softmax.qkv(x).chunk(3, -1)
    expected = softmax.proj((q @ k.transpose(1, 2) / 2).softmax(-1) @ v)
    torch.testing.assert_close(softmax(x), expected, rtol=1e-4, atol=1e-5)
    essa.load_state_dict(softmax.state_dict())
    q, k, v = essa.qkv(x).chunk(3, -1)
    torch.testing.assert_close(essa(x), essa.proj(v + naive(q, k, v)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["essa", "value", "softmax"])
def test_every_attention_trains_all_its_weights(kind):
    model = small(attention=kind, drop=0.0).train()
    model(images(2, 4, 6)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().any() for p in model.parameters())


# -- the whole ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
@pytest.mark.parametrize("size", [(5, 7), (1, 1)])
@torch.no_grad()
def test_scales(scale, size):
    model = small(dim=36, scale=scale)
    assert model(torch.rand(2, 4, *size)).shape == (2, 4, scale * size[0], scale * size[1])


@torch.no_grad()
def test_down_undoes_the_size_of_up():
    for scale in (2, 3, 4, 8):
        model, x = small(dim=36, scale=scale), torch.rand(1, 36, 3, 5)
        assert model.down(model.up(x)).shape == x.shape


@torch.no_grad()
def test_is_the_published_sequence():
    model, x = small(), images(1, 4, 6)
    up, down, fine, coarse = model.up, model.down, model.refine_up, model.refine_down
    f = model.first(x)
    x1 = fine(up(f))
    x2 = coarse(down(x1) + f)
    x3 = fine(up(x2) + x1)
    x4 = coarse(down(x3) + x2)
    x5 = fine(up(x4) + x3)
    torch.testing.assert_close(model(x), model.last(x5))


def test_weights_are_shared_by_all_rounds():
    model = small()
    calls = {}
    for name, part in model.named_children():
        part.register_forward_hook(
            lambda *_, name=name: calls.update({name: calls.get(name, 0) + 1})
        )
    model(images(1, 4, 6))
    assert calls == {"first": 1, "up": 3, "refine_up": 3, "down": 2, "refine_down": 2, "last": 1}


def test_parts_have_the_published_sizes():
    with torch.device("meta"):
        model = create_model("essaformer", bands=128)
    found = {
        n: sum(p.numel() for p in part.parameters()) / 1e6 for n, part in model.named_children()
    }
    expected = {"refine_up": 3.02, "refine_down": 3.02, "up": 4.72, "down": 0.30}
    assert {n: round(found[n], 2) for n in expected} == expected


@torch.no_grad()
def test_global_skip_adds_the_bicubic_enlargement():
    plain, skip, x = small(), small(global_skip=True), images(1, 4, 6)
    larger = F.interpolate(x, size=(12, 12), mode="bicubic", align_corners=False)
    torch.testing.assert_close(skip(x), larger)  # before it is trained
    skip.load_state_dict(plain.state_dict())
    torch.testing.assert_close(skip(x), plain(x) + larger)


def test_drops_features_in_training_only():
    model, x = small(), images(1, 4, 6)
    assert torch.equal(model(x), model(x))
    model.train()
    assert not torch.equal(model(x), model(x))
    assert sum(isinstance(part, nn.Dropout2d) and part.p == 0.2 for part in model.modules()) == 6


@torch.no_grad()
def test_unit_is_the_equation():
    unit, x = small().refine_up, torch.rand(1, 8, 3, 5)
    t = unit.attn(F.layer_norm(x.flatten(2).transpose(1, 2), (8,))).transpose(1, 2).reshape(x.shape)
    first, second, third = (unit.convs[k] for k in (0, 3, 6))
    inner = F.leaky_relu(first(torch.cat([t, x], 1)), 0.2)
    expected = x + third(F.leaky_relu(second(inner), 0.2))
    torch.testing.assert_close(unit(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": 5}, "no scale 5"),
        ({"dim": 18}, "18 features"),
        ({"dim": 16, "scale": 3}, "16 features"),
        ({"attention": "linear"}, "no attention"),
    ],
)
def test_refuses_in_words(change, message):
    with pytest.raises(ModelError, match=message) as caught:
        small(**change)
    assert caught.value.fix
