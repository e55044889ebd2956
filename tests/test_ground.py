"""The benchmark of unseen ground compares on equal terms, and says so."""

import pytest

from vitreous.catalog.reproduce import SCRIPTS, _load
from vitreous.tasks.division import WIDEST, own_size, recipe_receptive_size, recipe_refinements

BENCHMARKS = SCRIPTS.parent / "benchmarks"
pytestmark = pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="installed without its checkout")


@pytest.fixture(scope="module")
def ground():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield _load(BENCHMARKS / "ground.py")


def test_no_system_sees_further_than_the_buffer(ground):
    assert recipe_receptive_size(ground.Case("Indian Pines", 0).recipe("auto")) == WIDEST
    for system in ground.SYSTEMS:
        recipe = ground.Case("Indian Pines", 0).recipe(system)
        if recipe.chosen:
            continue  # it chooses what fits
        reach = max(0 if one is None else one.reach for one in recipe_refinements(recipe))
        assert own_size(recipe, recipe.model) + 2 * reach <= WIDEST, system


def test_a_record_is_known_by_its_settings(ground, monkeypatch):
    case = ground.Case("Jasper Ridge", 3)
    keys = {case.key(system) for system in ground.SYSTEMS}
    assert len(keys) == len(ground.SYSTEMS)
    before = case.key("svm")
    changed = ground.System({"model": "svm", "model_args": {"C": 3.0}})
    monkeypatch.setitem(ground.SYSTEMS, "svm", changed)
    assert case.key("svm") != before


def test_the_best_system_stands_first(ground):
    def record(system, seed, oa):
        return {
            "scene": "Indian Pines",
            "seed": seed,
            "system": system,
            "oa": oa,
            "aa": oa,
            "kappa": oa,
            "train_seconds": 1.0,
            "split": {"train": 10, "val": 2, "test": 30},
            "leakage": 0.0,
            "tested_classes": 12,
        }

    records = [record("svm", k, 0.5 + k / 100) for k in range(3)]
    records += [record("auto", k, 0.7) for k in range(3)]
    rows = ground.summary(records)
    assert [row["system"] for row in rows] == ["auto", "svm"]
    assert rows[1]["least"] == "50.0" and rows[1]["seeds"] == 3
    assert "auto is best with 70.0 % OA" in ground.conclude(records)
    behind = [*records, record("ls_svm, MNF", 0, 0.9)]
    assert "The automatic choice reaches 70.0 %." in ground.conclude(behind)
