"""Parity fixtures are complete in a public clone, and read as what was written."""

import json

import pytest
import torch

from fixtures_reader import FOLDER, load_fixture, save_fixture
from vitreous.catalog.registry import cards, system_module

NAMES = sorted(
    path.relative_to(FOLDER).with_suffix("").as_posix() for path in FOLDER.rglob("*.safetensors")
)
KEYS = {"slug", "repo", "commit", "class", "kwargs", "state_dict", "input", "output", "note"}


def test_every_system_with_a_reference_has_its_fixture():
    with_reference = {
        entry.slug
        for entry in cards()
        if entry.kind in {"model", "restorer"} and hasattr(system_module(entry.slug), "rename")
    }
    # timm's own ViT is the reference of ours: its layout stands in timm/.
    assert with_reference - {"vit"} <= {name for name in NAMES if "/" not in name}


@pytest.mark.parametrize("name", NAMES)
def test_fixtures_are_whole(name):
    fixture = load_fixture(name)
    assert set(fixture) >= KEYS
    assert fixture["slug"] == name.removeprefix("timm/")
    for tensor in fixture["state_dict"].values():
        assert torch.isfinite(tensor).all()


def test_layouts_are_names_and_shapes():
    layouts = json.loads((FOLDER / "timm" / "layouts.json").read_text())["layouts"]
    assert layouts


def test_a_fixture_is_read_as_it_was_written(tmp_path):
    shared = torch.arange(6.0)
    wrote = {
        "kwargs": {"sizes": (4, (2, 3)), "list": [1, [2.5]], "none": None, "flag": True, "t": "x"},
        "state_dict": {"a": shared, "b": shared[2:].reshape(2, 2).T, "n": torch.tensor(3)},
        "output": [torch.tensor([1 / 3, float("inf")]), {"half": torch.ones(2, dtype=torch.half)}],
        "empty": {},
    }
    save_fixture(wrote, tmp_path / "deep" / "x")
    text = json.loads((tmp_path / "deep" / "x.json").read_text())
    assert text["state_dict"]["a"] == {"$tensor": "state_dict/a"}
    read = load_fixture("x", folder=tmp_path / "deep")
    assert read["kwargs"] == wrote["kwargs"] and list(read) == list(wrote)
    for key, tensor in wrote["state_dict"].items():
        assert torch.equal(read["state_dict"][key], tensor)
        assert read["state_dict"][key].dtype == tensor.dtype
    assert torch.equal(read["output"][0], wrote["output"][0])
    assert read["output"][1]["half"].dtype == torch.half
