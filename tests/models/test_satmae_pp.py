"""SatMAE++: the authors' numbers, groups and their order, what is hidden, and the out of range."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import vitreous
from fixtures_reader import load_fixture
from vitreous.catalog.registry import create_model, from_reference
from vitreous.errors import CheckpointError, ModelError, VitreousError
from vitreous.models._grouped_transformer import (
    PUBLISHED_GROUPS,
    GroupedTransformer,
    GroupEmbed,
    default_groups,
)
from vitreous.models._masked_autoencoder import MaskedAutoencoder, UpsampleBlock
from vitreous.models.satmae_pp import UNREAD, build_pretrainer, rename
from vitreous.testing import images

GROUPS = ((0, 2, 3), (1, 4), (5,))


@pytest.fixture(scope="module")
def reference():
    return load_fixture("satmae_pp")


def small(**changes):
    torch.manual_seed(0)
    shape = {"bands": 6, "num_classes": 4, "image_size": 16, "token_size": 4, "dim": 32}
    return GroupedTransformer(
        **{"depth": 2, "heads": 2, "mlp_ratio": 2.0, "groups": GROUPS, **shape, **changes}
    )


def autoencoder(encoder=None, **changes):
    encoder = small() if encoder is None else encoder
    torch.manual_seed(1)
    return MaskedAutoencoder(encoder, **changes)


def spread(model):
    """Give all weights some spread, the tables apart."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


# -- the reference ------------------------------------------------------------------------------------------


@torch.no_grad()
def test_equals_reference(reference):
    model = from_reference("satmae_pp", reference["state_dict"], reference["kwargs"]).eval()
    given, expected = reference["input"], reference["output"]
    found = model.predict(given["imgs"], given["noise"])
    close = {"rtol": 1e-4, "atol": 1e-5}
    assert torch.equal(found.mask, expected["mask"])
    torch.testing.assert_close(model.patchify(found.image), expected["pred"], **close)
    torch.testing.assert_close(found.finer[0], expected["pred_2x"], **close)
    torch.testing.assert_close(found.finer[1], expected["pred_4x"], **close)
    pretext = model.step([given[f"imgs{s}"] for s in ("", "_up_2x", "_up_4x")], given["noise"])
    torch.testing.assert_close(pretext.parts["masked"], expected["loss"], rtol=1e-5, atol=0)
    torch.testing.assert_close(pretext.parts["multiscale"], expected["ms_loss"], rtol=1e-5, atol=0)
    total = 0.6 * expected["loss"] + 0.4 * expected["ms_loss"]
    torch.testing.assert_close(pretext.loss, total, rtol=1e-5, atol=0)


def test_tables_are_those_of_the_reference(reference):
    model = autoencoder(small(group_dim=8), decoder_width=24, decoder_heads=2, decoder_group_dim=8)
    state, close = reference["state_dict"], {"rtol": 0, "atol": 1e-6}
    torch.testing.assert_close(model.encoder.pos_embed.data, state["pos_embed"], **close)
    torch.testing.assert_close(model.encoder.group_embed.data, state["channel_embed"], **close)
    for name, theirs in {"pos": "pos", "group": "channel"}.items():
        ours = getattr(model, f"decoder_{name}_embed").data
        torch.testing.assert_close(ours, state[f"decoder_{theirs}_embed"], **close)


