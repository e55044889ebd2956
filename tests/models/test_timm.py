"""Networks built from timm's arguments and weights answer as timm's do, or their arguments are refused in words."""

import functools
import json
from pathlib import Path

import pytest
import torch
from timm_configurations import images_of, weights_of
from torch import nn

from timm_fixtures import timm_fixture
from vitreous.catalog.registry import cards, create_model, from_reference, system_module
from vitreous.checkpoints.layouts import recognise
from vitreous.errors import CheckpointError, ModelError, VitreousError
from vitreous.layers.reference import join, rename_keys

SLUGS = {
    "vit": "vit",
    "vit_oblong": "vit",
    "swin": "swin",
    "convnext": "convnext",
    "crossvit": "crossvit",
    "efficientvit": "efficientvit",
    "efficientformer": "efficientformer",
    "tnt": "tnt",
}
CONFIGURATIONS = json.loads(
    Path(__file__).with_name("timm_configurations.json").read_text(encoding="utf-8")
)


@pytest.mark.parametrize("name", SLUGS)
def test_equals_timm(name):
    fixture = timm_fixture(name)
    model = from_reference(SLUGS[name], fixture["state_dict"], fixture["kwargs"]).eval()
    with torch.no_grad():
        found = model(fixture["input"])
    torch.testing.assert_close(found, fixture["output"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("number", range(len(CONFIGURATIONS)))
def test_equals_timm_in_other_configurations(number):
    """Oblong images, pools, windows, kernels, heads, bands: the last digits of double precision tell images apart."""
    given = CONFIGURATIONS[number]
    torch.set_default_dtype(torch.float64)
    try:
        model = from_reference(given["slug"], weights_of(given["shapes"]), given["kwargs"]).eval()
        with torch.no_grad():
            found = model(images_of((2, model.bands, *given["size"])))
    finally:
        torch.set_default_dtype(torch.float32)
    expected = torch.tensor(given["output"], dtype=torch.float64)
    apart = (expected[0] - expected[1]).abs().max()
    assert (found - expected).abs().max() < apart / 100


REFUSED = [
    ("vit", {"qk_norm": True}, "qk_norm"),
    ("vit", {"pre_norm": True}, "pre_norm"),
    ("vit", {"global_pool": "map"}, "global_pool='map'"),
    ("vit", {"class_token": False, "global_pool": "token"}, "class token"),
    ("vit", {"patch_size": (8, 16)}, "8 x 16"),
    ("vit", {"act_layer": "quick_gelu"}, "act_layer"),
    ("swin", {"always_partition": True}, "always_partition"),
    ("swin", {"mlp_ratio": (2.0, 4.0)}, "one mlp_ratio"),
    ("swin", {"embed_dim": (12, 36)}, "doubles its width"),
    ("swin", {"window_size": [4, 4, 4]}, "do not fit"),
    ("swin", {"norm_layer": functools.partial(nn.LayerNorm, eps=1e-2)}, "eps=1e-05, not 0.01"),
    ("convnext", {"use_grn": True}, "use_grn"),
    ("convnext", {"head_norm_first": True}, "head_norm_first"),
    ("convnext", {"patch_size": 2}, "patch_size=2"),
    ("crossvit", {"crop_scale": True}, "crop_scale"),
    ("efficientvit", {"global_pool": "catavgmax"}, "catavgmax"),
    ("efficientvit", {"down_ops": (("", 1), ("subsample", 1), ("subsample", 2))}, "down_ops"),
    ("efficientformer", {"act_layer": nn.ReLU}, "ReLU"),
    ("tnt", {"legacy": True}, "legacy"),
    ("tnt", {"global_pool": "max"}, "global_pool='max'"),
]  # fmt: skip


@pytest.mark.parametrize(("slug", "change", "words"), REFUSED)
def test_arguments_that_would_change_what_is_computed_are_refused(slug, change, words):
    fixture = timm_fixture(slug)
    with pytest.raises(VitreousError, match=words):
        from_reference(slug, fixture["state_dict"], {**fixture["kwargs"], **change})


@pytest.mark.parametrize(("key", "value"), [("norm_eps", 0.1), ("norm_layer", "LayerNorm eps=0.1")])
def test_eps_of_vit_is_honoured(key, value):
    fixture = timm_fixture("vit")
    model = from_reference("vit", fixture["state_dict"], {**fixture["kwargs"], key: value})
    norms = [part for part in model.modules() if isinstance(part, nn.LayerNorm)]
    assert len(norms) == 5 and {norm.eps for norm in norms} == {0.1}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"global_pool": "avg"}, "pooled_norm"),  # timm would have an fc_norm
        ({"class_token": False, "global_pool": "avg"}, "class_token"),
        ({"reg_tokens": 2, "no_embed_class": True, "depth": 3}, "blocks.2"),
        ({"qkv_bias": False}, "qkv.bias"),
        ({"img_size": (40, 64)}, "pos_embed"),
    ],
)
def test_weights_that_contradict_the_arguments_of_vit_are_refused(change, words):
    fixture = timm_fixture("vit")
    with pytest.raises(CheckpointError, match=words):
        from_reference("vit", fixture["state_dict"], {**fixture["kwargs"], **change})


