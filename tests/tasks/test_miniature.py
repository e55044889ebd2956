"""What small comparisons share: starts that are alike, and images."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from vitreous.catalog.registry import cards, create_model
from vitreous.data.blocks import TEST, TRAIN, VAL
from vitreous.data.images import read_image_folder
from vitreous.data.splits import stratified_random
from vitreous.errors import VitreousError
from vitreous.layers.transforms import SpectralGate
from vitreous.tasks.miniature import (
    image_task,
    pixel_task,
    sample_cube,
    scaled_init,
    scaled_strips,
    shifted,
    shifted_and_mirrored,
    validation_strips,
)

ARCHITECTURES = [f"{card.slug}_test" for card in cards() if card.kind == "model"]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_layer_starts_at_the_scale_of_its_width(name):
    torch.manual_seed(0)
    model = scaled_init(create_model(name, bands=4, num_classes=5, image_size=15))
    layers = [
        part for part in model.modules() if isinstance(part, nn.Linear | nn.Conv2d | nn.Conv3d)
    ]
    assert layers
    for layer in layers:
        if layer.weight.any():
            rms = float(layer.weight.detach().square().mean().sqrt())
            assert rms == pytest.approx(layer.weight[0].numel() ** -0.5, rel=1e-3)


def test_a_filter_starts_at_the_scale_that_keeps_its_input_s():
    torch.manual_seed(0)
    model = scaled_init(create_model("spectformer_test", bands=4, num_classes=5, image_size=15))
    gate = next(part for part in model.modules() if isinstance(part, SpectralGate))
    maps = torch.randn(200, 5, 5, gate.weight.shape[2])
    assert float(gate(maps).detach().std()) == pytest.approx(1, abs=0.1)


def test_layers_that_start_at_zero_stay_at_zero():
    layer = nn.Linear(4, 4)
    nn.init.zeros_(layer.weight)
    assert not scaled_init(nn.Sequential(layer))[0].weight.any()


def test_a_narrow_network_is_no_longer_silent():
    def spread(model):
        with torch.no_grad():
            return float(model(torch.randn(64, 1, 16, 16)).std(0).mean())

    torch.manual_seed(0)
    model = create_model(
        "vit_tiny", bands=1, num_classes=10, image_size=16, dim=64, depth=4, heads=2, token_size=4
    )
    before = spread(model.eval())
    assert before < 0.2 < spread(scaled_init(model))


@pytest.fixture
def folder(tmp_path):
    """Two classes, told apart by their first band; one picture is grey, one of another size."""
    draw = np.random.default_rng(0)
    for part, count in (("train", 12), ("test", 4)):
        for number, name in enumerate(("cat", "dog")):
            (tmp_path / part / name).mkdir(parents=True)
            for k in range(count):
                values = draw.integers(0, 255, (8, 8, 3), dtype=np.uint8)
                values[..., 0] = 200 * number
                Image.fromarray(values).save(tmp_path / part / name / f"{k}.png")
    Image.fromarray(np.full((16, 8), 51, np.uint8)).save(tmp_path / "train" / "dog" / "0.png")
    (tmp_path / "train" / "dog" / "notes.txt").write_text("no picture")
    return tmp_path


def test_folder_of_pictures(folder):
    found = read_image_folder(folder, 8)
    assert found.names == ["cat", "dog"]
    assert found.train.images.shape == (24, 3, 8, 8) and found.test.images.shape == (8, 3, 8, 8)
    assert found.train.classes.tolist() == [0] * 12 + [1] * 12
    assert torch.equal(found.train.images[12], torch.full((3, 8, 8), 0.2))
    for part in (found.train, found.test):
        assert not part.images[part.classes == 0][:, 0].any()


def test_task_of_a_folder_keeps_its_test_images(folder):
    tasks = [image_task(seed, 8, data=folder, validation=6) for seed in (0, 1)]
    train, validation, test = (len(part.images) for part in tasks[0][2:])
    assert (train, validation, test) == (18, 6, 8)
    assert tasks[0].shape == {"bands": 3, "num_classes": 2, "image_size": 8}
    deviation, mean = torch.std_mean(tasks[0].train.images, dim=(0, 2, 3))
    assert torch.allclose(mean, torch.zeros(3), atol=1e-5)
    assert torch.allclose(deviation, torch.ones(3), atol=1e-5)
    assert torch.equal(tasks[0].test.classes, tasks[1].test.classes)
    assert not torch.equal(tasks[0].validation.images, tasks[1].validation.images)


def test_parts_of_the_digits_do_not_overlap():
    task = image_task(3, 8)
    assert task.name.startswith("toy")
    parts = [part.images.flatten(1) for part in task[2:]]
    assert [len(part) for part in parts] == [1200, 200, 397]
    everything = torch.cat(parts)
    assert len(everything.unique(dim=0)) == len(everything)


def test_what_is_no_picture_is_refused_in_words(folder):
    (folder / "train" / "cat" / "0.png").write_bytes(b"GIF89a not a png")
    with pytest.raises(VitreousError, match=r"0\.png cannot be read"):
        read_image_folder(folder, 8)


def test_an_empty_folder_is_refused_in_words(tmp_path):
    with pytest.raises(VitreousError, match="no images in class folders"):
        read_image_folder(tmp_path, 8)


def test_pictures_that_do_not_fit_are_refused_before_they_are_read(folder):
    with pytest.raises(VitreousError, match="GiB"):
        read_image_folder(folder, 60_000)


def test_shifts_move_each_image_by_its_own_few_pixels():
    images = torch.arange(2 * 64.0).reshape(2, 1, 8, 8).repeat(20, 1, 1, 1)
    moved = shifted(images, torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(images, (1, 1, 1, 1), mode="reflect")
    found = set()
    for image, wide in zip(moved, padded, strict=True):
        places = [(r, c) for r in range(3) for c in range(3)]
        found |= {(r, c) for r, c in places if torch.equal(image, wide[:, r : r + 8, c : c + 8])}
    assert len(found) == 9


def test_about_half_of_the_images_are_mirrored():
    images = torch.arange(8.0).expand(200, 3, 8, 8).clone()  # brighter to the right
    made = shifted_and_mirrored(images, torch.Generator().manual_seed(0))
    rising = (made[:, 0, 0, 6] > made[:, 0, 0, 1]).sum()
    assert 70 < rising < 130


def test_patches_of_a_split_are_those_of_its_pixels():
    _, labels = sample_cube()
    split = stratified_random(labels.numpy(), train_fraction=0.1, val_fraction=0.5, seed=3)
    task = pixel_task(split, 4, 6, training=300, test=50)
    counts = [len(part.images) for part in task[2:]]
    assert counts == [300, len(split.pixels(VAL)), 50]
    assert task.shape == {"bands": 6, "num_classes": 16, "image_size": 4}
    centres = task.train.images[
        :, :, 2, 2
    ]  # of an even patch, the pixel is the first of its second half
    assert torch.allclose(centres.mean(0), torch.zeros(6), atol=1e-4)
    assert torch.allclose(centres.var(0), torch.ones(6), atol=1e-2)
    for role, part in zip((TRAIN, VAL, TEST), task[2:], strict=True):
        assert len(part.images.flatten(1).unique(dim=0)) == len(part.images)
        known = labels.flatten()[torch.from_numpy(split.pixels(role))] - 1
        assert (
            torch.bincount(part.classes, minlength=16) <= torch.bincount(known, minlength=16)
        ).all()


def test_settings_of_restorers_are_chosen_on_rows_that_are_not_reported():
    cube = torch.arange(145.0)[None, :, None].expand(2, 145, 40)
    reported, searched = scaled_strips(cube), validation_strips(cube)

    def rows(strips, part):
        return strips.ranges.inverse(part)[0, :, 0].round().int().tolist()

    assert rows(reported, reported.train) == [*range(97)]
    assert rows(reported, reported.test) == [*range(97, 145)]
    assert rows(searched, searched.train) == [*range(73)]
    assert rows(searched, searched.test) == [*range(73, 97)]
    assert reported.test.shape[2] == searched.test.shape[2] == 32
