"""Without its extras the package imports, and says which extra is missing where one is needed.

The packages of all extras are hidden from a fresh interpreter here; ``make test-bare`` runs the same file in an
environment that never had them.
"""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
IMPORTED = {"PyWavelets": "pywt", "scikit-image": "skimage"}  # where the names differ


def hidden() -> list[str]:
    """Return the import names of all extras' packages."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = [w for extra in extras if extra not in {"dev", "docs"} for w in extras[extra]]
    names = [re.match(r"[\w.-]+", word)[0] for word in wanted]
    return [IMPORTED.get(name, name).replace("-", "_") for name in names]


HIDE = """
import importlib.machinery, sys
HIDDEN = {names!r}
find = importlib.machinery.PathFinder.find_spec
def visible(name, path=None, target=None):
    return None if name.partition(".")[0] in HIDDEN else find(name, path, target)
importlib.machinery.PathFinder.find_spec = visible
"""


def run_bare(code: str) -> "subprocess.CompletedProcess[str]":
    """Run code in a fresh interpreter that has no extra."""
    return subprocess.run(
        [sys.executable, "-c", HIDE.format(names=hidden()) + code],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


def test_every_module_imports():
    done = run_bare("""
import importlib, json, pkgutil, vitreous
names = [m.name for m in pkgutil.walk_packages(vitreous.__path__, "vitreous.")]
failed = {}
for name in names:
    if name != "vitreous.__main__":
        try:
            importlib.import_module(name)
        except ImportError as error:
            failed[name] = str(error)
print(json.dumps([len(names), failed, sorted(set(HIDDEN) & sys.modules.keys())]))
""")
    assert done.returncode == 0, done.stderr
    count, failed, loaded = json.loads(done.stdout.splitlines()[-1])
    assert count > 100
    assert failed == {}
    assert loaded == []


def test_a_network_is_built_and_run():
    done = run_bare("""
import torch, vitreous
model = vitreous.create_model("vit_test", bands=4, num_classes=3, image_size=15).eval()
assert model(torch.zeros(2, 4, 15, 15)).shape == (2, 3)
try:
    import onnxruntime
except ModuleNotFoundError:
    print("hidden")
""")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["hidden"]
