import csv
import json

import pytest
from PIL import Image

from vitreous.cli.options import read_image_size
from vitreous.errors import VitreousError
from vitreous.inference.bench import Setting, measure


def test_models_are_compared(cli, tmp_path):
    arguments = [
        "--bands",
        "5",
        "--image-size",
        "12",
        "--batch-size",
        "2",
        "--repeats",
        "3",
        "--num-classes",
        "4",
        "--threads",
        "1",
    ]
    table, picture = tmp_path / "t.csv", tmp_path / "p.png"
    files = ("--csv", table, "--plot", picture)
    done = cli("bench", "models", "vit_test", *arguments, *files, timeout=280)
    assert done.returncode == 0, done.stderr
    assert "vit_test" in done.stdout
    (row,) = csv.DictReader(table.open())
    found = measure(Setting("vit_test", 5, 12, 2, 3, num_classes=4))
    assert int(row["parameters"]) == found.parameters
    assert float(row["gmacs"]) == found.macs / 1e9
    assert float(row["low"]) <= float(row["milliseconds"]) <= float(row["high"])
    assert float(row["pixels_per_second"]) == 144 * float(row["images_per_second"])
    assert Image.open(picture).size[0] > 500


def test_oblong_images_cost_by_their_pixels():
    wide, tall, square = (
        measure(Setting("convnext_test", 3, size, 2, 3, num_classes=4, threads=1))
        for size in ((128, 256), (256, 128), 256)
    )
    assert wide.macs == tall.macs
    assert wide.macs == pytest.approx(square.macs / 2, rel=0.01)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("24", 24),
        ("24x36", (24, 36)),
        ("24,36", (24, 36)),
        (" 24 X 36 ".lower(), (24, 36)),
        ("24×24", 24),
    ],
)
def test_image_sizes_are_read(text, size):
    assert read_image_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "x", "24x", "24x36x3", "24.5", "-24", "24 36", "0", "24x0", "9999", "1e2", "²"]
)
def test_what_is_no_image_size_is_refused(text):
    with pytest.raises(VitreousError, match="--image-size") as refused:
        read_image_size(text)
    assert refused.value.fix


def test_training_costs_more_than_prediction():
    plain, both = (
        measure(Setting("vit_test", 5, 33, 8, 7, backward=b, num_classes=4, threads=1))
        for b in (False, True)
    )
    assert both.milliseconds > plain.milliseconds
    assert json.dumps(plain.parameters) == json.dumps(both.parameters)


def test_unknown_names_and_pictures_are_refused(cli, tmp_path):
    assert cli("bench", "models", "vit_tset").returncode == 2
    refused = cli("bench", "models", "vit_test", "--plot", tmp_path / "p.doc")
    assert refused.returncode == 2
    assert ".png" in refused.stderr
