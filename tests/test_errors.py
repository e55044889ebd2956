"""Messages stay messages, whatever goes into them."""

import pytest

from vitreous.catalog.registry import card, cards, create_model
from vitreous.errors import (
    LISTED,
    LONGEST,
    ModelError,
    VitreousError,
    did_you_mean,
    listed,
    shortened,
)


def test_no_name_is_said_twice():
    assert did_you_mean("svn", ["svm", "svm", "svm_spatial"]).count("'svm'") == 1
    assert did_you_mean("zzzzzz", ["b", "a", "b"]) == "Known: a, b."
    for entry in cards():  # slugs that are names of variants, too
        with pytest.raises(ModelError) as caught:
            card(entry.slug + "q")
        named = caught.value.fix.split("'")[1::2]
        assert len(named) == len(set(named)), caught.value.fix


def test_long_lists_are_cut():
    names = [f"n{k}" for k in range(1000)]
    assert listed(names) == f"{', '.join(names[:LISTED])} and {1000 - LISTED} more"
    assert listed(["a", "b", "a"]) == "a, b"
    assert listed(names[:LISTED]) == ", ".join(names[:LISTED])
    assert len(did_you_mean("?", names)) < 500
    with pytest.raises(ModelError) as caught:
        create_model("svm", bands=3, num_classes=2)
    assert len(caught.value.fix) < 1000
    assert "more" in caught.value.fix


def test_a_message_has_an_end():
    error = VitreousError("x" * 90_000, "y" * 90_000)
    assert len(str(error)) < 2 * LONGEST + 100
    assert error.problem.endswith("(88,000 more characters)")
    assert error.args == (error.problem, error.fix)
    assert shortened("short") == "short"
    assert shortened("x" * LONGEST) == "x" * LONGEST
