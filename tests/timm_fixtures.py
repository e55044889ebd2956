"""What timm's networks made of random weights, and the names and shapes of its full-size ones."""

import json

from fixtures_reader import FOLDER, load_fixture


def timm_fixture(name):
    """Return a fixture of timm, e.g. ``swin``."""
    return load_fixture(f"timm/{name}")


def timm_layouts():
    """Return names and shapes of timm's full-size networks."""
    return json.loads((FOLDER / "timm" / "layouts.json").read_text(encoding="utf-8"))["layouts"]
