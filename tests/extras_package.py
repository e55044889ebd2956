"""The package that docs/extending.md builds, installed into a folder."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"
FILE = re.compile(r"^`([\w/.]+)`\n\n```\w+\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def files() -> dict[str, str]:
    """Return the files of the page, by their names."""
    return dict(FILE.findall(PAGE.read_text(encoding="utf-8")))


def install(folder: Path, **changes: str | None) -> Path:
    """Install the package as pip would: its modules, and beside them the metadata.

    Args:
        folder: stands in for site-packages; put it on ``sys.path``.
        changes: other contents of modules by their names; None leaves one out.
    """
    project = tomllib.loads(files()["pyproject.toml"])["project"]
    (folder / "spectral_extras").mkdir(parents=True)
    (folder / "spectral_extras" / "__init__.py").write_text("")
    for name, text in files().items():
        changed = changes.get(Path(name).stem, text)
        if name.endswith(".py") and changed is not None:
            (folder / name).write_text(changed, encoding="utf-8")
    info = folder / "spectral_extras-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    lines = []
    for group, entries in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in entries.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return folder
