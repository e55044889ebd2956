"""Running the scripts that hold a paper's claim up to measurement.

The scripts are no part of the installed package: they belong to a source checkout, beside their results.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

from vitreous.errors import ModelError, VitreousError, did_you_mean

# src/vitreous/catalog/reproduce.py -> the checkout
SCRIPTS = Path(__file__).resolve().parents[3] / "reproductions"


def reproduce(slug: str, quick: bool = False, scripts: Path = SCRIPTS) -> Path:
    """Run ``main(quick=...)`` of a system's reproduction.

    Args:
        slug: the system.
        quick: only check that the script runs; a quick run records nothing.
        scripts: folder of the scripts.

    Returns:
        The file ``results/<slug>.json`` with what was measured.

    Raises:
        ModelError: there is no such reproduction.
        VitreousError: vitreous was installed without its checkout.
    """
    if not scripts.is_dir():
        raise VitreousError(
            "Reproductions need a source checkout; this vitreous is installed without one.",
            "Clone the repository and run 'pip install -e .' there.",
        )
    known = sorted(path.stem for path in scripts.glob("[a-z]*.py"))
    if not re.fullmatch(r"[a-z0-9_]+", slug) or slug not in known:
        raise ModelError(f"There is no reproduction of '{slug}'.", did_you_mean(slug, known))
    _load(scripts / f"{slug}.py").main(quick=quick)
    return scripts / "results" / f"{slug}.json"


def _load(script: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"vitreous_reproduction_{script.stem}", script)
    if spec is None or spec.loader is None:
        raise ModelError(f"{script} cannot be loaded.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for their module
    spec.loader.exec_module(module)
    return module