def test_mean_pooling_of_masked_autoencoders_is_honoured():
    """Their ``global_pool`` is yes or no: the mean of the patches, normalised behind, beside a class token."""
    fixture = timm_fixture("vit")
    weights = {
        key.replace("norm.", "fc_norm.", key.startswith("norm.")): value
        for key, value in fixture["state_dict"].items()
    }
    model = from_reference("vit", weights, {**fixture["kwargs"], "global_pool": True}).eval()
    with torch.no_grad():
        tokens = model.forward_features(fixture["input"])
        expected = model.head(model.pooled_norm(tokens[:, 1:].mean(1)))
        torch.testing.assert_close(model(fixture["input"]), expected)
    assert (model.pool, model.prefix) == ("mean", 1)


# -- nothing is lost ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SLUGS)
def test_a_tensor_more_or_fewer_is_refused(name):
    fixture = timm_fixture(name)
    weights, slug = fixture["state_dict"], SLUGS[name]
    parents = {key.rpartition(".")[0] for key in weights}
    for parent in sorted(parents)[::5]:
        more = {**weights, f"{parent}.strange".lstrip("."): torch.ones(3)}
        with pytest.raises(CheckpointError, match="strange"):
            from_reference(slug, more, fixture["kwargs"])
    learned = [key for key in weights if not key.endswith(("idxs", "num_batches_tracked"))]
    for key in learned[::7]:
        fewer = {name: value for name, value in weights.items() if name != key}
        with pytest.raises(VitreousError):
            from_reference(slug, fewer, fixture["kwargs"])


RENAMED = [
    card.slug
    for card in cards()
    if card.kind in ("model", "restorer") and hasattr(system_module(card.slug), "rename")
]


@pytest.mark.parametrize("slug", RENAMED)
def test_renaming_hands_every_tensor_on(slug):
    module = system_module(slug)
    assert module.LAYOUTS
    strange = {
        name: torch.ones(3)
        for name in (
            "patch_embed.strange", "patch_embed.7.proj.weight", "blocks.0.fusion.0.attn.wv.weight",
            "stages.0.mlp.1.w2.weight", "blocks.0.attn.v.weight", "decoder_x.weight", "outer_tokens",
            "module.x", "head.linear.strange", "blocks.9.dwconv.weight", "layers.downsample.weight",
        )
    }  # fmt: skip
    renamed = module.rename(strange)
    assert len(renamed) == len(strange)  # some views of them, none of other values
    assert all(value.sum() == 3 for value in renamed.values())


