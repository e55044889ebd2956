"""Running the scripts that test a paper's claim in miniature.

The scripts are not part of the installed package: they belong to a source checkout, as do their results.
"""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from vitreous.errors import ModelError, VitreousError, did_you_mean

# src/vitreous/catalog/reproduce.py -> the checkout
SCRIPTS = Path(__file__).resolve().parents[3] / "reproductions"


def reproduce(
    slug: str,
    quick: bool = False,
    full: bool = False,
    data: Path | None = None,
    scripts: Path = SCRIPTS,
) -> Path:
    """Run ``main`` of a system's reproduction.

    Args:
        slug: the system.
        quick: only check that the script runs.
        full: take all seeds, however long that takes, and record the result.
        data: folder of real images to use in place of the built-in data, where the reproduction takes one.
        scripts: folder of the scripts.

    Returns:
        The file where a full reproduction records what it measured.

    Raises:
        ModelError: there is no such reproduction, or it takes no images.
        VitreousError: vitreous was installed without its checkout, or ``data`` is not a folder.
    """
    if quick and full:
        raise VitreousError("--quick and --full exclude each other.", "Give one of them.")
    if not scripts.is_dir():
        raise VitreousError(
            "Reproductions need a source checkout; this vitreous was installed without one.",
            "Clone the repository and run 'pip install -e .' there.",
        )
    known = sorted(path.stem for path in scripts.glob("[a-z]*.py"))
    if not re.fullmatch(r"[a-z0-9_]+", slug) or slug not in known:
        raise ModelError(f"No such reproduction: {slug}.", did_you_mean(slug, known))
    if data is not None and not data.is_dir():
        raise VitreousError(
            f"{data} is not a folder of images.",
            "Give a folder with one subfolder per class, or with train/ and test/ above those.",
        )
    main = _load(scripts / f"{slug}.py").main
    given: dict[str, Any] = {"quick": quick}
    if full:
        given["full"] = True
    if data is not None:
        given["data"] = data.resolve()
    if unknown := given.keys() - inspect.signature(main).parameters:
        option = f"--{unknown.pop()}"
        raise ModelError(f"The reproduction of '{slug}' has no {option}.", f"Omit {option}.")
    main(**given)
    name = slug if data is None else f"{slug}.{data.resolve().name}"
    return scripts / "results" / f"{name}.json"


def _load(script: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"vitreous_reproduction_{script.stem}", script)
    if spec is None or spec.loader is None:
        raise ModelError(f"{script} cannot be loaded.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for their module
    spec.loader.exec_module(module)
    return module
