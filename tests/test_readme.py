"""README, docs and tooling say what is true: commands run, links lead somewhere, tables are up to date."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import vitreous

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
TESTED = re.compile(r"<!-- tested -->\n```(\w+)\n(.*?)```", re.DOTALL)
SHELL = 'set -e\nvitreous() { "$PYTHON" -m vitreous "$@"; }\n'


def _blocks():
    found = TESTED.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    assert {language for language, _ in found} == {"bash", "python"}
    return found


@pytest.mark.parametrize(("language", "text"), _blocks())
def test_readme_commands_run(language, text, tmp_path):
    words = ["bash", "-c", SHELL + text] if language == "bash" else [sys.executable, "-c", text]
    done = subprocess.run(
        words,
        cwd=tmp_path,
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    if language == "bash":
        products = {path.name for path in (tmp_path / "runs/classify/first").iterdir()}
        assert products >= {"config.json", "split.npz", "metrics.json", "map.tif", "report.html"}
        assert (tmp_path / "again.tif").read_bytes()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if not target.startswith("https://"):
            assert (page.parent / target).is_file(), target


def test_commands_in_the_pages_exist():
    """Every ``vitreous VERB --option`` of the docs is one that the command line knows."""
    from typer.main import get_command

    from vitreous.cli.main import app

    verbs = get_command(app).commands
    for page in PAGES:
        for verb, rest in re.findall(r"vitreous ([a-z]+)([^\n`]*)", _code(page)):
            if (page.name, verb) == ("extending.md", "anomaly"):  # of the package on that page
                continue
            assert verb in verbs, f"{page.name}: {verb}"
            command = verbs[verb]
            if hasattr(command, "commands"):  # such as 'bench runs'
                verb, rest = f"{verb} {rest.split()[0]}", rest.partition(rest.split()[0])[2]
                assert verb.split()[1] in command.commands, f"{page.name}: {verb}"
                command = command.commands[verb.split()[1]]
            known = {
                option
                for param in command.params
                for option in (*param.opts, *param.secondary_opts)
            }
            for option in re.findall(r"(?<!\S)--[a-z][a-z-]*", rest):
                assert option in known | {"--help"}, f"{page.name}: vitreous {verb} {option}"


def _code(page):
    """Return what stands in code on a page: fenced blocks and inline code."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    fenced = re.findall(r"```\w*\n(.*?)```", text, re.DOTALL)
    return "\n".join([*fenced, *re.findall(r"`([^`\n]+)`", text)])


def test_every_dependency_is_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [project["dependencies"], *project["optional-dependencies"].values()]
    names = {re.match(r"[\w.-]+", word)[0].lower() for group in wanted for word in group} - {
        "vitreous"
    }
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").lower()
    pinned = {line.partition("==")[0] for line in pins.splitlines() if "==" in line}
    assert names <= {name.replace("_", "-") for name in pinned} | pinned
    assert "+" not in pins  # a local version such as +cpu exists on few machines


def test_citation_names_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["version"] == vitreous.__version__
    assert citation["license"] == "Apache-2.0"


def test_every_docs_page_is_in_the_navigation():
    """Pages of systems are not: the table of all systems leads to them."""
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    docs = ROOT / "docs"
    every = {str(page.relative_to(docs)) for page in docs.rglob("*.md")}
    assert set(_listed(config["nav"])) == {p for p in every if not p.startswith("systems/")}


def _listed(entries):
    for entry in entries:
        for target in entry.values():
            yield from [target] if isinstance(target, str) else _listed(target)
