"""The matrix: every method on every registered architecture's smallest variant, served or refused."""

import pytest

from vitreous import testing
from vitreous.catalog.registry import cards

MODELS = [f"{entry.slug}_test" for entry in cards() if entry.kind == "model"]
METHODS = [name for entry in cards() if entry.kind == "method" for name in entry.variants]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", METHODS)
def test_contract(name, model):
    testing.check_method(name, model)


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", METHODS)
def test_onnx(name, model):
    for package in ("onnxruntime", "onnxscript"):
        pytest.importorskip(package)
    if testing.serves(name, model):
        testing.check_method_onnx(name, model)
