"""Checks notice what they guard: faults put in on purpose turn the conformance suite red (``tests/mutations.py``)."""

import pytest

import mutations
from mutations import METHODS, MODELS, PATHS
from vitreous import testing

QUICK = [path for path in PATHS if path != "export"]  # seconds per network


def never(model):
    return False


@pytest.mark.parametrize("name", MODELS)
def test_one_fault_of_each_kind_is_noticed(name):
    """A sample: the last place of each kind, where depth hides most."""
    for kind, places in mutations.faults(name).items():
        place = list(places)[-1]
        assert mutations.golden_is_red(name, places[place]), f"{kind}: {place}"


@pytest.mark.parametrize("path", QUICK)
@pytest.mark.parametrize("name", MODELS)
def test_faults_of_one_path_are_noticed(name, path):
    fault = mutations.noting_the_batch(mutations.central(name))
    assert mutations.path_is_red(name, path, fault)


@pytest.mark.parametrize("path", QUICK)
def test_without_a_fault_nothing_is_red(path, monkeypatch):
    """What makes a check red is the fault, not the way it is put in."""
    check, _, built = PATHS[path]
    monkeypatch.setitem(PATHS, path, (check, never, built))
    fault = mutations.noting_the_batch(mutations.central("vit_test"))
    assert not mutations.path_is_red("vit_test", path, fault)


@pytest.mark.parametrize("name", ["lora", "adaptformer", "evit", "tome", "ptq_minmax"])
def test_faults_of_methods_are_noticed(name):
    places = mutations.method_faults(name, "vit_test")
    assert places
    for place, fault in list(places.items())[:: max(1, len(places) // 3)]:
        assert mutations.method_is_red(name, "vit_test", fault), place
    assert not mutations.method_is_red(name, "vit_test", lambda model: None)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_every_fault_is_noticed(name):
    for kind, places in mutations.faults(name).items():
        missed = [
            place for place, fault in places.items() if not mutations.golden_is_red(name, fault)
        ]
        assert not missed, f"{name}: {kind}"


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_faults_of_exported_graphs_are_noticed(name):
    for package in ("onnxruntime", "onnxscript"):
        pytest.importorskip(package)
    assert mutations.path_is_red(name, "export", mutations.central(name))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", METHODS)
def test_every_fault_of_methods_is_noticed(name):
    for model in mutations.served(name):
        faults = mutations.method_faults(name, model)
        missed = [
            p for p, fault in faults.items() if not mutations.method_is_red(name, model, fault)
        ]
        assert not missed, f"{name} on {model}"


def test_outputs_that_hardly_vary_are_noticed(monkeypatch):
    """Networks whose outputs cannot differ would make all comparisons pass."""
    monkeypatch.setattr(testing, "enliven", lambda model, gain: None)
    testing_network = testing.network("t2t_vit_test")  # as it is initialised
    monkeypatch.setattr(testing, "network", lambda *_, **__: testing_network)
    with pytest.raises(AssertionError, match="spread"):
        testing.check_variation("t2t_vit_test")
