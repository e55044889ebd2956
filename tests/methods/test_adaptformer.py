"""AdaptFormer against its reference, its equations written out, and what it promises of training."""

import copy
import json
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import vitreous
from fixtures_reader import load_fixture
from vitreous import testing
from vitreous.catalog.registry import card
from vitreous.errors import CheckpointError, ModelError
from vitreous.inference.cost import count_cost
from vitreous.layers.drop import DropPath
from vitreous.methods._apply import reinstall
from vitreous.methods.adapt import adaptformer
from vitreous.methods.adapt._freeze import freeze_base
from vitreous.methods.adapt.adaptformer import Adapter

SERVED = [f"{pattern.removesuffix('_*')}_test" for pattern in card("adaptformer").models]


def model(name="vit_test", **changes):
    torch.manual_seed(0)
    return vitreous.create_model(name, bands=5, num_classes=4, image_size=9, **changes).eval()


def images(n=3):
    return torch.randn(n, 5, 9, 9, generator=torch.Generator().manual_seed(1))


def adapted(plain, name="adaptformer", **settings):
    """Return the adapted model with weights that are not silent."""
    new = vitreous.apply(plain, name, **{"bottleneck": 3, **settings}).model
    torch.manual_seed(5)
    for key, parameter in new.named_parameters():
        if ".adapter." in key and not key.endswith("scale"):
            nn.init.normal_(parameter, std=0.5)
    return new


# -- the reference ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fixture():
    return load_fixture("adaptformer")


def tuned(fixture, **changes):
    return {
        **fixture["kwargs"],
        "tuning_config": {**fixture["kwargs"]["tuning_config"], **changes},
    }


