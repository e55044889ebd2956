"""What all tests share."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

ROOT = Path(__file__).resolve().parents[1]

# Set before numpy, torch or matplotlib are imported anywhere: small arrays are slower on many threads, and
# the numbers of a test must not depend on how many cores there are.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

# Shapes in annotations hold: calls inside the rooms that compute with tensors are checked against them.
# VITREOUS_SHAPES=0 leaves that out. Only tests do this: it is nothing that a user pays for.
SHAPED = ["vitreous.layers", "vitreous.models", "vitreous.methods"]
if os.environ.get("VITREOUS_SHAPES", "1") != "0":
    install_import_hook(SHAPED, "shape_checks.check_shapes")

Cli = Callable[..., "subprocess.CompletedProcess[str]"]


def _shared(folder: str) -> Path:
    path = Path(os.environ.get("VITREOUS_SHARED", ROOT.parent / "shared")) / folder
    if not path.is_dir():
        pytest.skip(f"the shared {folder} are not here (VITREOUS_SHARED names their folder)")
    return path


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real scenes that may be tested with but not shipped."""
    return _shared("data")


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """Run the command line as a user does, in an empty folder."""

    def run(*words: object, timeout: float = 120) -> "subprocess.CompletedProcess[str]":
        # A wide terminal keeps messages on one line; without a colour variable of the caller's they are plain.
        plain = {name: value for name, value in os.environ.items() if name not in _COLOUR}
        return subprocess.run(
            [sys.executable, "-m", "vitreous", *map(str, words)],
            cwd=tmp_path,
            env={**plain, "COLUMNS": "160", "NO_COLOR": "1", "VITREOUS_DEBUG": ""},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return run


_COLOUR = {
    "FORCE_COLOR",
    "CLICOLOR_FORCE",
    "PY_COLORS",
    "TTY_COMPATIBLE",
    "TTY_INTERACTIVE",
    "_TYPER_FORCE_DISABLE_TERMINAL",
    "GITHUB_ACTIONS",
}
