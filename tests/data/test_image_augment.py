import numpy as np
import pytest
import torch
from PIL import Image

from tiny_images import folder_of_pictures, folder_of_rasters
from vitreous.data.image_augment import (
    DRAWN,
    OPERATIONS_ON_COLORS,
    OPERATIONS_PER_BAND,
    Augmentation,
    ImageDraws,
    Palette,
    changed,
    covering_box,
    crop_box,
    erased,
    flipped,
    mixed,
)
from vitreous.data.image_batches import PlainBatches, Sized, TrainingBatches, loader, resized
from vitreous.data.image_collection import open_images

STRONG = Augmentation(0.4, "all", 2, 9.0, 0.5, 0.3, 1.0)


def draws(count=64, seed=0):
    return ImageDraws(seed, 0, range(count))


def palette(bands, color):
    return Palette(color, torch.full((bands,), 100.0), torch.full((bands,), 20.0))


def test_what_an_image_becomes_depends_on_itself_alone():
    images = torch.rand(8, 3, 12, 12) * 255
    plain = Augmentation(flip="all", operations=2, magnitude=9, erasing=0.5)
    together = changed(images, plain, palette(3, True), ImageDraws(3, 1, range(8)))
    for k in range(8):
        alone = changed(images[k : k + 1], plain, palette(3, True), ImageDraws(3, 1, [k]))
        torch.testing.assert_close(alone[0], together[k], atol=1e-3, rtol=1e-4)
    other = changed(images, plain, palette(3, True), ImageDraws(3, 2, range(8)))
    assert not torch.allclose(together, other)


@pytest.mark.parametrize(("bands", "color"), [(3, True), (1, False), (5, False)])
def test_every_operation_keeps_shape_and_finite_values(bands, color):
    images = torch.rand(64, bands, 12, 9) * 255
    found = changed(images, STRONG, palette(bands, color), draws())
    assert found.shape == images.shape and found.isfinite().all()
    if color:
        assert found.min() >= 0 and found.max() <= 255 + 1e-3


@pytest.mark.parametrize("operation", [*OPERATIONS_ON_COLORS, *OPERATIONS_PER_BAND])
def test_operations_do_something_and_do_not_write_into_what_they_are_given(operation):
    color = operation in OPERATIONS_ON_COLORS
    images = torch.rand(6, 3, 24, 24) ** 2 * 200
    before = images.clone()
    found = operation(
        images, torch.linspace(0.5, 0.9, 6), draws(6), list(range(6)), palette(3, color)
    )
    assert torch.equal(images, before) and not torch.allclose(found, images, atol=0.5)


def test_shifts_move_what_is_in_an_image():
    from vitreous.data.image_augment import GEOMETRY, SHIFT, _moved

    images = torch.zeros(4, 1, 32, 32)
    images[:, :, 16, 16] = 1
    kinds = np.array([GEOMETRY.index(name) for name in ("none", "shift_x", "shift_y", "shift_x")])
    found = _moved(images, kinds, torch.tensor([1.0, 1.0, 1.0, -1.0]))
    move = round(SHIFT * 32)
    for row, place in enumerate([(16, 16), (16, 16 + move), (16 + move, 16), (16, 16 - move)]):
        assert found[(row, 0, *place)] > 0.99


def test_flips_give_all_orientations_of_a_square_and_only_mirror_others():
    image = torch.arange(9.0).reshape(1, 1, 3, 3)
    found = flipped(image.repeat(400, 1, 1, 1), "all", draws(400).table[:, 4:6])
    assert len({tuple(part.flatten().tolist()) for part in found}) == 8
    oblong = torch.arange(6.0).reshape(1, 1, 2, 3).repeat(400, 1, 1, 1)
    found = flipped(oblong, "all", draws(400).table[:, 4:6])
    assert len({tuple(part.flatten().tolist()) for part in found}) == 4
    found = flipped(oblong, "horizontal", draws(400).table[:, 4:6])
    assert len({tuple(part.flatten().tolist()) for part in found}) == 2
    assert flipped(oblong, "none", draws(400).table[:, 4:6]) is oblong


def test_erased_rectangles_have_the_mean_and_the_share_that_is_asked_for():
    images = torch.zeros(2000, 2, 20, 20)
    found = erased(images, 0.25, torch.tensor([5.0, 7.0]), draws(2000).table[:, 6:11])
    touched = (found != 0).any(1).flatten(1)
    assert abs(float(touched.any(1).float().mean()) - 0.25) < 0.03
    share = touched[touched.any(1)].float().mean(1)
    assert share.min() > 0.01 and share.max() < 0.36
    assert set(found[:, 0].unique().tolist()) == {0.0, 5.0}


