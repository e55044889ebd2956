"""Files of runs that classify images, damaged: said in words, and never anything else."""

import shutil

import numpy as np
import pytest
import torch

from damage import mutate_header, mutate_json
from tiny_images import folder_of_pictures
from vitreous.data.provenance import (
    Seen,
    SeenImages,
    Unknown,
    image_leakage,
    provenance_from_json,
    provenance_to_json,
)
from vitreous.errors import CheckpointError
from vitreous.recipe import RecognizeRecipe, make_recipe
from vitreous.report.recognition import build_report
from vitreous.tasks import recognize

COUNT = 80


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    images = folder_of_pictures(folder / "images", {"train": 6, "test": 2})
    values = {"model": "convnext_test", "epochs": 1, "report": False, "runs": str(folder / "r")}
    return recognize.train(
        make_recipe({**values, "images": str(images)}, RecognizeRecipe), show=False
    )


@pytest.fixture
def run(made, tmp_path):
    return shutil.copytree(made, tmp_path / "runs" / "recognize" / "run")


def test_model_files(run):
    def call():
        loaded = recognize.load_run(run)
        own = loaded.recognizer
        found = own.probabilities(torch.rand(2, own.contract.bands, *own.size) * 255)
        assert found.shape == (2, len(own.class_names))

    mutate_header(run / "model.safetensors", COUNT, call)


def test_what_a_run_was_started_with(run):
    mutate_json(run / "config.json", COUNT, lambda: recognize.evaluate(run))


def test_what_the_report_reads(run):
    collection = recognize.open_collection(recognize.load_run(run).recipe)
    mutate_json(run / "metrics.json", COUNT, lambda: build_report(run, collection))
    for text in (b"\xff\xff", b"", b"a,b\n1,2\n"):
        (run / "predictions.csv").write_bytes(text)
        if text:
            with pytest.raises(Exception, match=r"predictions\.csv"):
                build_report(run, collection)


def test_hashes_of_images_travel_and_are_bounded():
    digests = np.random.default_rng(0).integers(2**63, size=100_000, dtype=np.uint64)
    seen = SeenImages.of("recognize", "many", digests)
    assert seen.step > 1 and len(seen.known) <= 2**14
    (back,) = provenance_from_json(provenance_to_json((seen,)), "file")
    assert back == seen
    half = np.concatenate([digests[:2000], digests[:2000] + np.uint64(1)])
    leakage = image_leakage((seen, Unknown("x")), half)
    assert 0.3 < leakage.share < 0.7 and leakage.unknown == ("x",)
    few = SeenImages.of("recognize", "few", digests[:10])
    assert image_leakage((few,), digests[5:15]).share == 0.5
    assert image_leakage((), digests).sentences == []
    assert not isinstance(seen, Seen)


@pytest.mark.parametrize(
    "wrong",
    [
        {"step": 3},
        {"step": 0},
        {"digests": "?"},
        {"digests": "eJwzNDI2MQUAAvgBAA=="},
        {"step": None},
    ],
)
def test_damaged_hashes_are_refused(wrong):
    value = SeenImages.of("recognize", "s", np.arange(5, dtype=np.uint64)).to_json()
    with pytest.raises(CheckpointError, match="damaged"):
        provenance_from_json([{**value, **wrong}], "file")