def test_equals_reference(fixture):
    net = vitreous.from_reference("adaptformer", fixture["state_dict"], fixture["kwargs"]).eval()
    with torch.no_grad():
        features = net.pool_tokens(net.forward_features(fixture["input"]))
        logits = net(fixture["input"])
    torch.testing.assert_close(features, fixture["output"]["features"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logits, fixture["output"]["logits"], rtol=1e-4, atol=1e-5)
    assert net.methods[0]["settings"]["bottleneck"] == 8


def test_equals_reference_in_sequence(fixture):
    kwargs = tuned(fixture, ffn_option="sequential")
    net = vitreous.from_reference("adaptformer", fixture["state_dict"], kwargs).eval()
    with torch.no_grad():
        torch.testing.assert_close(
            net(fixture["input"]), fixture["output"]["logits_sequential"], rtol=1e-4, atol=1e-5
        )


def test_the_authors_head_with_a_batch_norm_is_taken(fixture):
    weights, width = dict(fixture["state_dict"]), 48
    mean, var = torch.linspace(-1, 1, width), torch.linspace(0.5, 2, width)
    for part in ("weight", "bias"):
        weights[f"head.1.{part}"] = weights.pop(f"head.{part}")
    weights |= {"head.0.running_mean": mean, "head.0.running_var": var}
    weights["head.0.num_batches_tracked"] = torch.tensor(3)
    net = vitreous.from_reference("adaptformer", weights, fixture["kwargs"]).eval()
    features = (fixture["output"]["features"] - mean) / (var + 1e-6).sqrt()
    expected = F.linear(features, weights["head.1.weight"], weights["head.1.bias"])
    with torch.no_grad():
        torch.testing.assert_close(net(fixture["input"]), expected, rtol=1e-4, atol=1e-5)


def test_reference_options(fixture):
    """A learned scale, a norm, no bias of the projections, no adapters at all."""
    weights = dict(fixture["state_dict"])
    for block in range(3):
        weights[f"blocks.{block}.adaptmlp.scale"] = torch.full((1,), 0.1)
        for part, value in (("weight", 1.0), ("bias", 0.0)):
            key = f"blocks.{block}.adaptmlp.adapter_layer_norm_before.{part}"
            weights[key] = torch.full((48,), value)
    kwargs = tuned(
        fixture, ffn_adapter_scalar="learnable_scalar", ffn_adapter_layernorm_option="in"
    )
    net = vitreous.from_reference("adaptformer", weights, kwargs)
    assert net.blocks[2].adapter.scale == torch.tensor([0.1])
    bare = {k: v for k, v in fixture["state_dict"].items() if ".adaptmlp." not in k}
    for key in [k for k in bare if "_proj.bias" in k]:
        del bare[key]
    kwargs = {**tuned(fixture, ffn_adapt=False), "qkv_bias": False}
    plain = vitreous.from_reference("adaptformer", bare, kwargs)
    assert plain.methods == [] and plain.blocks[0].attn.qkv.bias is None


@pytest.mark.parametrize(
    ("change", "message"),
    [({"vpt_on": True}, "prompts"), ({"ffn_adapter_init_option": "bert"}, "'bert'")],
)
def test_reference_without_a_counterpart(fixture, change, message):
    with pytest.raises(ModelError, match=message) as caught:
        vitreous.from_reference("adaptformer", fixture["state_dict"], tuned(fixture, **change))
    assert caught.value.fix


def test_a_missing_adapter_is_refused(fixture):
    weights = {k: v for k, v in fixture["state_dict"].items() if "1.adaptmlp" not in k}
    with pytest.raises(CheckpointError):
        vitreous.from_reference("adaptformer", weights, fixture["kwargs"])


def test_adapters_that_the_arguments_deny_are_not_dropped(fixture):
    with pytest.raises(CheckpointError, match=r"adapter\.down"):
        vitreous.from_reference(
            "adaptformer", fixture["state_dict"], tuned(fixture, ffn_adapt=False)
        )


@pytest.mark.parametrize("part", ["q_proj", "k_proj", "v_proj", "[qkv]_proj"])
@pytest.mark.parametrize("blocks", ["1", "[0-2]"])
def test_a_missing_bias_is_not_taken_for_zeros(fixture, part, blocks):
    gone = re.compile(rf"blocks\.{blocks}\.attn\.{part}\.bias")
    weights = {k: v for k, v in fixture["state_dict"].items() if not gone.fullmatch(k)}
    assert len(weights) < len(fixture["state_dict"])
    with pytest.raises(CheckpointError, match=r"qkv\.bias"):
        vitreous.from_reference("adaptformer", weights, fixture["kwargs"])


# -- the equations ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SERVED)
@pytest.mark.parametrize("form", adaptformer.FORMS)
@pytest.mark.parametrize("layer_norm", ["none", "out"])
def test_it_begins_as_the_given_model(name, form, layer_norm):
    plain = model(name)
    new = vitreous.apply(plain, "adaptformer", form=form, layer_norm=layer_norm).model
    with torch.no_grad():
        assert torch.equal(new(images()), plain(images()))
        moved = adapted(plain, form=form, layer_norm=layer_norm)(images())
    assert not torch.allclose(moved, plain(images()), atol=1e-4)


@pytest.mark.parametrize("form", adaptformer.FORMS)
@pytest.mark.parametrize("layer_norm", adaptformer.NORMS)
@pytest.mark.parametrize("scale", [0.1, -2.0, "learned"])
def test_a_block_is_its_equations(form, layer_norm, scale):
    block = adapted(model(), form=form, layer_norm=layer_norm, scale=scale).blocks[0]
    own = block.adapter
    if scale == "learned":
        assert own.scale == 1
        nn.init.constant_(own.scale, 0.7)
    factor = 0.7 if scale == "learned" else scale
    x = torch.randn(2, 10, 16)
    with torch.no_grad():
        before = block.attend(x)
        hidden = F.gelu(block.mlp.fc1(F.layer_norm(before, (16,), eps=1e-6)))
        branch = block.mlp.fc2(hidden)
        read = before if form == "parallel" else branch
        if layer_norm == "in":
            read = F.layer_norm(read, (16,), own.norm.weight, own.norm.bias)
        up = F.relu(read @ own.down.weight.T + own.down.bias) @ own.up.weight.T + own.up.bias
        added = factor * up
        if layer_norm == "out":
            added = F.layer_norm(added, (16,), own.norm.weight, own.norm.bias)
        found, _ = block(x)
    torch.testing.assert_close(found, before + branch + added)


def test_a_scale_of_nothing_is_the_plain_model():
    with torch.no_grad():
        assert torch.equal(adapted(model(), scale=0.0)(images()), model()(images()))


@pytest.mark.parametrize("form", adaptformer.FORMS)
def test_stochastic_depth_and_layer_scale_spare_the_parallel_adapter_alone(form):
    block = adapted(model(layer_scale=1e-9), form=form, dropout=0.0).blocks[1]
    block.drop_path = DropPath(1 - 1e-9)  # every branch is dropped
    x = torch.randn(2, 10, 16)
    with torch.no_grad():
        found, _ = block.train()(x)
        expected = x + block.adapter(x, torch.zeros_like(x))
    torch.testing.assert_close(found, expected)
    constant = (found - x).std(1).max() < 1e-5  # the sequential one reads zeros: its bias is left
    assert constant == (form == "sequential")


def test_dropout_is_between_the_linear_layers():
    own = adapted(model(), dropout=0.5).blocks[0].adapter
    nn.init.zeros_(own.up.bias)
    x = torch.randn(4, 10, 16)
    zeros = torch.zeros_like(x)
    with torch.no_grad():
        still = own.eval()(x, zeros)
        runs = torch.stack([own.train()(x, zeros) for _ in range(2000)])
    assert (runs[0] != still).any()
    torch.testing.assert_close(runs.mean(0), still, atol=0.05, rtol=0.1)


@pytest.mark.parametrize("row", card("adaptformer").published, ids=lambda row: row["bottleneck"])
def test_published_cost(row):
    with torch.device("meta"):
        plain = vitreous.create_model(row["model"], bands=3, num_classes=10, image_size=224)
    new, report = vitreous.apply(plain, "adaptformer", bottleneck=row["bottleneck"])
    rank, width, depth = row["bottleneck"], 768, 12
    added = sum(entry["weights added"] for entry in report.rows)
    assert added == depth * (2 * width * rank + width + rank)
    assert added / 1e6 == pytest.approx(row["added_m"], rel=0.02)
    assert sum(p.numel() for p in new.parameters()) - added == sum(
        p.numel() for p in plain.parameters()
    )
    if "added_gmacs" in row:
        more = count_cost(new, 3, 224).macs - count_cost(plain, 3, 224).macs
        assert more / 1e9 == pytest.approx(row["added_gmacs"], rel=0.05)


# -- training -----------------------------------------------------------------------------------------------


def test_the_first_step_moves_up_and_the_second_down_and_nothing_else():
    new = vitreous.apply(model(), "adaptformer", bottleneck=3).model.train()
    freeze_base(new, "adaptformer", also_train="head.")
    optimizer = torch.optim.SGD([p for p in new.parameters() if p.requires_grad], lr=1.0)
    frozen = {n: p.detach().clone() for n, p in new.named_parameters() if not p.requires_grad}
    for step in range(2):
        optimizer.zero_grad()
        new(images()).square().sum().backward()
        for block in new.blocks:
            assert block.adapter.up.weight.grad.abs().max() > 0
            assert bool(block.adapter.down.weight.grad.any()) == (step == 1)
        optimizer.step()
    assert len(frozen) == len(list(model().parameters())) - 2  # all but the head's
    for name, parameter in new.named_parameters():
        assert (name in frozen) == (parameter.grad is None)
        if name in frozen:
            assert torch.equal(parameter, frozen[name])


def test_only_the_named_adapters_train():
    """LoLA-SpecViT brings adapters of another method."""
    new = vitreous.apply(model("lola_specvit_test"), "adaptformer").model
    for method, found in (("adaptformer", {".adapter."}), ("lora", {"lora_"})):
        freeze_base(new, method)
        trained = [n for n, p in new.named_parameters() if p.requires_grad]
        assert trained and all(any(part in n for part in found) for n in trained)
    with pytest.raises(ModelError):
        freeze_base(model(), "adaptformer")


def test_checkpointing_changes_no_gradient():
    found = []
    for on in (False, True):
        new = adapted(model(), dropout=0.0, scale="learned", layer_norm="in").train()
        new.checkpointing = on
        new(images()).square().sum().backward()
        found.append([p.grad for p in new.parameters()])
        assert all(gradient.abs().max() > 0 for gradient in found[-1])
    for plain, again in zip(*found, strict=True):
        torch.testing.assert_close(plain, again)


# -- the classifier with a batch norm -----------------------------------------------------------------------


def test_head_norm_stands_before_the_classifier():
    plain = model()
    new = vitreous.apply(plain, "adaptformer", head_norm=True).model.train()
    features = plain.pool_tokens(plain.forward_features(images(8)))
    normed = (features - features.mean(0)) / (features.var(0, unbiased=False) + 1e-6).sqrt()
    torch.testing.assert_close(new(images(8)), plain.head(normed), rtol=1e-3, atol=1e-4)
    running = new.head[0].running_mean.clone()
    assert running.abs().max() > 0
    alone = new(images(1))  # no batch to take statistics of
    assert torch.equal(new.head[0].running_mean, running)
    torch.testing.assert_close(alone, new.eval()(images(1)))


def test_head_norm_survives_a_new_head_and_a_file():
    new = vitreous.apply(model(), "adaptformer", head_norm=True).model.eval()
    new.reset_head(3)
    reinstall(new, new.methods)
    assert new.head[1].out_features == 3 and len(new.methods) == 1
    assert sum(isinstance(part, Adapter) for part in new.modules()) == 2
    with torch.device("meta"):
        bare = vitreous.create_model("vit_test", bands=5, num_classes=3, image_size=9)
    back = reinstall(bare, json.loads(json.dumps(new.methods)))
    back.load_state_dict(new.state_dict(), assign=True)
    with torch.no_grad():
        assert torch.equal(back.eval()(images()), new(images()))
        assert torch.equal(copy.deepcopy(new)(images()), new(images()))


# -- what is refused, what is chosen ------------------------------------------------------------------------


def test_targets_choose_blocks():
    new, report = vitreous.apply(model(), "adaptformer", bottleneck=3, targets="blocks.1")
    assert [row["block"] for row in report.rows] == ["blocks.1"]
    assert not isinstance(new.blocks[0].adapter, Adapter)
    assert isinstance(new.blocks[1].adapter, Adapter)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bottleneck": 0}, "bottleneck = 0"),
        ({"bottleneck": "many"}, "many"),
        ({"form": "beside"}, "no form 'beside'"),
        ({"layer_norm": "both"}, "no layer_norm 'both'"),
        ({"scale": "learnt"}, "scale by 'learnt'"),
        ({"scale": float("nan")}, "scale=nan: it must be a finite number"),
        ({"dropout": 1.0}, "dropout = 1.0 is out of range"),
        ({"targets": "layers.*"}, "No block matches"),
        ({"rank": 8}, "no setting 'rank'"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ModelError, match=message) as caught:
        vitreous.apply(model(), "adaptformer", **settings)
    assert caught.value.fix


def test_a_model_without_blocks_to_adapt_is_refused():
    with pytest.raises(ModelError, match="has no token feed-forward layers") as caught:
        vitreous.apply(model("efficientvit_test"), "adaptformer")
    assert "lora" in caught.value.fix


def test_a_head_that_takes_no_batch_norm_leaves_the_model_alone():
    plain = model("crossvit_test")  # it has two
    with pytest.raises(ModelError, match="The classifier of CrossViT") as caught:
        adaptformer.install(plain, head_norm=True)
    assert caught.value.fix == "Omit head_norm."
    assert not any(isinstance(part, Adapter) for part in plain.modules())


@pytest.mark.parametrize("form", card("adaptformer").variants)
def test_contract(form):
    testing.check_method(form, "vit_test")
