"""The matrix: every registered architecture's smallest variant through every check."""

import json
import sys
from pathlib import Path

import pytest

from vitreous import testing
from vitreous.catalog.registry import cards, kind_of, list_models

NETWORKS = [f"{entry.slug}_test" for entry in cards() if kind_of(entry.slug).gradient]
NAMES = [*NETWORKS, *list_models(kind="filter")]
GOLDEN = Path(__file__).with_name("golden")


@pytest.mark.parametrize(
    ("name", "check"),
    [
        pytest.param(name, check, id=f"{name}-{check.__name__}")
        for name in NAMES
        for check in testing.checks_of(name)
    ],
)
def test_contract(name, check):
    check(name)


@pytest.mark.parametrize("name", NETWORKS)
def test_golden_values(name):
    """After a change that is meant: python tests/models/test_conformance.py SLUG (or without, all)."""
    testing.check_golden(name, json.loads(golden_file(name).read_text()))


def golden_file(name):
    return GOLDEN / f"{name.removesuffix('_test')}.json"


def test_golden_values_are_those_of_systems():
    assert {path.stem for path in GOLDEN.iterdir()} == {n[: -len("_test")] for n in NETWORKS}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_compiled(name):
    testing.check_compiled(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_onnx(name):
    for package in ("onnxruntime", "onnxscript"):
        pytest.importorskip(package)
    testing.check_onnx(name)


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for name in NETWORKS:
        if not sys.argv[1:] or name.removesuffix("_test") in sys.argv[1:]:
            lines = [
                f" {json.dumps(what)}: {json.dumps(rows)}"
                for what, rows in testing.golden(name).items()
            ]
            golden_file(name).write_text("{\n" + ",\n".join(lines) + "\n}\n")
