"""The page about mapping fields with few labels runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from page_runner import run


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_fields_are_mapped_as_the_page_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    printed = run("map-fields.md")
    assert printed[0] == "205 labelled pixels"
    right = re.fullmatch(r"(\d+)% of 10044 pixels are right", printed[-1])
    assert right and int(right[1]) > 50, printed
    for product in ("report.html", "map.tif", "metrics.json"):
        assert Path("runs/classify/fields", product).is_file()
