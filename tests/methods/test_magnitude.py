"""Magnitude pruning, and what methods decide: noted, rebuilt without memory, refused where it is damaged."""

from __future__ import annotations

import json
import types

import pytest
import torch

import vitreous
from vitreous import testing
from vitreous.errors import ModelError
from vitreous.methods import _apply
from vitreous.methods._apply import Calibration, applied, reinstall
from vitreous.methods.prune import magnitude


def model(name="vit_test"):
    return testing.make(name).eval()


def test_the_units_with_the_largest_weights_stay():
    plain = model()
    pruned, report = vitreous.apply(plain, "magnitude", keep=0.3)
    for before, after in zip(plain.blocks, pruned.blocks, strict=True):
        strength = before.mlp.fc1.weight.abs().sum(1)
        width = len(strength)
        kept = strength.sort(descending=True).indices[: -(-3 * width // 10)].sort().values
        assert torch.equal(after.mlp.fc1.weight, before.mlp.fc1.weight[kept])
        assert torch.equal(after.mlp.fc1.bias, before.mlp.fc1.bias[kept])
        assert torch.equal(after.mlp.fc2.weight, before.mlp.fc2.weight[:, kept])
        assert torch.equal(after.mlp.fc2.bias, before.mlp.fc2.bias)
        assert len(kept) < width
    assert [row["units after"] for row in report.rows] == [len(kept)] * 2
    assert [row["units before"] for row in report.rows] == [width] * 2


def test_units_that_give_nothing_change_nothing():
    plain = model()
    with torch.no_grad():
        for block in plain.blocks:
            block.mlp.fc1.weight[::2] *= 1e-3
            block.mlp.fc2.weight[:, ::2] = 0
    pruned = vitreous.apply(plain, "magnitude", keep=0.5).model
    x = testing.images(3, 4, 15)
    torch.testing.assert_close(pruned(x), plain(x), rtol=1e-4, atol=1e-5)


def test_what_was_decided_is_noted_and_rebuilt_without_memory():
    pruned = vitreous.apply(model(), "magnitude", targets="blocks.1.*").model
    noted = json.loads(json.dumps(applied(pruned)))
    assert list(noted[0]["settings"]["kept"]) == ["blocks.1.mlp"]
    with torch.device("meta"):
        bare = vitreous.create_model(
            "vit_test", bands=4, num_classes=testing.CLASSES, image_size=15
        )
        reinstall(bare, noted)
    shapes = {name: tensor.shape for name, tensor in bare.state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in pruned.state_dict().items()}
    assert bare.blocks[0].mlp.fc1.out_features == 2 * bare.blocks[1].mlp.fc1.out_features


def test_given_units_are_kept_and_a_second_time_changes_nothing():
    kept = {"blocks.0.mlp": [1, 4, 5]}
    pruned = vitreous.apply(model(), "magnitude", kept=kept).model
    assert pruned.blocks[0].mlp.fc1.out_features == 3
    before = {name: tensor.clone() for name, tensor in pruned.state_dict().items()}
    reinstall(pruned, applied(pruned))
    assert all(torch.equal(before[name], t) for name, t in pruned.state_dict().items())


@pytest.mark.parametrize(
    "settings",
    [
        {"keep": 0.0},
        {"keep": 1.5},
        {"targets": "nothing*"},
        {"kept": {"blocks.9.mlp": [0]}},
        {"kept": {"blocks.0.mlp": []}},
        {"kept": {"blocks.0.mlp": [2, 1]}},
        {"kept": {"blocks.0.mlp": [-1, 1]}},
        {"kept": {"blocks.0.mlp": [0, 10**9]}},
        {"kept": {"blocks.0.mlp": ["a"]}},
    ],
)
def test_wrong_settings_are_refused(settings):
    with pytest.raises(ModelError):
        vitreous.apply(model(), "magnitude", **settings)


@pytest.mark.parametrize(
    ("first", "second"), [("evit", "magnitude"), ("ptq_minmax", "magnitude"), ("magnitude", "lora")]
)
def test_stages_follow_one_another(first, second):
    batches = [testing.images(16, 4, 15)]
    changed = vitreous.apply(model(), first, calibration=batches).model
    with pytest.raises(ModelError, match="cannot be applied after") as caught:
        vitreous.apply(changed, second)
    assert "adapt, prune, reduce, robust, quantize" in caught.value.fix


def test_pruned_adapted_reduced_and_quantized_in_order():
    batches, x = [testing.images(16, 4, 15)], testing.images(2, 4, 15)
    net = model()
    for name in ("adaptformer", "magnitude", "evit", "ptq_minmax"):
        net = vitreous.apply(net, name, calibration=batches).model
    with torch.device("meta"):
        bare = vitreous.create_model(
            "vit_test", bands=4, num_classes=testing.CLASSES, image_size=15
        )
        reinstall(bare, json.loads(json.dumps(applied(net))))
    bare.load_state_dict(net.state_dict(), assign=True)
    assert torch.equal(bare.eval()(x), net(x))


# -- what a method is given to decide on ------------------------------------------------------------------


@pytest.fixture
def deciding(monkeypatch):
    """Replace the decision of the method; return what it was given."""
    given = {}

    def use(decide):
        module = types.ModuleType("deciding")
        module.install, module.decide = magnitude.install, decide(given)
        real = _apply.system_module
        monkeypatch.setattr(
            _apply, "system_module", lambda n: module if n == "magnitude" else real(n)
        )
        return given

    return use


def with_classes(given):
    def decide(model, batches, *, classes, **settings):
        given.update(batches=batches, classes=classes)
        strongest = int(torch.cat(classes).bincount().argmax())
        return {"kept": {"blocks.0.mlp": [strongest]}}

    return decide


def test_calibration_carries_classes_beside_images(deciding):
    given = deciding(with_classes)
    images = testing.images(16, 4, 15)
    batches = [Calibration(part, torch.full((8,), 2)) for part in images.split(8)]
    changed = vitreous.apply(model(), "magnitude", calibration=batches).model
    assert applied(changed)[0]["settings"]["kept"] == {"blocks.0.mlp": [2]}
    assert torch.equal(torch.cat(given["batches"]), images)
    assert changed.blocks[0].mlp.fc1.out_features == 1


@pytest.mark.parametrize(
    "calibration",
    [
        [testing.images(16, 4, 15)],
        [Calibration(testing.images(16, 4, 15), torch.zeros(15, dtype=torch.long))],
        [Calibration(testing.images(16, 4, 15), torch.zeros(16))],
        [
            Calibration(testing.images(8, 4, 15), torch.zeros(8, dtype=torch.long)),
            Calibration(testing.images(8, 4, 15)),
        ],
    ],
)
def test_missing_classes_are_told(deciding, calibration):
    deciding(with_classes)
    with pytest.raises(ModelError, match="class of every calibration image"):
        vitreous.apply(model(), "magnitude", calibration=calibration)


def test_classes_do_no_harm_where_nobody_asks_for_them():
    images = testing.images(16, 4, 15)
    batch = Calibration(images, torch.zeros(16, dtype=torch.long))
    first = vitreous.apply(model(), "ptq_minmax", calibration=[batch]).model
    second = vitreous.apply(model(), "ptq_minmax", calibration=[images]).model
    assert torch.equal(first(images), second(images))
