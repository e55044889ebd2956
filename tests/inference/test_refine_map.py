"""A map refined by a scene, whatever made it: equal to the run's own refinement, and refused where it cannot be."""

from __future__ import annotations

import numpy as np
import pytest
import rasterio
from rasterio.transform import Affine
from typer.testing import CliRunner

from tiny_scene import NANOMETRES, tiny_classifier, tiny_cube, tiny_labels
from vitreous.cli.main import app
from vitreous.data.pixels import spread_spectra
from vitreous.errors import SceneError
from vitreous.inference.maps import no_georeference_warning
from vitreous.inference.postprocess import RefinedClassifier, fit_projection, make_refinement
from vitreous.inference.predict import predict_scene
from vitreous.inference.refine_map import refine_map
from vitreous.scenes import open_scene, write_scene
from vitreous.scenes.cube import class_palette, make_scene

OPTIONS = {"class_names": ["a", "b", "c"], "class_colors": class_palette(3), "png": False}
PLACE = Affine(10, 0, 500_000, 0, -10, 5_000_000)
FILTER = make_refinement("domain_transform", {"spatial": 2.0})


def scene_at(place=PLACE, labels=None, crs="EPSG:32633"):
    cube = tiny_cube(tiny_labels() if labels is None else labels, noise=0.25)
    cube[:, 3:5, 4] = np.nan
    return make_scene(cube, wavelengths=NANOMETRES, unit="reflectance", crs=crs, transform=place)


@pytest.fixture
def mapped(tmp_path):
    """The probabilities of a map, opened, and its file."""
    scene = scene_at()
    classifier = tiny_classifier(scene)
    path = tmp_path / "p.tif"
    predict_scene(classifier, scene, tmp_path / "plain.tif", probabilities=path, **OPTIONS)
    return classifier, scene, path


def read(path):
    with no_georeference_warning(), rasterio.open(path) as file:
        return file.read()


@pytest.mark.parametrize("window", [None, 7])
def test_it_is_the_refinement_of_the_classifier_itself(tmp_path, mapped, window):
    classifier, scene, path = mapped
    own = tmp_path / "own.tif", tmp_path / "own-p.tif"
    # Reflected at the edge, a scene is not what its probabilities are there: without an edge both are the same.
    guide = fit_projection(spread_spectra(scene, np.arange(8)), 3)
    predict_scene(
        RefinedClassifier(classifier, guide, FILTER), scene, own[0], probabilities=own[1], **OPTIONS
    )
    found = tmp_path / "found.tif", tmp_path / "found-p.tif"
    refine_map(open_scene(path), scene, found[0], FILTER, refined=found[1], window=window)
    expected, probabilities = read(own[1]), read(found[1])
    inner = np.s_[:, FILTER.reach : -FILTER.reach, FILTER.reach : -FILTER.reach]
    np.testing.assert_allclose(probabilities[inner], expected[inner], atol=1e-5)
    assert np.nanmax(np.abs(probabilities - read(path))) > 0.05
    with rasterio.open(found[1]) as file:
        assert file.descriptions == ("a", "b", "c")


def test_a_scene_on_another_grid_guides_by_its_nearest_pixels(tmp_path, mapped):
    _, _, path = mapped
    finer = scene_at(PLACE * Affine.scale(0.5), np.kron(tiny_labels(), np.ones((2, 2), int)))
    refine_map(open_scene(path), finer, tmp_path / "m.tif", FILTER, refined=tmp_path / "r.tif")
    assert np.nanmax(np.abs(read(tmp_path / "r.tif") - read(path))) > 0.05


def test_where_the_scene_shows_nothing_the_map_stays(tmp_path, mapped):
    _, _, path = mapped
    beside = scene_at(PLACE * Affine.translation(14, 0))  # the right half of the map
    refine_map(open_scene(path), beside, tmp_path / "m.tif", FILTER, refined=tmp_path / "r.tif")
    found, given = read(tmp_path / "r.tif"), read(path)
    np.testing.assert_array_equal(found[:, :, :14], given[:, :, :14])
    assert np.nanmax(np.abs(found - given)[:, :, 14:]) > 0.05


def test_a_scene_elsewhere_is_refused(tmp_path, mapped):
    _, _, path = mapped
    far = scene_at(PLACE * Affine.translation(1000, 0))
    with pytest.raises(SceneError, match=r"does not overlap with the map"):
        refine_map(open_scene(path), far, tmp_path / "m.tif", FILTER)
    bare = make_scene(np.ones((3, 10, 10), np.float32))
    with pytest.raises(SceneError, match="The map has 24 x 28 pixels"):
        refine_map(open_scene(path), bare, tmp_path / "m.tif", FILTER)
    assert not (tmp_path / "m.tif").exists()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.full((3, 24, 28), 40, np.uint8), "values from 40 to 40"),
        (np.full((3, 24, 28), 0.7, np.float32), "do not sum to 1"),
        (np.full((1, 24, 28), 1, np.float32), "has one band"),
        (np.full((2, 24, 28), np.nan, np.float32), "no valid pixel"),
    ],
)
def test_what_is_no_probabilities_is_refused(tmp_path, values, words):
    with pytest.raises(SceneError, match=words):
        refine_map(make_scene(values), scene_at(), tmp_path / "m.tif", FILTER)


def test_the_verb_writes_a_map_or_says_why_not(tmp_path, mapped, monkeypatch):
    _, scene, path = mapped
    monkeypatch.chdir(tmp_path)
    write_scene(scene, tmp_path / "scene.tif")
    write_scene(scene_at(PLACE * Affine.translation(1000, 0)), tmp_path / "far.tif")

    nothing = scene_at()
    nothing = nothing.copy(data=np.full(nothing.shape, np.nan, np.float32))
    write_scene(nothing, tmp_path / "nothing.tif")

    def run(*words):
        return CliRunner().invoke(app, ["refine", str(path), *map(str, words)])

    done = run("scene.tif", "-o", "m.tif", "--probabilities", "r.tif")
    assert done.exit_code == 0, done.output
    assert {"m.tif", "m.png", "r.tif"} <= set(done.stdout.split())
    for words, told in (
        (("far.tif", "-o", "n.tif"), "does not overlap"),
        (("scene.tif", "-o", path), "overwrite"),
        (("scene.tif", "-o", "n.tif", "--refine", "box"), "Unknown refinement: box"),
        (("scene.tif", "-o", "n.tif", "--refine", "none"), "changes nothing"),
        (("scene.tif", "-o", "n.tif", "--refine-args", "spatial=-3"), "it must be more than 0"),
        (("scene.tif", "-o", "n.tif", "--refine-args", "spatial=1e9"), "it must be 40 or less"),
        (("nothing.tif", "-o", "n.tif"), "nothing.tif has no valid pixel"),
    ):
        failed = run(*words)
        assert failed.exit_code == 2
        assert told in " ".join(failed.stderr.split())
    assert not (tmp_path / "n.tif").exists()
