"""The page about mapping fields with few labels runs as it stands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vitreous.cli.main import app

PAGE = Path(__file__).resolve().parents[2] / "docs" / "map-fields.md"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_fields_are_mapped_as_the_page_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    printed: list[str] = []
    names = {"print": lambda *words: printed.append(" ".join(map(str, words)))}
    for language, text in re.findall(r"```(sh|python)\n(.*?)```", PAGE.read_text("utf-8"), re.S):
        if language == "python":
            exec(text, names)
            continue
        done = CliRunner().invoke(app, shlex.split(text.replace("\\\n", " "))[1:])
        assert done.exit_code == 0, done.output
    assert printed[0] == "205 labelled pixels"
    right = re.fullmatch(r"(\d+)% of 10044 pixels are right", printed[1])
    assert right and int(right[1]) > 50, printed
    for product in ("report.html", "map.tif", "metrics.json"):
        assert Path("runs/classify/fields", product).is_file()
