"""Exports that several tests look at: each takes seconds to make."""

import pytest
from small_exports import make_export, small_classifier

from tiny_scene import tiny_cube, tiny_labels, tiny_scene


@pytest.fixture(scope="session")
def holed_scene():
    """The tiny scene with pixels that have no measurement."""
    cube = tiny_cube(tiny_labels())
    cube[:, 3:5, 4] = float("nan")
    cube[:, 20, 20:] = float("nan")
    return tiny_scene(cube)


@pytest.fixture(scope="session")
def shared_front(tmp_path_factory):
    """A network whose front-end patches share, as ONNX: the classifier, its folder, the parity."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    classifier = small_classifier(mode="scene")
    folder = tmp_path_factory.mktemp("exports") / "small"
    return classifier, folder, make_export(classifier, folder)
