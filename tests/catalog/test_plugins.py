"""Other packages' systems, methods, readers and tasks: found, checked and used like ours, never in the way of ours."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import vitreous
from extras_package import PAGE, files, install
from tiny_scene import tiny_cube, tiny_labels, write_scene

SOURCE = Path(vitreous.__file__).parents[1]


def python(code: str, *places: Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter that finds packages in ``places``."""
    path = os.pathsep.join(map(str, (*places, SOURCE, Path(__file__).parents[1])))
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path, "COLUMNS": "200", "NO_COLOR": "1"},
        timeout=120,
    )


def command(*words: object) -> str:
    """Return code that runs a command and then says which modules of the package were imported."""
    return f"""
import sys
sys.argv = ["vitreous", *{[str(word) for word in words]!r}]
from vitreous.cli.main import run
try:
    run()
finally:
    print("IMPORTED", sorted(m for m in sys.modules if m.startswith("spectral_extras")))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    return install(tmp_path_factory.mktemp("site"))


def test_the_page_has_every_file_that_its_entry_points_name():
    named = re.findall(r'= "(spectral_extras\.\w+)"', files()["pyproject.toml"])
    assert {f"{name.replace('.', '/')}.py" for name in named} == set(files()) - {"pyproject.toml"}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--help"], "Find pixels that are unlike the rest of a scene."),
        (["systems", "bandmix"], "A spectral mixing layer"),
        (["systems"], "anomaly detector|bandmix_test"),
        (["methods", "channel*"], "adapt.*channel_scale"),
        (["doctor"], "spectral-extras.*bandmix"),
    ],
)
def test_nothing_is_imported_to_list_what_there_is(installed, words, told):
    done = python(command(*words), installed)
    assert re.search(told, done.stdout, re.DOTALL), done.stdout + done.stderr
    assert "IMPORTED []" in done.stdout
    assert "Warning" not in done.stderr


def test_the_conformance_checks_run_on_them(installed):
    code = "\n".join(
        text
        for text in re.findall(
            r"```python\n(from vitreous\.testing.*?)```", PAGE.read_text(), re.DOTALL
        )
    )
    assert code.count("check_") == 4
    more = "check_method('channel_scale', 'vit_test'); check_method('channel_scale', 'efficientvit_test'); print('checked')"
    done = python(code + more, installed)
    assert "checked" in done.stdout, done.stderr


def test_the_model_is_trained_mapped_and_adapted(installed, tmp_path):
    places = write_scene(tmp_path)
    done = python(
        command(
            "train", "--scene", places["scene"], "--labels", places["labels"], "--model", "bandmix_test",
            "--patch-size", 3, "--components", 4, "--epochs", 2, "--split", "random", "--baselines", "",
            "--no-report", "--name", "run", "--runs", tmp_path / "runs",
        ),
        installed,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    code = f"""
import vitreous
run = vitreous.load_run({str(tmp_path / "runs" / "classify" / "run")!r})
assert type(run.classifier.net).__name__ == "BandMix", run
changed, report = vitreous.apply(run.classifier.net, "channel_scale", start=1.0)
assert report.rows == [{{"layer": "adapter", "weights added": 8}}]
print(vitreous.evaluate(run.path)["systems"][0]["test"]["oa"] > 0.5)
"""
    done = python(code, installed)
    assert done.stdout.strip() == "True", done.stderr


def test_without_the_package_its_runs_say_what_is_missing(installed, tmp_path):
    write_scene(tmp_path)
    done = python(
        command(
            "anomaly", "--scene", tmp_path / "scene.npy", "--runs", tmp_path / "runs", "--name", "a"
        ),
        installed,
    )
    assert done.returncode == 0, done.stderr
    done = python(command("predict", tmp_path / "runs" / "anomaly" / "a", tmp_path / "scene.npy"))
    assert done.returncode == 2
    assert "is a 'anomaly' run, a task that is not installed" in done.stderr.replace("\n", " ")


def test_the_reader_opens_its_files_and_only_those(installed, tmp_path):
    cube = tiny_cube(tiny_labels())
    lines = ["# pixels"]
    for row in range(24):
        lines += [",".join(map(str, (row, column, *cube[:, row, column]))) for column in range(28)]
    (tmp_path / "field.pixels.txt").write_text("\n".join(lines))
    (tmp_path / "other.pixels.txt").write_text("1 2 3")
    code = f"""
import numpy as np, vitreous
scene = vitreous.open_scene({str(tmp_path / "field.pixels.txt")!r}, delimiter=",", unit="reflectance")
assert scene.shape == (8, 24, 28) and scene.attrs["unit"] == "reflectance"
try:
    vitreous.open_scene({str(tmp_path / "other.pixels.txt")!r})
except vitreous.VitreousError as error:
    print(error.problem)
"""
    done = python(code, installed)
    assert "has an unknown format" in done.stdout, done.stderr


def test_the_task_is_trained_applied_and_loaded(installed, tmp_path):
    write_scene(tmp_path)
    scene = tmp_path / "scene.npy"
    done = python(
        command("anomaly", "--scene", scene, "--runs", tmp_path / "runs", "--name", "a"), installed
    )
    assert done.returncode == 0, done.stderr
    assert "fitted in" in done.stdout
    run = tmp_path / "runs" / "anomaly" / "a"
    done = python(command("predict", run, scene, "-o", tmp_path / "scores.tif"), installed)
    assert done.returncode == 0, done.stderr
    code = f"""
