"""Runs that refine and calibrate: what is measured, kept, overridden, and exported; and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import rasterio
from typer.testing import CliRunner

from tiny_scene import tiny_cube, tiny_labels, tiny_recipe, tiny_scene, write_scene
from vitreous.cli.main import app
from vitreous.data.blocks import TEST
from vitreous.errors import CheckpointError, ConfigError
from vitreous.inference.maps import no_georeference_warning
from vitreous.inference.postprocess import at_temperature
from vitreous.tasks import classify, dispatch
from vitreous.tasks.division import recipe_receptive_size
from vitreous.tasks.finish import fit_temperature, reliability
from vitreous.tasks.runs import load_run

SPATIAL = {"spatial": 2.0}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    cube = tiny_cube(tiny_labels(), noise=0.25)
    return write_scene(folder, cube=cube)


def trained(data, folder, **changes):
    settings = {"train_fraction": 0.5, "val_fraction": 0.4, "map": True, **changes}
    return classify.train(tiny_recipe(folder, **data, **settings), show=False)


@pytest.fixture(scope="module")
def refined(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("refined")
    return trained(data, folder, refine="domain_transform", refine_args=SPATIAL)


@pytest.fixture(scope="module")
def plain(data, tmp_path_factory):
    return trained(data, tmp_path_factory.mktemp("plain"))


def metrics(run):
    return json.loads((run / "metrics.json").read_text())


def read(path):
    with no_georeference_warning(), rasterio.open(path) as file:
        return file.read(), file.descriptions


def test_metrics_are_those_of_the_refined_map_and_unrefined_ones_stand_beside(refined, plain):
    own, bare = metrics(refined)["systems"]
    assert own["refine"] == {
        "method": "domain_transform",
        **SPATIAL,
        "range": 6.0,
        "iterations": 3,
        "reach": 4,
    }
    assert bare["name"] == "vit_test (unrefined)"
    assert own["test"]["oa"] > bare["test"]["oa"]
    assert metrics(plain)["systems"][0]["refine"] is None
    # The same weights: a refinement changes nothing of the training. But its reach widens what a prediction sees.
    known = load_run(refined).split.roles
    codes = read(refined / "map.tif")[0][0][known == TEST]
    truth = tiny_labels()[known == TEST]
    assert own["test"]["oa"] == pytest.approx((codes == truth).mean())
    assert metrics(refined)["split"]["patch_size"] == metrics(plain)["split"]["patch_size"] + 8


def test_evaluate_takes_another_refinement(refined):
    known = metrics(refined)
    again = dispatch.evaluate(refined)
    assert again["systems"][0]["test"] == known["systems"][0]["test"]
    assert again["split"] == known["split"]
    bare = dispatch.evaluate(refined, refine="none")
    assert bare["systems"][0]["test"]["oa"] == known["systems"][1]["test"]["oa"]
    assert bare["split"]["patch_size"] == known["split"]["patch_size"] - 8
    assert bare["split"]["leakage"] <= known["split"]["leakage"]
    other = dispatch.evaluate(refined, refine_args={"spatial": 6.0})
    assert other["systems"][0]["refine"]["spatial"] == 6.0


def test_predict_refines_as_the_run_or_as_asked(refined, plain, tmp_path):
    scene = tiny_scene(tiny_cube(tiny_labels(), noise=0.25))
    maps = {}
    for name, run, options in (
        ("own", refined, {}),
        ("bare", refined, {"refine": "none"}),
        ("guided", refined, {"refine": "guided", "refine_args": {"radius": 2}}),
        ("later", plain, {"refine": "domain_transform", "refine_args": SPATIAL}),
    ):
        dispatch.predict(run, scene, tmp_path / f"{name}.tif", window=9, **options)
        maps[name] = read(tmp_path / f"{name}.tif")[0]
    np.testing.assert_array_equal(maps["own"], read(refined / "map.tif")[0])
    right = {name: (codes[0] == tiny_labels()).mean() for name, codes in maps.items()}
    assert right["own"] > right["bare"]
    assert right["guided"] > right["bare"]
    assert right["later"] > (read(plain / "map.tif")[0][0] == tiny_labels()).mean()


def test_exports_refine_behind_their_graphs(refined, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    dispatch.export(refined, "onnx", tmp_path / "export")
    scene = tiny_scene(tiny_cube(tiny_labels(), noise=0.25))
    dispatch.predict(tmp_path / "export", scene, tmp_path / "own.tif", window=11)
    np.testing.assert_array_equal(read(tmp_path / "own.tif")[0], read(refined / "map.tif")[0])
    dispatch.predict(tmp_path / "export", scene, tmp_path / "bare.tif", refine="none")
    dispatch.predict(refined, scene, tmp_path / "run.tif", refine="none")
    np.testing.assert_array_equal(read(tmp_path / "bare.tif")[0], read(tmp_path / "run.tif")[0])
    description = tmp_path / "export" / "export.json"
    said = json.loads(description.read_text())
    said["postprocess"]["guide"]["mean"] = said["postprocess"]["guide"]["mean"][:-1]
    description.write_text(json.dumps(said))
    with pytest.raises(CheckpointError, match="damaged"):
        dispatch.predict(tmp_path / "export", scene, tmp_path / "none.tif")


def test_auto_asks_the_validation_pixels(data, tmp_path):
    run = trained(data, tmp_path, refine="auto", refine_args=SPATIAL, report=True)
    assert load_run(run).postprocess.refine.spatial == 2.0  # the scene is noisy: smoothing helps
    words = (run / "report.html").read_text()
    assert "smoothed within the edges of the scene" in words
    assert "Calibration" in words
    assert "Area estimates" in words


@pytest.mark.parametrize("model", ["lda", "svm"])
def test_auto_asks_folds_where_an_estimator_trains_on_all(data, tmp_path, model):
    run = trained(data, tmp_path, refine="auto", refine_args=SPATIAL, model=model, map=False)
    assert load_run(run).postprocess.refine.spatial == 2.0
    told = metrics(run)["systems"]
    assert told[0]["calibration"]["temperature"] is not None
    assert told[1]["name"] == f"{model} (unrefined)"
    assert told[0]["test"]["oa"] > told[1]["test"]["oa"]
    assert not (run / "candidates").exists()


@pytest.mark.parametrize("settings", [{"val_fraction": 0.0}, {"refit": True}])
def test_auto_with_nothing_to_choose_by_says_so_and_needs_no_buffer(data, tmp_path, settings):
    own = {"refine": "auto", "map": False, "epochs": 1, **settings}
    with pytest.warns(UserWarning, match="Nothing could choose a refinement"):
        run = trained(data, tmp_path, **own)
    assert load_run(run).postprocess.refine is None
    sizes = [
        recipe_receptive_size(tiny_recipe(tmp_path, **{**own, "refine": refine}))
        for refine in ("auto", "none")
    ]
    assert sizes[0] == sizes[1] == metrics(run)["split"]["patch_size"]


def test_uncertainty_and_novelty_stand_beside_the_map(refined, tmp_path):
    cube = tiny_cube(tiny_labels(), noise=0.25)
    cube[:, :6, :7] *= np.linspace(3, 0.2, 8)[:, None, None].astype(np.float32)  # a new material
    cube[:, 20, 20] = np.nan
    files = {name: tmp_path / f"{name}.tif" for name in ("uncertainty", "novelty", "probabilities")}
    done = dispatch.predict(refined, tiny_scene(cube), tmp_path / "map.tif", window=7, **files)
    assert set(files.values()) <= set(done.paths)
    unsure, names = read(files["uncertainty"])
    new, _ = read(files["novelty"])
    probabilities, _ = read(files["probabilities"])
    assert names == ("entropy", "1 - maximum probability")
    np.testing.assert_allclose(unsure[1], 1 - probabilities.max(axis=0), atol=1e-6)
    entropy = -(probabilities * np.log(probabilities)).sum(axis=0) / np.log(3)
    np.testing.assert_allclose(unsure[0], entropy, atol=1e-4)
    for layer in (*unsure, new[0]):
        assert (np.isnan(layer)).nonzero() == (20, 20)
    assert np.nanmedian(new[0][:6, :7]) == 100
    assert np.nanmedian(new[0][12:]) < 95


def test_a_temperature_is_kept_and_applied(refined):
    after = load_run(refined).postprocess
    row = metrics(refined)["systems"][0]["calibration"]
    assert row["temperature"] == after.temperature
    assert row["test"]["pixels"] > 0
    assert row["ece_before"] >= 0


def test_fitted_temperatures_undo_overconfidence():
    rng = np.random.default_rng(0)
    honest = rng.dirichlet(np.ones(4), 4000)
    truth = (rng.random(4000)[:, None] > honest.cumsum(axis=1)).sum(axis=1)
    assert fit_temperature(honest, truth) == pytest.approx(1, abs=0.05)
    for temperature in (0.4, 2.5):
        spoilt = at_temperature(honest.T, temperature).T
        found = fit_temperature(spoilt, truth)
        assert found == pytest.approx(1 / temperature, rel=0.05)
        mended = reliability(at_temperature(spoilt.T, found).T, truth)
        assert mended["ece"] < 0.03 < reliability(spoilt, truth)["ece"]
    assert fit_temperature(honest[:0], truth[:0]) is None


def test_reliability_counts_every_pixel_once():
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.45, 0.55], [1.0, 0.0]])
    found = reliability(probabilities, np.array([0, 1, 1, 0]))
    assert sum(part["pixels"] for part in found["bins"]) == found["pixels"] == 4
    assert found["ece"] == pytest.approx((0.1 + 0.8 + 0.45) / 4)
    sure = found["bins"][-1]
    assert (sure["pixels"], sure["accuracy"]) == (1, 1.0)


def test_bad_settings_are_refused_before_anything_is_made(data, tmp_path):
    with pytest.raises(ConfigError, match="spatial"):
        trained(data, tmp_path, refine="domain_transform", refine_args={"spatial": -1})
    with pytest.raises(ConfigError, match="refine"):
        trained(data, tmp_path, refine_args={"spatial": 1})
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--refine", "guidance"], "Did you mean 'guided'"),
        (["--refine", "guided", "--refine-args", "radius=-2"], "radius"),
        (["--refine", "potts", "--refine-args", "radius=2"], "no setting 'radius'"),
        (["--refine", "none", "--refine-args", "radius=2"], "no setting 'radius'"),
        (["--uncertainty", "map.tif"], "Two products"),
        (["--uncertainty", "u.tif", "--novelty", "u.tif"], "Two products"),
        (["--novelty", "n.png"], "does not end in .tif"),
    ],
)
def test_predict_says_what_is_wrong(data, refined, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    line = ["predict", str(refined), data["scene"], "-o", "map.tif", *arguments]
    result = CliRunner().invoke(app, line)
    assert result.exit_code == 2
    assert words in " ".join(result.stderr.split())
    assert not list(tmp_path.glob("*.tif"))
