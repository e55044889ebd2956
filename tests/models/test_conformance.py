"""The matrix: every registered architecture's smallest variant through every check."""

import json
from pathlib import Path

import pytest

from vitreous import testing
from vitreous.catalog.registry import cards

MODELS = [f"{entry.slug}_test" for entry in cards() if entry.kind == "model"]
RESTORERS = [f"{entry.slug}_test" for entry in cards() if entry.kind == "restorer"]
GOLDEN = Path(__file__).with_name("golden.json")


@pytest.mark.parametrize("check", testing.CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", MODELS)
def test_contract(name, check):
    check(name)


@pytest.mark.parametrize("check", testing.RESTORER_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", RESTORERS)
def test_restorer_contract(name, check):
    check(name)


@pytest.mark.parametrize("name", MODELS + RESTORERS)
def test_golden_scores(name):
    """After a change that is meant: python tests/models/test_conformance.py."""
    known = json.loads(GOLDEN.read_text())
    assert testing.golden(name) == pytest.approx(known[name], rel=1e-3, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS + RESTORERS)
def test_compiled(name):
    testing.check_compiled(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS + RESTORERS)
def test_onnx(name):
    for package in ("onnxruntime", "onnxscript"):
        pytest.importorskip(package)
    testing.check_onnx(name)


if __name__ == "__main__":
    lines = [
        f"{json.dumps(name)}: {json.dumps(testing.golden(name))}"
        for name in sorted(MODELS + RESTORERS)
    ]
    GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n")