def test_two_tensors_of_one_name_are_told():
    with pytest.raises(CheckpointError, match=r"fc_norm\.weight and norm\.weight"):
        system_module("satmae_pp").rename(
            {f"{n}.weight": torch.ones(2) for n in ("fc_norm", "norm")}
        )
    with pytest.raises(CheckpointError, match="a and b both map to c"):
        rename_keys({"a": torch.ones(1), "b": torch.ones(1)}, lambda key: "c")


def test_parts_are_joined_only_where_all_are_there_and_fit():
    parts = {
        "x.k.weight": torch.zeros(2, 3),
        "x.v.weight": torch.ones(2, 3),
        "y.k.weight": torch.zeros(2, 3),
    }
    joined = join(parts, (".k.", ".v."), ".kv.")
    assert list(joined) == ["x.kv.weight", "y.k.weight"]
    assert joined["x.kv.weight"].sum(1).tolist() == [0, 0, 3, 3]
    for rows, columns in ((4, 3), (2, 5)):
        parts["x.v.weight"] = torch.ones(rows, columns)
        assert join(parts, (".k.", ".v."), ".kv.") == parts
    parts["x.v.weight"] = torch.ones(4, 3)
    assert len(join(parts, (".k.", ".v."), ".kv.", (1, 2))["x.kv.weight"]) == 6


# -- raw errors ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SLUGS)
@pytest.mark.parametrize("kwargs", [None, [1], "x"])
def test_arguments_that_are_no_table_are_told(name, kwargs):
    with pytest.raises(ModelError, match=r"constructor arguments .* not a dictionary"):
        from_reference(SLUGS[name], timm_fixture(name)["state_dict"], kwargs)


@pytest.mark.parametrize("name", SLUGS)
def test_a_wrappers_prefix_is_seen_through(name):
    fixture = timm_fixture(name)
    wrapped = {f"module.{key}": value for key, value in fixture["state_dict"].items()}
    model = from_reference(SLUGS[name], wrapped, fixture["kwargs"]).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(fixture["input"]), fixture["output"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SLUGS)
def test_misshapen_tensors_are_told(name):
    """Every kind of tensor, with an axis too many, too few, or as long as nothing else."""
    fixture = timm_fixture(name)
    weights = {k: v for k, v in fixture["state_dict"].items() if not k.endswith("idxs")}
    kinds = {key.rpartition(".")[2] + str(value.ndim): key for key, value in weights.items()}
    for key in kinds.values():
        value = weights[key]
        if not value.is_floating_point():
            continue
        for bad in (value[None], value.flatten()[:4], value.new_zeros(()), value.new_zeros(7, 11)):
            with pytest.raises(VitreousError):
                from_reference(SLUGS[name], {**weights, key: bad}, fixture["kwargs"])


@pytest.mark.parametrize("name", SLUGS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(name, value):
    fixture = timm_fixture(name)
    weights = {key: tensor.clone() for key, tensor in fixture["state_dict"].items()}
    key = next(key for key in weights if key.endswith("fc2.weight") or "pw2.conv" in key)
    weights[key].view(-1)[3] = value
    with pytest.raises(CheckpointError, match="NaN or infinite.*" + key.replace(".", r"\.")):
        from_reference(SLUGS[name], weights, fixture["kwargs"])


# -- whose layout it is -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SLUGS)
def test_a_layout_is_recognised(name):
    layout = recognise(timm_fixture(name)["state_dict"])
    assert layout is not None and layout.slug == SLUGS[name]
    assert layout.title.startswith("timm's ")


@pytest.mark.parametrize(
    "name", [f"{card.slug}_test" for card in cards() if card.kind in ("model", "restorer")]
)
def test_our_own_names_are_nobodys(name):
    sizes = {} if name in ("hsdt_test", "essaformer_test") else {"num_classes": 2}
    assert recognise(create_model(name, bands=3, **sizes).state_dict()) is None
