"""GGeM: the identities of the generalised mean, and its place in the network."""

import pytest
import torch

import vitreous
from fixtures_reader import load_fixture
from vitreous.catalog.registry import card, create_model, from_reference
from vitreous.errors import ModelError
from vitreous.layers.pooling import GroupGeneralizedMean
from vitreous.testing import images, make


def pool(groups=1, exponents=None, dim=12, **changes):
    layer = GroupGeneralizedMean(dim, groups, **changes)
    if exponents is not None:
        layer.p.data = (
            torch.as_tensor(exponents, dtype=torch.float32).reshape(-1).expand(groups).clone()
        )
    return layer


def positive(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) + 0.1


def test_equals_reference():
    reference = load_fixture("ggem")
    layer = from_reference("ggem", reference["state_dict"], reference["kwargs"])
    with torch.no_grad():
        torch.testing.assert_close(
            layer(reference["input"]), reference["output"], rtol=1e-5, atol=1e-6
        )


def test_equals_the_formula_channel_by_channel():
    layer = pool(3, [0.7, 2.0, 5.0], eps=1e-3)
    x = torch.randn(2, 7, 12, generator=torch.Generator().manual_seed(0)).double()
    expected = torch.empty(2, 12, dtype=torch.float64)
    for c in range(12):
        p = layer.p[c // 4].item()
        for b in range(2):
            expected[b, c] = (sum(max(float(v), 1e-3) ** p for v in x[b, :, c]) / 7) ** (1 / p)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_exponent_1_is_the_mean_and_100_nearly_the_maximum():
    x = positive(2, 9, 12)
    torch.testing.assert_close(pool(4, 1.0)(x), x.mean(1), rtol=1e-6, atol=1e-6)
    apart = 2.0 ** torch.arange(1, 4)[None, :, None].expand(2, 3, 12)
    # The maximum's share is (1/n)^(1/p): 1.1 % at three tokens.
    torch.testing.assert_close(pool(4, 100.0)(apart), apart.amax(1), rtol=0.0115, atol=0)
    torch.testing.assert_close(pool(4, 1000.0)(apart), apart.amax(1), rtol=0.0015, atol=0)


@torch.no_grad()
def test_grows_with_the_exponent():
    x = positive(2, 9, 12)
    found = torch.stack([pool(1, p)(x) for p in (0.2, 0.5, 1.0, 2.0, 3.0, 8.0, 30.0)])
    assert (found.diff(dim=0) >= -1e-6).all()
    assert (found >= x.amin(1) - 1e-6).all() and (found <= x.amax(1) + 1e-6).all()


@torch.no_grad()
def test_scales_with_its_input_and_ignores_the_order_of_tokens():
    x, layer = positive(2, 9, 12), pool(3, [0.5, 3.0, 8.0])
    torch.testing.assert_close(layer(2.5 * x), 2.5 * layer(x), rtol=1e-5, atol=1e-6)
    shuffled = x[:, torch.randperm(9, generator=torch.Generator().manual_seed(1))]
    torch.testing.assert_close(layer(shuffled), layer(x), rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_groups_are_consecutive_channels_and_one_group_is_gem():
    x = positive(2, 9, 12)
    layer = pool(3, [0.5, 3.0, 8.0])
    parts = [pool(1, p, dim=4)(part) for p, part in zip(layer.p, x.split(4, -1), strict=True)]
    torch.testing.assert_close(layer(x), torch.cat(parts, -1))
    torch.testing.assert_close(pool(3, 3.0)(x), pool(1, 3.0)(x))


def test_equal_tokens_say_nothing_about_the_exponent():
    layer = pool(3)
    layer(positive(2, 1, 12).expand(2, 9, 12)).square().sum().backward()
    assert layer.p.grad.abs().max() < 1e-5
    layer.p.grad = None
    layer(positive(2, 9, 12)).square().sum().backward()
    assert (layer.p.grad > 1e-3).all()


def test_clamped_values_have_no_gradient_and_nothing_is_infinite():
    x = torch.randn(2, 9, 12, generator=torch.Generator().manual_seed(0))
    x[0, :, :4] = -1.0  # a group without a positive value
    x.requires_grad_()
    layer = pool(3, [0.01, 3.0, 50.0])
    layer(x).sum().backward()
    assert torch.isfinite(x.grad).all() and torch.isfinite(layer.p.grad).all()
    assert (x.grad[x <= 1e-6] == 0).all()
    assert (x.grad[1][x[1] > 0.1] > 0).any()


@torch.no_grad()
def test_large_exponents_do_not_overflow_in_half_precision():
    x = 100 * positive(1, 9, 12)
    found = pool(3, 40.0)(x.half())
    assert found.dtype == torch.float16
    torch.testing.assert_close(found.float(), pool(3, 40.0)(x), rtol=5e-3, atol=0)


# -- in the network -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ggem_vit_tiny", "ggem_vit_base", "ggem_vit_large"])
def test_costs_one_exponent_per_head(name):
    count = lambda pool: sum(  # noqa: E731
        p.numel()
        for p in create_model(
            name, bands=3, num_classes=1000, image_size=224, pool=pool
        ).parameters()
    )
    with torch.device("meta"):
        assert count("ggem") - count("mean") == card(name).variants[name]["heads"]
        assert count("gem") - count("max") == 1
        assert count("max") == count("mean")


@torch.no_grad()
def test_pools_the_trunk_and_normalises_after():
    model = make("ggem_test").eval()
    x = images(3, 4, 15)
    tokens, turn, _ = model.embed(x)
    for block in model.blocks:
        tokens, _ = block(tokens, turn)
    assert tokens.shape[1] == 25  # no class token
    assert (tokens < 0).any()
    expected = []
    for head, p in enumerate(model.pooling.p):
        part = tokens[..., 8 * head : 8 * head + 8].clamp(min=1e-6)
        expected.append(part.pow(p).mean(1).pow(1 / p))
    pooled = model.pooled_norm(torch.cat(expected, 1))
    torch.testing.assert_close(model.pool_tokens(tokens), pooled, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model(x), model.head(pooled), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_other_pools_of_the_same_trunk():
    x, state = images(2, 4, 15), make("ggem_test").state_dict()
    del state["pooling.p"]
    for name, pooled in {"mean": lambda t: t.mean(1), "max": lambda t: t.amax(1)}.items():
        model = create_model(
            "ggem_test", bands=4, num_classes=5, image_size=15, pool=name, norm_last=True
        ).eval()
        model.load_state_dict(state)
        tokens = model.forward_features(x)
        torch.testing.assert_close(model.pool_tokens(tokens), model.pooled_norm(pooled(tokens)))
    with pytest.raises(ModelError, match="norm_last"):
        create_model("ggem_test", bands=4, num_classes=5, pool="class", norm_last=True)


def test_no_decay_on_exponents():
    assert "pooling.p" in make("ggem_test").no_weight_decay()


def test_refuses_groups_that_do_not_divide():
    with pytest.raises(ModelError, match="divide 10 channels"):
        from_reference("ggem", {"p": torch.ones(4)}, {"C": 10, "G": 4})


def test_a_trunk_serves_other_image_sizes(tmp_path):
    model = vitreous.create_model("ggem_test", bands=4, num_classes=3, image_size=15)
    path = vitreous.save_model(model, tmp_path / "model.safetensors")
    larger, report = vitreous.load_model(path, image_size=33)
    assert report.resized == ("pos_embed",)
    assert larger(torch.zeros(1, 4, 33, 33)).shape == (1, 3)