def test_mixtures_keep_targets_true_to_the_pixels():
    count = 64
    images = torch.arange(count).float()[:, None, None, None].expand(count, 1, 16, 16).clone()
    targets = torch.eye(count)
    for augmentation in (Augmentation(cutmix=1.0), Augmentation(mixup=1.0)):
        found, shares = mixed(images, targets, augmentation, (0, 0, 0))
        # The mean of an image is the mixture of its two numbers with the target's shares.
        torch.testing.assert_close(found.mean((1, 2, 3)), shares @ torch.arange(count).float())
        assert torch.allclose(shares.sum(1), torch.ones(count)) and (shares.diagonal() < 1).any()
        assert ((shares > 0).sum(1) <= 2).all()
        again, _ = mixed(images, targets, augmentation, (0, 0, 0))
        assert torch.equal(found, again)
    assert mixed(images, targets, Augmentation(), (0, 0, 0))[0] is images


@pytest.mark.parametrize("image", [(40, 60), (12, 12), (100, 7)])
@pytest.mark.parametrize("size", [(16, 16), (24, 12)])
def test_crops_lie_inside_and_have_the_ratio_that_is_needed(image, size):
    table = np.random.default_rng(0).random((200, 4))
    for drawn in table:
        top, left, height, width = crop_box(image, size, 0.3, drawn)
        assert top >= 0 and left >= 0
        assert top + height <= image[0] + 1e-9 and left + width <= image[1] + 1e-9
    whole = crop_box(image, size, 1.0, np.array([0.5, 0.9, 0.5, 0.5]))
    assert np.allclose(whole, covering_box(image, size))
    top, left, height, width = covering_box(image, size)
    assert np.isclose(height / width, size[0] / size[1])
    assert np.isclose(height, image[0]) or np.isclose(width, image[1])


def test_values_in_float_are_resized_as_pictures_are():
    values = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    values = np.asarray(Image.fromarray(values).resize((30, 20)).resize((60, 40)))
    box = (4.0, 6.0, 32.0, 48.0)
    picture = resized(values, box, (16, 24)).astype(float)
    number = resized(values.astype(np.float32), box, (16, 24))
    assert np.abs(picture - number.clip(0, 255)).mean() < 1.5


def test_batches_of_an_epoch_hold_every_training_image_once(tmp_path):
    found = open_images(folder_of_pictures(tmp_path), seed=1)
    epochs = [TrainingBatches(found, (8, 8), STRONG, 6, 5, epoch) for epoch in (0, 0, 1)]
    numbers = [torch.cat([batch.number for batch in epoch]) for epoch in epochs]
    assert sorted(numbers[0].tolist()) == found.of("train").tolist()
    assert torch.equal(numbers[0], numbers[1]) and not torch.equal(numbers[0], numbers[2])
    assert torch.equal(epochs[0][1].image, epochs[1][1].image)
    parts = [TrainingBatches(found, (8, 8), STRONG, 6, 5, 0, rank, 2) for rank in (0, 1)]
    assert len(parts[0]) == len(parts[1])
    together = torch.cat([batch.number for part in parts for batch in part])
    assert sorted(together.tolist()) == found.of("train").tolist()


def test_processes_that_read_make_the_same_batches(tmp_path):
    found = open_images(folder_of_pictures(tmp_path, count=8))
    batches = TrainingBatches(found, (8, 8), STRONG, 4, 0, 0)
    for here, there in zip(loader(batches), loader(batches, workers=1), strict=True):
        assert torch.equal(here.image, there.image) and torch.equal(here.target, there.target)


def test_invalid_pixels_become_the_mean_and_images_are_not_changed_where_nothing_is_asked(tmp_path):
    found = open_images(folder_of_rasters(tmp_path))
    number = int(found.of("train")[0])
    values = found.store.read(number).copy()
    values[2, 3] = np.nan
    found.store.kept[number] = values
    sized = Sized(found.store, (12, 10), torch.from_numpy(found.mean).float())
    batch = next(iter(PlainBatches(sized, np.array([number]), torch.zeros(len(found.store), 2), 4)))
    image = batch.image[0].permute(1, 2, 0).numpy()
    assert np.allclose(image[2, 3], found.mean)
    image[2, 3] = np.nan
    assert np.array_equal(image, values, equal_nan=True)


def test_no_two_columns_of_draws_are_shared():
    assert draws(1).table.shape == (1, DRAWN)
    assert not torch.equal(draws(4).normal([0, 1], (3,))[0], draws(4).normal([0, 1], (3,))[1])
