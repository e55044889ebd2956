"""What timm's networks made of random weights, and the names and shapes of its full-size ones."""

import json
import os
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).resolve().parent
FOLDERS = (
    HERE / "fixtures" / "timm",
    Path(os.environ.get("VITREOUS_SHARED", HERE.parents[1] / "shared")) / "parity" / "timm",
)
FOLDER = next((folder for folder in FOLDERS if folder.is_dir()), None)


def timm_fixture(name):
    """Return a fixture of timm, e.g. ``swin``."""
    if FOLDER is None:
        pytest.skip("the numbers of timm are not here (VITREOUS_SHARED names their folder)")
    if (FOLDER / f"{name}.pt").exists():
        return torch.load(FOLDER / f"{name}.pt", weights_only=True)
    from fixtures_reader import load_fixture

    return load_fixture(f"timm/{name}")


def timm_layouts():
    """Return names and shapes of timm's full-size networks."""
    if FOLDER is None:
        pytest.skip("the layouts of timm are not here (VITREOUS_SHARED names their folder)")
    return json.loads((FOLDER / "layouts.json").read_text(encoding="utf-8"))["layouts"]
