"""Pages of the documentation, run as they stand there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from typer.testing import CliRunner

from vitreous.cli.main import app

DOCS = Path(__file__).resolve().parents[1] / "docs"


def blocks(page):
    return re.findall(r"```(sh|python)\n(.*?)```", (DOCS / page).read_text("utf-8"), re.S)


def run(page):
    """Run a page from top to bottom, its Python in one namespace; return what each block prints."""
    printed, names = [], {}
    for language, text in blocks(page):
        if language == "python":
            lines: list[str] = []
            names["print"] = lambda *words, into=lines: into.append(" ".join(map(str, words)))
            exec(text, names)
            printed.append("\n".join(lines))
            continue
        for line in text.replace("\\\n", " ").splitlines():
            done = CliRunner().invoke(app, shlex.split(line)[1:])
            assert done.exit_code == 0, f"{line}\n{done.output}"
            printed.append(done.output)
    return printed