@torch.no_grad()
def test_projections_lie_in_the_bands_order(reference):
    """Also of the layout of the authors' classifier, which has no fixture of its own."""
    theirs = {
        k: v
        for k, v in reference["state_dict"].items()
        if not k.startswith(("decoder", "mask", "proj_up", "up_block"))
    }
    theirs |= {"head.weight": torch.randn(7, 32), "head.bias": torch.randn(7)}
    theirs["channel_cls_embed"] = torch.randn(1, 1, 8)
    kwargs = {k: v for k, v in reference["kwargs"].items() if not k.startswith("decoder")}
    for name in ("channel_cls_embed", "patch_embed.1.proj.bias", "patch_embed.2.proj.weight"):
        fewer = {k: v for k, v in theirs.items() if k != name}
        with pytest.raises(VitreousError):
            from_reference("satmae_pp", fewer, {**kwargs, "num_classes": 7})
    for name in ("patch_embed.3.proj.weight", "patch_embed.strange", "decoder_strange"):
        with pytest.raises(CheckpointError, match=re.escape(name)):
            from_reference(
                "satmae_pp", {**theirs, name: torch.ones(3)}, {**kwargs, "num_classes": 7}
            )
    model = from_reference("satmae_pp", theirs, {**kwargs, "num_classes": 7}).eval()
    assert isinstance(model, GroupedTransformer)
    x = reference["input"]["imgs"]
    for number, group in enumerate(GROUPS):
        weight, bias = (theirs[f"patch_embed.{number}.proj.{what}"] for what in ("weight", "bias"))
        expected = F.conv2d(x[:, list(group)], weight, bias, stride=4)
        torch.testing.assert_close(model.patch_embed(x)[:, number], expected, rtol=1e-5, atol=1e-5)
    vector = torch.cat([theirs["pos_embed"][:, :1], theirs["channel_cls_embed"]], -1)
    parts = [theirs["pos_embed"][:, 1:], theirs["channel_embed"]]
    naive = model.patch_embed(x).flatten(3).transpose(2, 3).clone()
    naive[..., :24] += parts[0][:, None]
    naive[..., 24:] += parts[1][:, :, None]
    front = (theirs["cls_token"] + vector).expand(2, -1, -1)
    tokens = torch.cat([front, naive.flatten(1, 2)], 1)
    for block in model.blocks:
        tokens, _ = block(tokens)
    torch.testing.assert_close(model(x), model.head(model.norm(tokens)[:, 0]))
    pooled = {
        k.replace("norm.", "fc_norm.") if k.startswith("norm.") else k: v for k, v in theirs.items()
    }
    mean = from_reference("satmae_pp", pooled, {**kwargs, "num_classes": 7, "global_pool": True})
    torch.testing.assert_close(mean(x), model.head(model.norm(tokens[:, 1:].mean(1))))


def test_rename_gives_the_encoder_and_refuses_other_groups(reference):
    state = reference["state_dict"]
    renamed = rename(state, GROUPS)
    decoder = {key for key in renamed if key.startswith(UNREAD)}
    assert all(renamed[key] is state[key] for key in decoder)
    assert set(renamed) - decoder == set(small(num_classes=0).state_dict())
    with pytest.raises(ModelError, match="from_reference"):
        rename(state)


# -- what it costs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "changes", "settings", "millions"),
    [
        ("large", {"bands": 10, "image_size": 96}, {}, 329.33),
        ("base", {"bands": 10, "image_size": 96}, {}, 111.74),
        (
            "large",
            {
                "bands": 3,
                "image_size": 224,
                "groups": ((0, 1, 2),),
                "group_dim": 0,
                "token_size": 16,
            },
            {"scales": 1},
            329.55,
        ),
    ],
)
def test_published_counts_of_the_autoencoder(name, changes, settings, millions):
    with torch.device("meta"):
        encoder = create_model(f"satmae_pp_{name}", num_classes=0, **changes)
        model = build_pretrainer(encoder, **settings)
    total = lambda part: sum(p.numel() for p in part.parameters()) / 1e6  # noqa: E731
    assert total(model) == pytest.approx(millions, abs=0.006)
    assert total(model.decoder_blocks) == pytest.approx(25.22, abs=0.006)
    if name == "large" and settings == {}:
        assert total(encoder) == pytest.approx(302.97, rel=0.0005)
        assert total(model.finer.blocks) == pytest.approx(0.116, abs=0.001)


