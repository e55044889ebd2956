"""Scene prediction: identities, edges, bad input, memory, and what a kill leaves behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import rasterio
from box_classifier import BoxClassifier, endless_scene, expected_map, random_scene
from hypothesis import given, settings
from hypothesis import strategies as st

from vitreous.errors import ConfigError, ModelError, SceneError, VitreousError
from vitreous.inference.maps import no_georeference_warning
from vitreous.inference.predict import predict_scene
from vitreous.inference.windows import Window, plan_windows, window_side
from vitreous.scenes.cube import make_scene, read_with_context

HERE = Path(__file__).parent


def stored(path):
    with no_georeference_warning(), rasterio.open(path) as dataset:
        return dataset.read()


def predict(classifier, scene, out, **options):
    return predict_scene(classifier, scene, out, png=False, **classifier.options, **options)


@settings(deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 40))
def test_windows_cover_every_pixel_once(height, width, side):
    count = np.zeros((height, width), int)
    for window in plan_windows(height, width, side):
        assert max(window.height, window.width) <= side
        count[
            window.row : window.row + window.height, window.column : window.column + window.width
        ] += 1
    assert (count == 1).all()


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_context_is_that_of_the_padded_scene(data):
    height, width = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    margin = data.draw(st.integers(0, 12))
    row, column = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    rows = data.draw(st.integers(1, height - row))
    columns = data.draw(st.integers(1, width - column))
    scene = random_scene(height, width, 2)
    bands = np.array([1, 0])
    padded = np.pad(scene.values, ((0, 0), (margin, margin), (margin, margin)), mode="reflect")
    part = np.s_[bands, row : row + rows + 2 * margin, column : column + columns + 2 * margin]
    window = Window(row, column, rows, columns)
    np.testing.assert_array_equal(
        read_with_context(scene, window.rows, window.columns, bands, margin), padded[part]
    )
    empty = np.pad(
        scene.values, ((0, 0), (margin, margin), (margin, margin)), constant_values=np.nan
    )
    np.testing.assert_array_equal(
        read_with_context(scene, window.rows, window.columns, bands, margin, "zero"), empty[part]
    )


@pytest.mark.parametrize("padding", ["reflect", "zero"])
@pytest.mark.parametrize(("window", "workers"), [(None, None), (7, 1), (16, 3), (1000, 1)])
def test_the_map_does_not_depend_on_the_windows(tmp_path, padding, window, workers):
    classifier = BoxClassifier(padding=padding)
    scene = random_scene(scale=2.0)
    options = {"window": window, "workers": workers, "probabilities": tmp_path / "p.tif"}
    predict(classifier, scene, tmp_path / "map.tif", **options)
    classes, probabilities = expected_map(classifier, scene, padding)
    np.testing.assert_array_equal(stored(tmp_path / "map.tif")[0], classes)
    np.testing.assert_allclose(stored(tmp_path / "p.tif"), probabilities, rtol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1), (2, 30), (30, 2), (3, 3)])
def test_scenes_smaller_than_the_margin(tmp_path, shape):
    classifier = BoxClassifier(margin=8)
    scene = random_scene(*shape)
    result = predict(classifier, scene, tmp_path / "map.tif", window=5)
    np.testing.assert_array_equal(
        stored(tmp_path / "map.tif")[0], expected_map(classifier, scene)[0]
    )
    assert result.valid_pixels == result.pixels == shape[0] * shape[1]


def test_invalid_pixels_have_no_class_and_windows_of_them_cost_nothing(tmp_path):
    scene = random_scene(30, 30)
    scene[:, :20] = np.nan
    scene[2, 25, 3] = np.nan
    classifier = BoxClassifier(margin=1)
    result = predict(
        classifier, scene, tmp_path / "map.tif", window=10, probabilities=tmp_path / "p.tif"
    )
    invalid = np.zeros((30, 30), bool)
    invalid[:20] = invalid[25, 3] = True
    np.testing.assert_array_equal(stored(tmp_path / "map.tif")[0] == 0, invalid)
    np.testing.assert_array_equal(np.isnan(stored(tmp_path / "p.tif")).all(axis=0), invalid)
    assert len(classifier.calls) == 3
    assert result.valid_pixels == 10 * 30 - 1
    assert result.class_pixels == tuple(np.bincount(stored(tmp_path / "map.tif").ravel())[1:])


def test_progress_counts_every_pixel(tmp_path):
    seen = []
    progress = lambda done, total: seen.append((done, total))  # noqa: E731
    predict(BoxClassifier(), random_scene(), tmp_path / "map.tif", window=11, progress=progress)
    done = [d for d, _ in seen]
    assert {total for _, total in seen} == {40 * 33}
    assert (done[0], done[-1], done) == (0, 40 * 33, sorted(set(done)))


def test_windows_are_smaller_where_pixels_are_larger():
    sides = [window_side(bands, 16, 7) for bands in (3, 200, 2000, 100_000)]
    assert sides == sorted(sides, reverse=True)
    assert sides[0] > sides[2] > sides[3] > 0


def assert_nothing_written(folder):
    assert list(folder.iterdir()) == []


def test_other_bands_are_refused(tmp_path):
    with pytest.raises(ModelError, match="needs 4 bands"):
        predict(BoxClassifier(), random_scene(bands=3), tmp_path / "map.tif")
    assert_nothing_written(tmp_path)


def test_a_scene_without_valid_pixels_is_refused(tmp_path):
    scene = make_scene(np.full((4, 9, 9), -1, np.int16), nodata=-1, source="sea.tif")
    with pytest.raises(SceneError, match=r"sea.tif has no valid pixel"):
        predict(BoxClassifier(), scene, tmp_path / "map.tif")
    assert_nothing_written(tmp_path)


def test_a_diverged_model_is_refused(tmp_path):
    classifier = BoxClassifier()
    classifier.classify = lambda window: np.full((5, 40, 33), np.nan)
    with pytest.raises(ModelError, match="NaN or infinity"):
        predict(classifier, random_scene(), tmp_path / "map.tif")
    assert_nothing_written(tmp_path)


def test_a_scene_that_breaks_off_is_named(tmp_path):
    scene = endless_scene(40, 33, 4)

    def broken(key):
        if key[1].stop > 20:
            raise OSError("read of 12 bytes failed")
        return np.zeros([len(range(s.start, s.stop, s.step)) for s in key], np.float32)

    scene.variable._data.array._read = broken
    scene.attrs["source"] = "torn.img"
    with pytest.raises(SceneError, match=r"torn.img cannot be read at row .*read of 12 bytes"):
        predict(BoxClassifier(), scene, tmp_path / "map.tif", window=10)
    assert_nothing_written(tmp_path)


@pytest.mark.parametrize(
    ("out", "options", "message"),
    [
        ("map.png", {}, "not end in .tif"),
        ("scene.tif", {}, "overwrite the scene"),
        ("map.tif", {"probabilities": "scene.tif"}, "overwrite the scene"),
        ("map.tif", {"probabilities": "x/../map.tif"}, "would both be"),
        ("map.tif", {"window": 0}, "window is 0"),
        ("map.tif", {"workers": -1}, "workers is -1"),
    ],
)
def test_settings_that_make_no_sense(tmp_path, out, options, message):
    if "probabilities" in options:
        options = {"probabilities": tmp_path / options["probabilities"]}
    scene = random_scene(source=str(tmp_path / "scene.tif"))
    with pytest.raises(ConfigError, match=message):
        predict(BoxClassifier(), scene, tmp_path / out, **options)
    assert_nothing_written(tmp_path)


def test_names_and_colours_must_fit_the_model(tmp_path):
    for names, colors, error in (
        (["a"], ["#000000"], ModelError),
        (list("abcde"), ["red"] * 5, ConfigError),
    ):
        with pytest.raises(error):
            predict_scene(
                BoxClassifier(),
                random_scene(),
                tmp_path / "map.tif",
                class_names=names,
                class_colors=colors,
            )
    assert_nothing_written(tmp_path)


def test_a_folder_that_is_none(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(VitreousError, match="file is not a folder"):
        predict(BoxClassifier(), random_scene(), tmp_path / "file" / "map.tif")


def test_ctrl_c_keeps_the_old_map(tmp_path):
    out = tmp_path / "map.tif"
    out.write_text("old")

    def stop(done, total):
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict(BoxClassifier(), random_scene(), out, window=10, progress=stop)
    assert [p.name for p in tmp_path.iterdir()] == ["map.tif"]
    assert out.read_text() == "old"


def run_python(code, *args, **options):
    env = {**os.environ, "PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, args)]
    return subprocess.run(command, env=env, capture_output=True, text=True, **options)


def test_a_kill_leaves_no_product_and_the_next_run_is_undisturbed(tmp_path):
    code = """
        import os, signal, sys
        from box_classifier import BoxClassifier, random_scene
        from vitreous.inference.predict import predict_scene
        kill = lambda done, total: done > total / 2 and os.kill(os.getpid(), signal.SIGKILL)
        c = BoxClassifier()
        predict_scene(c, random_scene(), sys.argv[1] + "/map.tif", window=8, progress=kill, **c.options)
    """
    assert run_python(code, tmp_path).returncode == -signal.SIGKILL
    assert all(path.name.startswith(".") for path in tmp_path.iterdir())
    predict(BoxClassifier(), random_scene(), tmp_path / "map.tif")
    visible = {p.name for p in tmp_path.iterdir() if not p.name.startswith(".")}
    assert visible == {"map.tif", "map.tif.aux.xml"}


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path):
    code = """
        import resource, signal, sys
        from box_classifier import BoxClassifier, random_scene
        from vitreous.errors import VitreousError
        from vitreous.inference.predict import predict_scene
        c = BoxClassifier(margin=0)
        scene = random_scene(600, 600)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write beyond the limit then fails like a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
        try:
            predict_scene(c, scene, sys.argv[1] + "/map.tif", **c.options)
        except VitreousError as error:
            print(error)
    """
    result = run_python(code, tmp_path)
    assert "map.tif was not written" in result.stdout, result.stderr
    assert_nothing_written(tmp_path)


def test_memory_is_flat_in_the_scene_height(tmp_path):
    code = """
        import json, sys
        import numpy as np
        from box_classifier import BoxClassifier, endless_scene
        from vitreous.inference.predict import predict_scene
        class Cheap(BoxClassifier):
            def classify(self, window):
                m = self.margin
                first = window[0, m:-m, m:-m] > 50
                return np.stack([first, ~first]).astype(np.float32)
        c = Cheap(bands=30, num_classes=2)
        scene = endless_scene(int(sys.argv[1]), 500, 30)
        result = predict_scene(c, scene, sys.argv[2], window=128, probabilities=sys.argv[2] + "p.tif", **c.options)
        print(json.dumps([result.peak_memory, result.valid_pixels]))
    """
    peaks = []
    for height in (500, 8000):
        output = run_python(code, height, tmp_path / f"{height}.tif", check=True).stdout
        peak, valid = json.loads(output)
        assert valid == height * 500
        peaks.append(peak)
    assert peaks[1] - peaks[0] < 60 * 2**20, peaks  # the map alone: 4 MB; the scene: 480 MB
