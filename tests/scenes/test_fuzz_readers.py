"""Damaged and hostile files of every kind: they are answered with a scene or with a message, and nothing else.

``fuzzing.py`` says how; ``benchmarks/fuzz.py`` tries many more.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest

import fuzzing

EXAMPLES = 12
WELL = {fuzzing.OPENED, fuzzing.WORDS, fuzzing.APART}
KINDS = fuzzing.kinds()

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="the memory limit needs Linux"
)


@pytest.fixture(scope="module")
def outcomes() -> dict[str, list[fuzzing.Outcome]]:
    found = defaultdict(list)
    for outcome in fuzzing.survey([(name, 0, EXAMPLES) for name in KINDS]):
        found[outcome.kind].append(outcome)
    return found


@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", KINDS)
def test_damaged_files_give_a_scene_or_a_message(
    name: str, outcomes: dict[str, list[fuzzing.Outcome]]
) -> None:
    assert len(outcomes[name]) == EXAMPLES
    assert [outcome for outcome in outcomes[name] if outcome.what not in WELL] == []


def test_faults_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutants of a kind whose reader crashes, hangs, takes all memory or raises what it likes."""
    monkeypatch.setenv("FUZZING_FAULTS", "1")
    monkeypatch.setenv("FUZZING_SECONDS", "1")
    found = list(fuzzing.survey([("faults", 0, 6)]))
    assert [outcome.number for outcome in found] == list(range(6))
    assert [outcome.what for outcome in found] == [
        fuzzing.OPENED,
        fuzzing.WORDS,
        fuzzing.EXCEPTION,
        fuzzing.CRASH,
        fuzzing.HANG,
        fuzzing.MEMORY,
    ]
    assert "ZeroDivisionError" in found[2].details


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_ten_thousand_damaged_files_give_a_scene_or_a_message() -> None:
    each = -(-10_000 // len(KINDS))
    found = list(fuzzing.survey([(name, 0, each) for name in KINDS]))
    assert len(found) == each * len(KINDS) >= 10_000
    assert [outcome for outcome in found if outcome.what not in WELL] == []
