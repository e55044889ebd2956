"""Prediction on a Dask cluster: the local result, bit for bit."""

from __future__ import annotations

import gc
import sys

import numpy as np
import pytest
import rasterio
from box_classifier import BoxClassifier, endless_scene, random_scene

from vitreous.errors import ConfigError, ModelError, VitreousError
from vitreous.inference import cluster as cluster_room
from vitreous.inference.maps import no_georeference_warning
from vitreous.inference.predict import predict_scene
from vitreous.scenes import envi, geotiff, open_scene

distributed = pytest.importorskip("distributed")


@pytest.fixture(scope="module")
def address():
    with distributed.LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        processes=False,
        protocol="tcp",
        dashboard_address="127.0.0.1:0",
    ) as running:
        yield running.scheduler_address


def products(folder, scene, **options):
    classifier = BoxClassifier()
    predict_scene(
        classifier,
        scene,
        folder / "map.tif",
        probabilities=folder / "p.tif",
        window=9,
        png=False,
        **classifier.options,
        **options,
    )
    values = []
    for name in ("map.tif", "p.tif"):
        with no_georeference_warning(), rasterio.open(folder / name) as dataset:
            values.append(dataset.read())
    return values


def equal(first, second):
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("kind", ["memory", "lazy", "envi", "geotiff", "hints"])
def test_the_cluster_gives_the_local_result(tmp_path, address, kind, monkeypatch):
    scene = random_scene(nodata=0.0)
    scene[:, 3:12, 5:9] = 0.0
    if kind == "lazy":
        scene = endless_scene(40, 33, 4)
    elif kind == "envi":
        envi.write(scene, tmp_path / "scene.img")
        scene = open_scene(tmp_path / "scene.img")
    elif kind == "geotiff":
        geotiff.write(scene, tmp_path / "scene.tif")
        scene = open_scene(tmp_path / "scene.tif")
    elif kind == "hints":  # what the user said about the values must reach the workers
        envi.write(scene, tmp_path / "scene.img")
        scene = open_scene(tmp_path / "scene.img", scale=0.5, nodata=-9.0)
    read_here = []
    monkeypatch.setattr(
        cluster_room._Sender, "submit", _counting(cluster_room._Sender.submit, read_here)
    )
    local = products(tmp_path, scene)
    equal(local, products(tmp_path, scene, dask=address))
    assert set(read_here) == {kind == "memory"}  # only values in memory are sent


def _counting(submit, seen):
    def wrapped(self, window):
        seen.append(self.remote_scene is None)
        return submit(self, window)

    return wrapped


@pytest.mark.slow  # starting processes from within a large test process can take minutes on a busy machine
def test_a_local_cluster_of_processes(tmp_path):
    scene = random_scene()
    equal(products(tmp_path, scene), products(tmp_path, scene, dask="local", workers=2))


def test_few_windows_are_in_flight(tmp_path, address, monkeypatch):
    submitted, done, most = [], [], []
    submit = cluster_room._Sender.submit

    def counting(self, window):
        submitted.append(window)
        most.append(len(submitted) - len(done))
        return submit(self, window)

    monkeypatch.setattr(cluster_room._Sender, "submit", counting)
    products(tmp_path, random_scene(), dask=address, progress=lambda n, total: done.append(n))
    assert len(submitted) == 5 * 4
    assert max(most) <= 2 * cluster_room.IN_FLIGHT


def test_an_error_of_the_model_arrives_as_itself(tmp_path, address):
    scene = random_scene()
    classifier = Diverged()
    with pytest.raises(ModelError, match="NaN or infinity"):
        predict_scene(classifier, scene, tmp_path / "m.tif", dask=address, **classifier.options)
    assert list(tmp_path.iterdir()) == []


class Diverged(BoxClassifier):
    def classify(self, window):
        return super().classify(window) * np.nan


@pytest.mark.parametrize(
    "wrong", ["tcp://127.0.0.1:1", "nonsense", "tcp://no.such.host.invalid:80"]
)
def test_a_scheduler_that_does_not_answer(tmp_path, wrong, monkeypatch):
    monkeypatch.setattr(cluster_room, "ANSWER_SECONDS", 0.5)
    with pytest.raises(VitreousError, match="does not answer"):
        products(tmp_path, random_scene(), dask=wrong)
    assert list(tmp_path.iterdir()) == []
    # One that is collected while another starts waits for a lock of that one, for ever.
    half_made = [one for one in gc.get_objects() if isinstance(one, distributed.Client)]
    assert all(one.status == "closed" for one in half_made)


def test_a_cluster_without_workers(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster_room, "WORKER_SECONDS", 0.5)
    with (
        distributed.LocalCluster(
            n_workers=0, processes=False, protocol="tcp", dashboard_address="127.0.0.1:0"
        ) as empty,
        pytest.raises(VitreousError, match="no workers"),
    ):
        products(tmp_path, random_scene(), dask=empty.scheduler_address)


def test_dask_is_an_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ConfigError, match="needs Dask"):
        products(tmp_path, random_scene(), dask="local")