def test_small_encoders_get_small_decoders():
    with torch.device("meta"):
        encoder = create_model("satmae_pp_tiny", bands=10, num_classes=9, image_size=16)
    model = build_pretrainer(encoder)
    assert model.decoder_embed.out_features == 64
    assert len(model.decoder_blocks) == 2
    assert build_pretrainer(small(dim=16)).decoder_embed.out_features == 16


# -- groups -------------------------------------------------------------------------------------------------


def test_default_groups():
    assert default_groups(10) == PUBLISHED_GROUPS
    assert default_groups(1) == ((0,),)
    assert default_groups(2) == ((0,), (1,))
    assert default_groups(7) == ((0, 1, 2), (3, 4), (5, 6))
    for bands in (3, 4, 13, 200):
        groups = default_groups(bands)
        assert [b for group in groups for b in group] == [*range(bands)]
        assert max(map(len, groups)) - min(map(len, groups)) <= 1


def test_projections_start_as_one_linear_layer_per_group():
    weight = GroupEmbed(((0, 1, 2, 3, 5, 6, 7, 8), (4,)), 64, 4).weight.data
    for group in ([0, 1, 2, 3, 5, 6, 7, 8], [4]):
        bound = (6 / (64 + 16 * len(group))) ** 0.5
        assert 0.97 * bound < weight[:, group].abs().max() <= bound


@torch.no_grad()
def test_tokens_know_their_own_group_only():
    model, x = small(), images(2, 6, 16)
    changed = x.clone()
    changed[:, [1, 4]] += 1
    apart = (
        (model.embed_cells(changed) - model.embed_cells(x)).abs().amax((0, 2)).unflatten(0, (3, 16))
    )
    assert (apart[1] > 0.01).all()
    assert not apart[[0, 2]].any()


