import copy

import pytest
import torch

import vitreous
from vitreous.errors import ModelError
from vitreous.methods.adapt import lora
from vitreous.methods.adapt._freeze import freeze_base


def model(name="vit_test"):
    torch.manual_seed(0)
    return vitreous.create_model(name, bands=5, num_classes=4, image_size=9).eval()


def images(n=3):
    return torch.randn(n, 5, 9, 9, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "form", [{}, {"gate": True}, {"residual": True}, {"gate": True, "residual": True}]
)
def test_applying_changes_no_output_and_not_the_original(form):
    plain = model()
    before = copy.deepcopy(plain.state_dict())
    adapted = vitreous.apply(plain, "lora", rank=2, **form).model
    torch.testing.assert_close(adapted(images()), plain(images()))
    assert (
        len(list(lora.adapters(adapted))) == 9
    )  # 4 linear layers in each of 2 blocks, and the head
    assert all(torch.equal(before[k], v) for k, v in plain.state_dict().items())


def test_only_adapters_move():
    adapted = vitreous.apply(model(), "lora", rank=2).model
    freeze_base(adapted)
    before = copy.deepcopy(adapted.state_dict())
    trainable = [p for p in adapted.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=0.1)
    for _ in range(2):  # the first step only moves U: D has no gradient while U is 0
        adapted(images()).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    for name, value in adapted.state_dict().items():
        assert torch.equal(value, before[name]) != ("lora_" in name), name


def test_a_trained_adapter_merges_away():
    adapted = vitreous.apply(model(), "lora", rank=2, residual=True).model
    for name, p in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(p, std=0.1)
    merged = lora.merge(adapted)
    assert not list(lora.adapters(merged))
    assert set(merged.state_dict()) == set(model().state_dict())
    torch.testing.assert_close(merged(images()), adapted(images()), rtol=1e-4, atol=1e-4)


def test_targets_choose_layers():
    adapted = vitreous.apply(model(), "lora", targets="*.qkv").model
    assert [name for name, _ in lora.adapters(adapted)] == [
        "blocks.0.attn.qkv",
        "blocks.1.attn.qkv",
    ]


def test_lola_specvit_brings_its_own():
    own = model("lola_specvit_test")
    adapted = vitreous.apply(own, "lora", rank=2).model
    before, after = dict(lora.adapters(own)), dict(lora.adapters(adapted))
    assert all(
        after[name].lora_down.shape == layer.lora_down.shape for name, layer in before.items()
    )
    assert {name.rpartition(".")[2] for name in after.keys() - before.keys()} == {
        *("squeeze", "excite", "gate_value", "out"),  # the layers that the paper leaves without
    }
    torch.testing.assert_close(adapted(images()), own(images()))
    with pytest.raises(ModelError, match="gate"):
        lora.merge(own)


@pytest.mark.parametrize("arguments", [{"targets": "nothing*"}, {"rank": 0}])
def test_adapting_nothing_is_refused(arguments):
    with pytest.raises(ModelError):
        vitreous.apply(model(), "lora", **arguments)


def test_freezing_needs_an_adapter():
    with pytest.raises(ModelError):
        freeze_base(model())
