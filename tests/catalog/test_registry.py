"""The registry: systems found by name without being imported, and built only as they can be."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import vitreous
from vitreous.catalog.registry import card, cards, create_model, list_models, system_module
from vitreous.errors import ConfigError, ModelError

PACKAGE = Path(vitreous.__file__).parent
SYSTEM_FILES = [
    path
    for room in ("models", "methods")
    for path in sorted((PACKAGE / room).rglob("*.py"))
    if not path.name.startswith("_")
]
NETWORKS = list_models(kind="model")


@pytest.mark.parametrize("path", SYSTEM_FILES, ids=lambda path: path.stem)
def test_every_system_file_has_a_literal_card_equal_to_the_imported_one(path):
    calls = [
        node.value
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "CARD"
    ]
    assert len(calls) == 1
    for keyword in calls[0].keywords:
        ast.literal_eval(keyword.value)  # names and calls would not be literal
    entry = card(path.stem)
    assert entry == system_module(path.stem).CARD
    assert Path(system_module(path.stem).__file__) == path


def test_cards_say_what_they_must():
    assert len(cards()) == len(SYSTEM_FILES)
    for entry in cards():
        assert entry.summary
        assert entry.when
        assert entry.variants
        assert all(name.startswith(entry.slug) for name in entry.variants)
        assert entry.kind in {"model", "restorer", "filter", "method", "estimator", "choice"}


def test_variant_names_are_unique():
    names = [name for entry in cards() for name in entry.variants]
    assert len(names) == len(set(names))
    assert names and sorted(names) == list_models()


def test_patterns_and_kinds():
    assert set(list_models("lola*")) == set(card("lola_specvit").variants)
    assert list_models("*_test", kind="model") == [n for n in NETWORKS if n.endswith("_test")]
    assert list_models("nothing*") == []
    assert "svm" in list_models(kind="estimator")
    assert not set(list_models(kind="estimator")) & set(NETWORKS)


def test_variants_lead_to_their_system():
    assert card("vit_test") is card("vit")
    assert card("lola_specvit_tiny").slug == "lola_specvit"


@pytest.mark.parametrize(
    ("name", "nearest"), [("lola_specvit_tinny", "lola_specvit_tiny"), ("svmm", "svm")]
)
def test_an_unknown_name_suggests_the_nearest(name, nearest):
    with pytest.raises(ModelError, match=f"Unknown system: {name}") as caught:
        card(name)
    assert "Did you mean" in caught.value.fix
    assert f"'{nearest}'" in caught.value.fix


@pytest.mark.parametrize(
    ("kind", "stage", "word"), [("method", "distill", "method"), ("model", None, "architecture")]
)
def test_an_unknown_name_is_compared_with_what_was_asked_for(kind, stage, word):
    with pytest.raises(ModelError, match=f"Unknown {word}: #") as caught:
        card("#", kind, stage)
    known = caught.value.fix.removeprefix("Known: ").rstrip(".").split(", ")
    if stage == "distill":
        assert {"deit_hard", "deit_soft"} <= set(known) and not {"lora", "vit", "svm"} & set(known)
    else:
        assert "channelvit" in known and not {"deit_hard", "adalog", "bicubic"} & set(known)


def test_an_unknown_argument_suggests_the_nearest():
    with pytest.raises(ModelError, match="no argument 'dims'") as caught:
        create_model("vit_test", bands=3, num_classes=2, image_size=6, dims=8)
    assert "'dim'" in caught.value.fix


@pytest.mark.parametrize(
    "changes", [{"dim": "wide"}, {"dim": -4}, {"heads": 0}, {"depth": 1.5}, {"mlp_ratio": None}]
)
def test_impossible_values_are_refused(changes):
    with pytest.raises(ModelError) as caught:
        create_model("vit_test", bands=3, num_classes=2, image_size=6, **changes)
    assert next(iter(changes)) in str(caught.value) or "divisible" in str(caught.value)


@pytest.mark.parametrize("name", ["svm", "lora", "lola_specvit"])
def test_what_is_no_variant_of_a_network_is_not_built(name):
    with pytest.raises(ModelError, match=r"not a network|several variants"):
        create_model(name, bands=3, num_classes=2)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_variant_builds_and_answers(name):
    """On the meta device: no memory, whatever the size; shapes only."""
    with torch.device("meta"):
        net = create_model(name, bands=5, num_classes=7, image_size=15).eval()
        patches = torch.empty(2, 5, 15, 15)
        assert net(patches).shape == (2, 7)
        stem = net.stem(torch.empty(1, 5, 20, 31))
    assert stem.shape[2:] == (20, 31)
    assert net.num_classes == 7
    assert net.no_weight_decay() <= {name for name, _ in net.named_parameters()}


def test_changes_win_over_the_variant():
    net = create_model("vit_test", bands=3, num_classes=2, image_size=6, depth=1)
    assert len(net.blocks) == 1


def test_listing_imports_nothing_and_building_only_its_own_file():
    code = """
import sys
from vitreous.catalog.registry import cards, list_models, system_module
cards(), list_models()
assert "torch" not in sys.modules
names = lambda: {m.split(".")[-1] for m in sys.modules if m.startswith("vitreous.models.")}
assert names() == set()
system_module("vit_test").build(bands=2, num_classes=2, image_size=6, token_size=3, dim=4, heads=1)
assert names() == {"vit"}, names()
assert not any(m.startswith("vitreous.methods.") for m in sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_methods_and_slugs_are_not_trained(tmp_path):
    from tiny_scene import tiny_recipe, write_scene
    from vitreous.tasks.classify import train

    places = write_scene(tmp_path)
    for name, error in (("lora", ConfigError), ("lola_specvit", ModelError)):
        for changes in ({"model": name}, {"baselines": [name]}):
            with pytest.raises(error, match=name):
                train(tiny_recipe(tmp_path, **places, **changes), show=False)
    with pytest.raises(ModelError, match="Unknown system: svn"):
        train(tiny_recipe(tmp_path, **places, baselines=["svn"]), show=False)
    assert not (tmp_path / "runs").exists()