import numpy as np, vitreous
scores = vitreous.open_scene({str(tmp_path / "scores.tif")!r}).values[0]
values = vitreous.open_scene({str(scene)!r}).values.reshape(8, -1).T
apart = values - values.mean(0)
expected = (apart @ np.linalg.inv(np.cov(values.T) + 1e-6 * np.eye(8)) * apart).sum(1)
np.testing.assert_allclose(scores.ravel(), expected, rtol=0.02)
assert vitreous.load_run({str(run)!r}).recipe.name == "a"
"""
    done = python(code, installed)
    assert done.returncode == 0, done.stderr
    codes = []
    for words, told in (
        (("predict", run, scene, "--window", 3), "--window does not apply"),
        (("evaluate", run), "cannot be evaluated"),
        (("anomaly", "--model", "svm"), "which does not find anomalies"),
        (("train", "--model", "rx"), "'rx' is an anomaly detector, which does not classify"),
    ):
        code = f"""
from typer.testing import CliRunner
from vitreous.cli.main import app
done = CliRunner(env={{"COLUMNS": "999"}}).invoke(app, {[str(word) for word in words]!r})
assert done.exit_code == 2, done
print(done.stderr)
"""
        codes.append((code, told))
    done = python("".join(code for code, _ in codes), installed, cwd=tmp_path)
    for _, told in codes:
        assert told in done.stdout.replace("\n", " "), done.stderr


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"bandmix": None}, "no Python source of the module spectral_extras.bandmix"),
        ({"bandmix": "import nothing ("}, "cannot be read"),
        ({"bandmix": "x = 1\n"}, "has no literal CARD = Card"),
        ({"bandmix": "CARD = Card(slug=name())\n"}, "cannot be read"),
        ({"bandmix": "CARD = Card(slug='bandmix')\n"}, "cannot be read"),
        ({"bandmix": "CARD = Card(slug='b', title='', kind='model', summary='', when='')"}, "named after it"),
        ({"bandmix": "CARD = Card(slug='bandmix', title='', kind='toy', summary='', when='')"}, "unknown kind: toy"),
        (
            {"bandmix": "CARD = Card(slug='bandmix', title='', kind='model', summary='', when='', variants={'vit_tiny': {}})"},
            "there is a system named 'vit_tiny' already",
        ),
        ({"columns": "READER = 3"}, "has no literal READER"),
        ({"anomaly": files()["spectral_extras/anomaly.py"].replace('"anomaly",', '"restore",')}, "a task or verb 'restore' already"),
        ({"anomaly": None}, "no Python source of the module spectral_extras.anomaly"),
    ],
)  # fmt: skip
def test_a_broken_package_is_one_warning_per_fault_and_nothing_else(tmp_path, changes, told):
    place = install(tmp_path / "site", **changes)
    code = """
from typer.testing import CliRunner
from vitreous.catalog.readers import readers
from vitreous.cli.main import app
runner = CliRunner(env={"COLUMNS": "999"})
for words in (["systems", "vit"], ["--help"], ["systems", "vit"]):
    done = runner.invoke(app, words)
    assert done.exit_code == 0, done
    print("vit_tiny" in done.stdout, done.stderr)
readers()
"""
    done = python(code, place)
    assert done.returncode == 0, done.stderr
    said = (done.stdout + done.stderr).replace("\n", " ")
    assert "True" in said
    entries = 2 if changes == {"anomaly": None} else 1  # a kind and a task
    assert said.count(told) == entries, said
    assert "The package 'spectral-extras' provides" in said


def test_a_package_that_cannot_be_imported_is_named(tmp_path):
    broken = files()["spectral_extras/bandmix.py"].replace(
        "from torch import nn", "import no_such_thing"
    )
    place = install(tmp_path / "site", bandmix=broken)
    done = python(command("train", "--model", "bandmix_test", "--runs", tmp_path / "runs"), place)
    assert done.returncode == 2
    said = done.stderr.replace("\n", " ")
    assert "The package 'spectral_extras' cannot be used" in said
    assert "no_such_thing" in said
    assert not (tmp_path / "runs").exists()


def test_a_folder_of_systems(tmp_path):
    place = install(tmp_path / "site")
    folder = place / "spectral_extras" / "many"
    (folder / "adapt").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    for slug, where in (("bandmix", folder), ("channel_scale", folder / "adapt")):
        text = (
            files()[f"spectral_extras/{slug}.py"]
            .replace(slug, f"other_{slug}")
            .replace('    stage="adapt",\n', "")
        )
        (where / f"other_{slug}.py").write_text(text)
    info = next(place.glob("*.dist-info")) / "entry_points.txt"
    info.write_text("[vitreous.systems]\nmany = spectral_extras.many\n")
    code = "from vitreous.catalog.registry import *; print(stage('other_channel_scale'), list_models('*bandmix*'), package_of('other_bandmix'))"
    done = python(code, place)
    assert done.stdout.strip() == "adapt ['other_bandmix', 'other_bandmix_test'] spectral-extras", (
        done.stderr
    )