@torch.no_grad()
def test_order_of_tokens_does_not_matter():
    model = spread(autoencoder()).eval()
    x, visible = images(2, 6, 16), torch.tensor([[3, 40, 17, 22], [1, 2, 47, 30]])
    found, turned = model.encode(x, visible), model.encode(x, visible.flip(1))
    torch.testing.assert_close(found[:, 0], turned[:, 0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[:, 1:].flip(1), turned[:, 1:], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        model.decode(found, visible),
        model.decode(turned, visible.flip(1)),
        rtol=1e-4,
        atol=1e-5,
    )


@torch.no_grad()
def test_map_is_the_mean_over_groups():
    for pool in ("cls", "mean"):
        model, x = small(pool=pool), images(2, 6, 16)
        (found,) = model.forward_levels(x)
        tokens = (
            model.norm(model.encode(model.embed_cells(x)))[:, 1:].unflatten(1, (3, 4, 4)).mean(1)
        )
        torch.testing.assert_close(found, tokens.permute(0, 3, 1, 2))


# -- masks --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [0.5, 0.75, 0.9])
def test_so_many_tokens_are_hidden(ratio):
    model = autoencoder(mask_ratio=ratio)
    mask = model.predict(images(3, 6, 16)).mask
    assert mask.shape == (3, 3, 16)
    assert set(mask.unique().tolist()) == {0, 1}
    assert (mask.sum((1, 2)) == 48 - int((1 - ratio) * 48)).all()
    assert not torch.equal(mask[0], mask[1])
    assert not torch.equal(mask[:, 0], mask[:, 1])


def test_same_places_in_all_groups():
    mask = autoencoder(same_mask=True).predict(images(3, 6, 16)).mask
    assert torch.equal(mask, mask[:, :1].expand_as(mask))
    assert (mask.sum(2) == 12).all()
    assert not torch.equal(mask[0], mask[1])


@torch.no_grad()
def test_hidden_pixels_are_not_seen():
    model = spread(autoencoder()).eval()
    x, noise = images(2, 6, 16), torch.rand(2, 48)
    found = model.predict(x, noise)
    hidden = model._per_band(found.mask)[..., None] > 0
    pixels = model.patchify(x)
    other = model.unpatchify(torch.where(hidden, pixels + 5, pixels))
    torch.testing.assert_close(model.predict(other, noise).image, found.image)
    seen = model.unpatchify(torch.where(hidden, pixels, pixels + 5))
    assert not torch.allclose(model.predict(seen, noise).image, found.image, atol=1e-2)


# -- losses -------------------------------------------------------------------------------------------------


def test_patches_cut_and_joined_are_the_image():
    model, x = autoencoder(), images(2, 6, 16)
    patches = model.patchify(x)
    assert patches.shape == (2, 6, 16, 16)
    assert torch.equal(patches[0, 3, 6], x[0, 3, 4:8, 8:12].flatten())
    assert torch.equal(model.unpatchify(patches), x)


@pytest.mark.parametrize("order", ["natural", "published"])
@torch.no_grad()
def test_masked_error_token_by_token(order):
    model = spread(autoencoder(group_order=order)).eval()
    x = images(2, 6, 16)
    found = model.predict(x)
    total, count = 0.0, 0
    for n in range(2):
        for g, group in enumerate(GROUPS):
            for place in range(16):
                if found.mask[n, g, place]:
                    rows = slice(4 * (place // 4), 4 * (place // 4) + 4)
                    columns = slice(4 * (place % 4), 4 * (place % 4) + 4)
                    error = found.image[n, list(group), rows, columns]
                    total += (error - x[n, list(group), rows, columns]).square().mean().item()
                    count += 1
    assert model.masked_error(found, x).item() == pytest.approx(total / count, rel=1e-5)


@torch.no_grad()
def test_heads_give_bands_of_their_own_group_unless_as_published():
    """A head's bias appears in the bands of its group, or at its place in the row of groups."""
    for order, bands in {"natural": [1, 4], "published": [3, 4]}.items():
        model, x, noise = autoencoder(group_order=order).eval(), images(2, 6, 16), torch.rand(2, 48)
        before = model.predict(x, noise).image
        model.decoder_heads[1].bias += 1
        moved = (model.predict(x, noise).image - before).mean((0, 2, 3))
        assert moved.round(decimals=3).nonzero()[:, 0].tolist() == bands


def test_finer_scales_are_halved_bilinearly():
    model, x = autoencoder(), images(2, 6, 64)
    coarse, middle, fine = model.pyramid(x)
    assert model.finest == 4
    assert torch.equal(fine, x)
    halved = F.interpolate(x, scale_factor=0.5, mode="bilinear")
    torch.testing.assert_close(middle, halved)
    torch.testing.assert_close(coarse, F.interpolate(halved, scale_factor=0.5, mode="bilinear"))


@pytest.mark.parametrize("scales", [0, 1, 2])
def test_loss_is_the_mixture_of_its_parts(scales):
    model, x = autoencoder(scales=scales), images(2, 6, 16 * 2**scales)
    assert model.finest == 2**scales
    torch.manual_seed(0)
    pretext = model(x)
    assert not any(part.requires_grad for part in pretext.parts.values())
    if scales:
        parts = pretext.parts
        expected = 0.6 * parts["masked"] + 0.4 * parts["multiscale"]
        pictures = model.pyramid(x)
        torch.manual_seed(0)
        finer = model.predict(pictures[0]).finer
        each = [F.l1_loss(a, b) for a, b in zip(finer, pictures[1:], strict=True)]
        torch.testing.assert_close(parts["multiscale"], sum(each) / scales)
    else:
        assert set(pretext.parts) == {"masked"}
        expected = pretext.parts["masked"]
    torch.testing.assert_close(pretext.loss.detach(), expected)


@torch.no_grad()
def test_normalised_targets():
    x = images(2, 6, 16) * torch.arange(1.0, 7)[:, None, None] + 3
    for order, axes in {"natural": (3,), "published": (1, 3)}.items():
        model = autoencoder(norm_pix=True, group_order=order)
        pixels = model.patchify(x)
        mean, deviation = model._pixel_statistics(pixels)
        perfect = model.unpatchify((pixels - mean) / deviation)
        found = model.predict(x)._replace(image=perfect)
        assert model.masked_error(found, x) < 1e-10
        wanted = (pixels - pixels.mean(axes, keepdim=True)) / pixels.std(axes, keepdim=True)
        torch.testing.assert_close(model.patchify(perfect), wanted, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_block_without_weights_shows_the_bias():
    block = UpsampleBlock(8, 3)
    for part in block.modules():
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.zeros_(part.weight)
            nn.init.zeros_(part.bias)
    block.image.bias.copy_(torch.tensor([1.0, -2.0, 3.0]))
    features, image = block(torch.randn(2, 8, 5, 5))
    assert features.shape == (2, 8, 10, 10)
    assert torch.equal(image, block.image.bias[None, :, None, None].expand(2, 3, 10, 10))


def test_learns_what_it_is_shown():
    model = autoencoder(small(depth=1), scales=1)
    x = F.interpolate(images(1, 6, 4), 32, mode="bilinear").expand(4, -1, -1, -1)
    step = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), 3e-3)
    losses = []
    for _ in range(60):
        loss = model(x).loss
        step.zero_grad()
        loss.backward()
        step.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


# -- tables, pictures, the encoder afterwards ---------------------------------------------------------------


def test_tables_learn_in_the_classifier_only():
    model = autoencoder()
    model(images(2, 6, 64)).loss.backward()
    tables = set(model.encoder.tables)
    assert tables == {"pos_embed", "group_embed", "class_group_embed"}
    still = {name for name, p in model.encoder.named_parameters() if p.grad is None}
    assert still == tables | {"head.weight", "head.bias"}
    assert all(model.encoder.get_parameter(name).requires_grad is False for name in still)
    fixed = {"decoder_pos_embed", "decoder_group_embed"}
    silent = {
        n
        for n, p in model.named_parameters()
        if not n.startswith("encoder.") and (p.grad is None or not p.grad.any())
    }
    assert silent == fixed
    trained = model.trained_encoder()
    assert all(p.requires_grad for p in trained.parameters())
    assert not model.encoder.pos_embed.requires_grad  # pre-training may go on
    trained(images(2, 6, 16)).square().sum().backward()
    assert all(table.grad.any() for table in trained.tables.values())
    for name, value in trained.state_dict().items():
        assert torch.equal(value, model.encoder.state_dict()[name])


def test_what_was_fixed_before_stays_so():
    encoder = small()
    encoder.pos_embed.requires_grad_(False)
    trained = autoencoder(encoder).trained_encoder()
    assert [n for n, p in trained.named_parameters() if not p.requires_grad] == ["pos_embed"]


@pytest.mark.parametrize("norm_pix", [False, True])
def test_pictures(norm_pix):
    model, x = spread(autoencoder(norm_pix=norm_pix)), images(2, 6, 64) + 4
    torch.manual_seed(5)
    shown = model.reconstruct(x)
    assert list(shown) == ["input", "visible", "reconstruction", "x2", "x4"]
    assert [len(p[0, 0]) for p in shown.values()] == [16, 16, 16, 32, 64]
    assert torch.equal(shown["input"], model.pyramid(x)[0])
    torch.manual_seed(5)
    found = model.predict(shown["input"])
    hidden = model.unpatchify(model._per_band(found.mask)[..., None].expand(-1, -1, -1, 16)) > 0
    assert not shown["visible"][hidden].any()
    assert torch.equal(shown["visible"][~hidden], shown["input"][~hidden])
    assert torch.equal(shown["reconstruction"][~hidden], shown["input"][~hidden])
    if not norm_pix:
        assert torch.equal(shown["reconstruction"][hidden], found.image[hidden])
    assert torch.equal(shown["x4"], found.finer[1])
    assert list(autoencoder(scales=0).reconstruct(images(1, 6, 16)))[-1] == "reconstruction"


def test_sides_that_tokens_do_not_divide_are_cut():
    model = autoencoder(small(image_size=18))
    shown = model.reconstruct(images(1, 6, 72))
    assert [len(p[0, 0]) for p in shown.values()] == [16, 16, 16, 32, 64]
    assert torch.equal(model.pyramid(images(1, 6, 72))[2], images(1, 6, 72)[..., :64, :64])


def test_bfloat16_and_checkpointing():
    model, x = spread(autoencoder()), images(2, 6, 64)
    exact = model.step(model.pyramid(x), torch.rand(2, 48, generator=torch.manual_seed(0))).loss
    model.encoder.checkpointing = True
    with torch.autocast("cpu", torch.bfloat16):
        again = model.step(model.pyramid(x), torch.rand(2, 48, generator=torch.manual_seed(0)))
    again.loss.backward()
    assert again.loss.item() == pytest.approx(exact.item(), rel=0.05)


@torch.no_grad()
def test_weights_serve_other_bands_sizes_and_classes(tmp_path):
    model = create_model("satmae_pp_test", bands=6, num_classes=3, groups=[[0, 2, 3], [1, 4], [5]])
    path = vitreous.save_model(model, tmp_path / "model.safetensors")
    same, _ = vitreous.load_model(path)
    assert same.groups == GROUPS
    torch.testing.assert_close(same(images(2, 6, 15)), model.eval()(images(2, 6, 15)))
    plain = create_model("satmae_pp_test", bands=6, num_classes=3)
    path = vitreous.save_model(plain, tmp_path / "plain.safetensors")
    other, report = vitreous.load_model(path, bands=12, num_classes=5, image_size=33)
    assert report.adapted == ("patch_embed.weight",)
    assert report.resized == ("pos_embed",)
    assert other(images(1, 12, 33)).shape == (1, 5)
    # Twice as many bands, each group twice as large: every old band is the mean of two new ones.
    twice, _ = vitreous.load_model(path, bands=vitreous.Bands(12), method="repeat")
    assert twice.patch_embed.weight.sum() == pytest.approx(
        plain.patch_embed.weight.sum().item(), abs=1e-3
    )


# -- refusals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 3}, "not divisible"),
        ({"token_size": 20}, "has none"),
        ({"pool": "max"}, "cannot pool"),
        ({"group_dim": 6}, "cannot tell groups"),
        ({"groups": ((0, 1), (2, 3))}, "each of the bands"),
        ({"groups": ((0, 1, 2, 3), (3, 4, 5))}, "each of the bands"),
        ({"groups": ((0, 1, 2, 3), (), (4, 5))}, "has no bands"),
    ],
)
def test_refuses_in_words(change, message):
    with pytest.raises(ModelError, match=message):
        small(**change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask_ratio": 1.0}, "masks none or all"),
        ({"mask_ratio": 0.99}, "masks none or all"),
        ({"scales": -1}, "out of range"),
        ({"ms_weight": 1.5}, "ms_weight = 1.5 is out of range"),
        ({"group_order": "reverse"}, "natural or published"),
        ({"decoder_width": 32, "decoder_heads": 3}, "decoder has width"),
    ],
)
def test_pretrainer_refuses_in_words(change, message):
    with pytest.raises(ModelError, match=message):
        autoencoder(**change)
    with pytest.raises(ModelError, match="64, 64"):
        autoencoder()(images(1, 6, 32))
    with pytest.raises(ModelError, match="does not pre-train"):
        autoencoder(create_model("vit_test", bands=6, num_classes=4))


def test_no_decay_on_tables():
    spared = small().no_weight_decay()
    assert {
        "pos_embed",
        "group_embed",
        "class_group_embed",
        "class_token",
        "patch_embed.bias",
    } <= spared
    assert "patch_embed.weight" not in spared
    model = autoencoder()
    spared = model.no_weight_decay()
    assert spared <= {name for name, _ in model.named_parameters()}
    assert {"mask_token", "encoder.class_token", "decoder_norm.weight"} <= spared
    assert "decoder_embed.weight" not in spared
